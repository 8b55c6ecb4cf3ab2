//! Softmax, log-softmax and log-sum-exp over contiguous rows, each row read while it is in cache.

use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::cpu::simd::vectorize;
use crate::dtype::Real;
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::CpuStorage;

/// The largest element of a row, 16 lanes at a time.
#[inline(always)]
pub fn max_row<T: Scalar>(x: &[T]) -> T::Math {
    let mut lanes = [T::Math::NEG_INFINITY; 16];
    let groups = x.chunks_exact(16);
    let mut m = T::Math::NEG_INFINITY;
    for &v in groups.remainder() {
        m = m.max(v.up());
    }
    for g in groups {
        for (l, &v) in lanes.iter_mut().zip(g) {
            let v = v.up();
            *l = if v > *l { v } else { *l };
        }
    }
    lanes.into_iter().fold(m, Real::max)
}

/// The maximum of a row and the sum of e^(x - maximum). A row of -infinity gives (-infinity, 0).
#[inline(always)]
pub fn max_and_sum<T: Scalar>(x: &[T]) -> (T::Math, T::Math) {
    let m = max_row(x);
    if m == T::Math::NEG_INFINITY {
        return (m, T::Math::ZERO);
    }
    let mut lanes = [T::Math::ZERO; 16];
    let groups = x.chunks_exact(16);
    let mut s = T::Math::ZERO;
    for &v in groups.remainder() {
        s += (v.up() - m).exp();
    }
    for g in groups {
        for (l, &v) in lanes.iter_mut().zip(g) {
            *l += (v.up() - m).exp();
        }
    }
    (m, lanes.into_iter().fold(s, |a, b| a + b))
}

/// Softmax or its logarithm over rows of n.
pub fn softmax(
    x: &CpuStorage,
    offset: usize,
    rows: usize,
    n: usize,
    log: bool,
) -> Result<CpuStorage> {
    fn run<T: Scalar>(x: &[T], n: usize, log: bool) -> Result<CpuStorage> {
        let mut y = Buffer::<T>::unwritten(x.len());
        for_rows(&mut y, n, 8 * n, |r, out| {
            let x = &x[r * n..(r + 1) * n];
            vectorize(
                #[inline(always)]
                || {
                    let (m, s) = max_and_sum(x);
                    let empty = s == T::Math::ZERO;
                    let scale = T::Math::ONE / s;
                    if log {
                        let shift = m + s.ln();
                        out.iter_mut()
                            .zip(x)
                            .for_each(|(o, &v)| *o = T::down(v.up() - shift));
                    } else if empty {
                        out.fill(T::down(T::Math::ZERO));
                    } else {
                        out.iter_mut()
                            .zip(x)
                            .for_each(|(o, &v)| *o = T::down((v.up() - m).exp() * scale));
                    }
                },
            );
        });
        Ok(T::wrap(y))
    }
    each_float!("softmax", x, b => run(&b[offset..offset + rows * n], n, log))
}

/// log(sum(e^x)) over rows of n.
pub fn logsumexp(x: &CpuStorage, offset: usize, rows: usize, n: usize) -> Result<CpuStorage> {
    fn run<T: Scalar>(x: &[T], rows: usize, n: usize) -> Result<CpuStorage> {
        let mut y = Buffer::<T>::unwritten(rows);
        for_rows(&mut y, 1, 8 * n, |r, out| {
            let (m, s) = vectorize(
                #[inline(always)]
                || max_and_sum(&x[r * n..(r + 1) * n]),
            );
            out[0] = T::down(if s == T::Math::ZERO { m } else { m + s.ln() });
        });
        Ok(T::wrap(y))
    }
    each_float!("logsumexp", x, b => run(&b[offset..offset + rows * n], rows, n))
}
