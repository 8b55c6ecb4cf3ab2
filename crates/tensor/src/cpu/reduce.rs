//! Reductions of the middle axis of [outer, n, inner]. Sums run in fixed blocks whose partial sums are then
//! added, so the result depends on neither the number of cores nor much on the length.

use crate::cpu::ReduceOp;
use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::cpu::simd::vectorize;
use crate::dtype::{DType, Element, Real};
use crate::error::{Result, dtype_error};
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored, each_dtype};

/// Elements that are summed straight on before a partial sum is put aside.
const BLOCK: usize = 512;

/// Reduce the middle axis of the contiguous elements from `offset`.
pub fn reduce(op: ReduceOp, x: &CpuStorage, offset: usize, dims: [usize; 3]) -> Result<CpuStorage> {
    let count = dims.iter().product::<usize>();
    match (op, x) {
        (ReduceOp::Sum, CpuStorage::I64(b)) => {
            let x = &b[offset..offset + count];
            let mut y = Buffer::filled(dims[0] * dims[2], 0i64);
            for (o, rows) in x.chunks_exact((dims[1] * dims[2]).max(1)).enumerate() {
                for (i, v) in rows.iter().enumerate() {
                    y[o * dims[2] + i % dims[2]] += v;
                }
            }
            Ok(CpuStorage::I64(y))
        }
        (ReduceOp::Sum, CpuStorage::U8(_)) => dtype_error("sum", DType::U8, "i64 or a float dtype"),
        (ReduceOp::Sum, _) => each_float!("sum", x, b => sum(&b[offset..offset + count], dims)),
        (ReduceOp::Max, _) => {
            each_dtype!(x, b => extreme(&b[offset..offset + count], dims, |a, b| a > b))
        }
        (ReduceOp::Min, _) => {
            each_dtype!(x, b => extreme(&b[offset..offset + count], dims, |a, b| a < b))
        }
        (ReduceOp::ArgMax, _) => {
            each_dtype!(x, b => position(&b[offset..offset + count], dims, |a, b| a > b))
        }
        (ReduceOp::ArgMin, _) => {
            each_dtype!(x, b => position(&b[offset..offset + count], dims, |a, b| a < b))
        }
    }
}

/// Sum of a row, 16 lanes at a time.
#[inline(always)]
pub fn sum_row<T: Scalar>(x: &[T]) -> T::Math {
    let mut total = T::Math::ZERO;
    for block in x.chunks(BLOCK) {
        let mut lanes = [T::Math::ZERO; 16];
        let groups = block.chunks_exact(16);
        let rest = groups.remainder();
        for g in groups {
            for (l, &v) in lanes.iter_mut().zip(g) {
                *l += v.up();
            }
        }
        let mut s = T::Math::ZERO;
        for l in lanes {
            s += l;
        }
        for &v in rest {
            s += v.up();
        }
        total += s;
    }
    total
}

fn sum<T: Scalar>(x: &[T], [outer, n, inner]: [usize; 3]) -> Result<CpuStorage> {
    let mut y = Buffer::<T>::filled(outer * inner, T::down(T::Math::ZERO));
    if n == 0 || y.is_empty() {
        return Ok(T::wrap(y));
    }
    if inner == 1 {
        if outer == 1 && n > 64 * BLOCK {
            // One long row: partial sums of pieces in parallel, then their sum.
            let mut parts = Buffer::<T::Math>::unwritten(n.div_ceil(64 * BLOCK));
            for_rows(&mut parts, 1, 64 * BLOCK, |i, out| {
                out[0] = vectorize(
                    #[inline(always)]
                    || sum_row(&x[i * 64 * BLOCK..((i + 1) * 64 * BLOCK).min(n)]),
                );
            });
            let mut total = T::Math::ZERO;
            parts.iter().for_each(|&p| total += p);
            y[0] = T::down(total);
        } else {
            for_rows(&mut y, 1, n, |r, out| {
                out[0] = T::down(vectorize(
                    #[inline(always)]
                    || sum_row(&x[r * n..(r + 1) * n]),
                ))
            });
        }
        return Ok(T::wrap(y));
    }
    // Columns: strips of up to 256 columns, each summed over the rows in blocks.
    const STRIP: usize = 256;
    let strips = inner.div_ceil(STRIP);
    let mut parts = Buffer::<T::Math>::unwritten(outer * strips * STRIP);
    for_rows(&mut parts, STRIP, n * STRIP.min(inner), |r, acc| {
        let (o, first) = (r / strips, (r % strips) * STRIP);
        let width = STRIP.min(inner - first);
        let acc = &mut acc[..width];
        vectorize(
            #[inline(always)]
            || {
                let mut block = [T::Math::ZERO; STRIP];
                let block = &mut block[..width];
                acc.fill(T::Math::ZERO);
                for start in (0..n).step_by(BLOCK) {
                    block.fill(T::Math::ZERO);
                    for i in start..(start + BLOCK).min(n) {
                        let row = &x[(o * n + i) * inner + first..][..width];
                        block.iter_mut().zip(row).for_each(|(a, &v)| *a += v.up());
                    }
                    acc.iter_mut().zip(block.iter()).for_each(|(a, &b)| *a += b);
                }
            },
        );
    });
    for o in 0..outer {
        for i in 0..inner {
            y[o * inner + i] = T::down(parts[(o * strips + i / STRIP) * STRIP + i % STRIP]);
        }
    }
    Ok(T::wrap(y))
}

fn extreme<T: Stored>(
    x: &[T],
    [outer, n, inner]: [usize; 3],
    better: fn(T, T) -> bool,
) -> Result<CpuStorage> {
    let mut y = Buffer::<T>::unwritten(outer * inner);
    for_rows(&mut y, inner, n * inner, |o, out| {
        out.copy_from_slice(&x[o * n * inner..][..inner]);
        for i in 1..n {
            for (a, &v) in out.iter_mut().zip(&x[(o * n + i) * inner..][..inner]) {
                if better(v, *a) || v.partial_cmp(&v).is_none() {
                    *a = v;
                }
            }
        }
    });
    Ok(T::wrap(y))
}

fn position<T: Element>(
    x: &[T],
    [outer, n, inner]: [usize; 3],
    better: fn(T, T) -> bool,
) -> Result<CpuStorage> {
    let mut y = Buffer::<i64>::filled(outer * inner, 0);
    for_rows(&mut y, inner, n * inner, |o, out| {
        let at = |i: usize, j: usize| x[(o * n + i) * inner + j];
        for i in 1..n {
            for (j, best) in out.iter_mut().enumerate() {
                if better(at(i, j), at(*best as usize, j)) {
                    *best = i as i64;
                }
            }
        }
    });
    Ok(CpuStorage::I64(y))
}
