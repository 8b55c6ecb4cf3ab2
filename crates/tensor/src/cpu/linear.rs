//! x W^T for few rows of f32 and a weight kept in bf16: decoding reads every weight once per token, so the time
//! is that of the bytes, and bf16 halves them. Each weight is widened in a register; nothing is rounded but the sum.

use half::bf16;

use crate::cpu::parallel::{GRAIN, for_pieces};
use crate::cpu::simd::vectorize;
use crate::memory::Buffer;

/// Most rows of x for which this beats widening the whole weight for a product through gemm (measured at 512 x 1376).
pub const FEW_ROWS: usize = 8;
/// Lanes of one sum: an AVX-512 register.
const LANES: usize = 16;

/// x [rows, k], w [n, k] -> [rows, n]; a sum's order depends on k alone.
pub fn widening(x: &[f32], w: &[bf16], [rows, k, n]: [usize; 3]) -> Buffer<f32> {
    if rows == 1 {
        let mut y = Buffer::unwritten(n);
        outputs(&mut y, x, w, k);
        return y;
    }
    // Weights outside, rows inside: a weight is read from memory once, then from the cache.
    let mut by_output = Buffer::unwritten(n * rows);
    outputs(&mut by_output, x, w, k);
    let mut y = Buffer::unwritten(rows * n);
    for (r, y) in y.chunks_exact_mut(n.max(1)).enumerate() {
        let from = by_output[r.min(n * rows)..].iter().step_by(rows.max(1));
        y.iter_mut().zip(from).for_each(|(y, &v)| *y = v);
    }
    y
}

/// y [n, rows] = w x^T.
fn outputs(y: &mut [f32], x: &[f32], w: &[bf16], k: usize) {
    let rows = x.len().checked_div(k).unwrap_or(1).max(1);
    let piece = (GRAIN / k.max(1)).max(1) * rows;
    for_pieces(y, piece, |at, y| {
        vectorize(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(rows).enumerate() {
                    let w = &w[(at / rows + i) * k..][..k];
                    for (r, y) in y.iter_mut().enumerate() {
                        *y = dot(&x[r * k..][..k], w);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn dot(x: &[f32], w: &[bf16]) -> f32 {
    // Four sums of a register each, named so that they stay in registers: additions do not wait for one another.
    let [mut a, mut b, mut c, mut d] = [[0f32; LANES]; 4];
    let (xs, ws) = (x.chunks_exact(4 * LANES), w.chunks_exact(4 * LANES));
    let rest = xs.remainder().iter().zip(ws.remainder());
    let rest: f32 = rest.map(|(&x, &w)| x * widen(w)).sum();
    for (x, w) in xs.zip(ws) {
        for i in 0..LANES {
            a[i] = x[i].mul_add(widen(w[i]), a[i]);
            b[i] = x[i + LANES].mul_add(widen(w[i + LANES]), b[i]);
            c[i] = x[i + 2 * LANES].mul_add(widen(w[i + 2 * LANES]), c[i]);
            d[i] = x[i + 3 * LANES].mul_add(widen(w[i + 3 * LANES]), d[i]);
        }
    }
    for i in 0..LANES {
        a[i] = (a[i] + b[i]) + (c[i] + d[i]);
    }
    let half: [f32; 8] = std::array::from_fn(
        #[inline(always)]
        |i| a[i] + a[i + 8],
    );
    let quarter: [f32; 4] = std::array::from_fn(
        #[inline(always)]
        |i| half[i] + half[i + 4],
    );
    (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]) + rest
}

#[inline(always)]
fn widen(w: bf16) -> f32 {
    f32::from_bits(u32::from(w.to_bits()) << 16)
}
