//! RMSNorm rows: y = x r w with r = 1 / sqrt(mean(x^2) + eps), and
//! dx = r (g w) - x r^3 mean(g w x), dw = sum over rows of g x r.

use rayon::prelude::*;

use super::add_parts;
use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::cpu::simd::vectorize;
use crate::dtype::{Element, Real};
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::CpuStorage;

/// Rows of one partial sum of the weight's gradient.
const ROWS: usize = 32;

/// Sum of f(i) for i in 0..n, 16 lanes at a time.
#[inline(always)]
fn lanes<M: Real>(n: usize, f: impl Fn(usize) -> M) -> M {
    let mut acc = [M::ZERO; 16];
    let whole = n / 16 * 16;
    for i in (0..whole).step_by(16) {
        for (l, a) in acc.iter_mut().enumerate() {
            *a += f(i + l);
        }
    }
    let mut s = M::ZERO;
    for i in whole..n {
        s += f(i);
    }
    acc.into_iter().fold(s, |a, b| a + b)
}

#[inline(always)]
fn inverse_rms<T: Scalar>(x: &[T], eps: T::Math) -> T::Math {
    let n = T::Math::from_f64(x.len() as f64);
    T::Math::ONE / (lanes(x.len(), |i| x[i].up() * x[i].up()) / n + eps).sqrt()
}

/// x [rows, d] contiguous from `offset`, w [d] contiguous.
pub fn forward(
    x: &CpuStorage,
    offset: usize,
    w: &CpuStorage,
    offset_w: usize,
    [rows, d]: [usize; 2],
    eps: f64,
) -> Result<CpuStorage> {
    fn run<T: Scalar>(x: &[T], w: &[T], d: usize, eps: f64) -> Result<CpuStorage> {
        let mut y = Buffer::<T>::unwritten(x.len());
        let eps = T::Math::from_f64(eps);
        for_rows(&mut y, d, 2 * d, |r, out| {
            let x = &x[r * d..][..d];
            vectorize(
                #[inline(always)]
                || {
                    let s = inverse_rms(x, eps);
                    for ((o, &v), &w) in out.iter_mut().zip(x).zip(w) {
                        *o = T::down(v.up() * s * w.up());
                    }
                },
            );
        });
        Ok(T::wrap(y))
    }
    each_float!("rms_norm", x, x => {
        run(&x[offset..][..rows * d], &same(x, w)?[offset_w..][..d], d, eps)
    })
}

fn same<'a, T: Scalar>(_: &[T], s: &'a CpuStorage) -> Result<&'a [T]> {
    s.slice::<T>("rms_norm")
}

/// Gradients of x and w from g [rows, d]; all contiguous, g and x from their offsets.
pub fn backward(
    (x, ox): (&CpuStorage, usize),
    (w, ow): (&CpuStorage, usize),
    (g, og): (&CpuStorage, usize),
    [rows, d]: [usize; 2],
    eps: f64,
) -> Result<[CpuStorage; 2]> {
    fn run<T: Scalar>(x: &[T], w: &[T], g: &[T], d: usize, eps: f64) -> Result<[CpuStorage; 2]> {
        let mut dx = Buffer::<T>::unwritten(x.len());
        let pieces = (x.len() / d).div_ceil(ROWS);
        let mut parts = Buffer::<T::Math>::filled(pieces * d, T::Math::ZERO);
        let (eps, n) = (T::Math::from_f64(eps), T::Math::from_f64(d as f64));
        let work = dx
            .par_chunks_mut(ROWS * d)
            .zip(parts.par_chunks_exact_mut(d))
            .enumerate();
        work.for_each(|(p, (dx, dw))| {
            vectorize(
                #[inline(always)]
                || {
                    for (r, dx) in dx.chunks_exact_mut(d).enumerate() {
                        let at = (p * ROWS + r) * d;
                        let (x, g) = (&x[at..][..d], &g[at..][..d]);
                        let s = inverse_rms(x, eps);
                        let dot = lanes(d, |i| g[i].up() * w[i].up() * x[i].up());
                        let c = dot * s * s * s / n;
                        for i in 0..d {
                            let (xi, gi) = (x[i].up(), g[i].up());
                            dx[i] = T::down(gi * w[i].up() * s - xi * c);
                            dw[i] += gi * xi * s;
                        }
                    }
                },
            );
        });
        Ok([T::wrap(dx), T::wrap(add_parts::<T>(&parts, d))])
    }
    each_float!("rms_norm", x, x => {
        let (w, g) = (&same(x, w)?[ow..][..d], &same(x, g)?[og..][..rows * d]);
        run(&x[ox..][..rows * d], w, g, d, eps)
    })
}
