//! x W^T for few rows of f32: decoding reads every weight once per token, so the time is that of the bytes. Rows of
//! W are read in order, one dot product each; weights kept in bf16 are half the bytes, widened in a register.

use half::bf16;

use crate::cpu::parallel::{GRAIN, for_pieces};
use crate::cpu::simd::vectorize;
use crate::memory::Buffer;

/// Most rows of x for which this beats a product through gemm, which packs the whole weight first: `benches/linear.rs`
/// measures both.
pub const FEW_ROWS: usize = 48;
/// Lanes of one sum: an AVX-512 register.
const LANES: usize = 16;

/// What a weight may be stored in.
pub trait Weight: Copy + Send + Sync {
    /// Its exact value in f32.
    fn widen(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// x [rows, k], w [n, k] -> [rows, n]; a sum's order depends on k alone.
pub fn few_rows<W: Weight>(x: &[f32], w: &[W], [rows, k, n]: [usize; 3]) -> Buffer<f32> {
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
fn outputs<W: Weight>(y: &mut [f32], x: &[f32], w: &[W], k: usize) {
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
fn dot<W: Weight>(x: &[f32], w: &[W]) -> f32 {
    // Four sums of a register each, named so that they stay in registers: additions do not wait for one another.
    let [mut a, mut b, mut c, mut d] = [[0f32; LANES]; 4];
    let (xs, ws) = (x.chunks_exact(4 * LANES), w.chunks_exact(4 * LANES));
    let rest = xs.remainder().iter().zip(ws.remainder());
    let rest: f32 = rest.map(|(&x, &w)| x * w.widen()).sum();
    for (x, w) in xs.zip(ws) {
        for i in 0..LANES {
            a[i] = x[i].mul_add(w[i].widen(), a[i]);
            b[i] = x[i + LANES].mul_add(w[i + LANES].widen(), b[i]);
            c[i] = x[i + 2 * LANES].mul_add(w[i + 2 * LANES].widen(), c[i]);
            d[i] = x[i + 3 * LANES].mul_add(w[i + 3 * LANES].widen(), d[i]);
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
