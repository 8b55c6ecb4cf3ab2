//! y = silu(p), p[t] = sum_j w[:, j] x[t + j]: depthwise, channels last, x [B, T + k - 1, C], w [C, k].
//! Time is cut into pieces; a piece of the way back recomputes p (and its gradient) for its own rows and
//! for the k - 1 rows before them, whose gradients reach into it.

use rayon::prelude::*;

use super::add_parts;
use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::cpu::simd::vectorize;
use crate::dtype::Real;
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::CpuStorage;

/// Rows of time in one piece of the way back.
const ROWS: usize = 64;

/// Sizes of one call.
#[derive(Clone, Copy)]
pub struct Dims {
    /// Sequences.
    pub batch: usize,
    /// Outputs per sequence; inputs are `tokens + taps - 1`.
    pub tokens: usize,
    /// Channels.
    pub channels: usize,
    /// Taps of the filter.
    pub taps: usize,
}

/// The weight as [k, C], in the computing type.
fn by_tap<T: Scalar>(w: &[T], d: Dims) -> Vec<T::Math> {
    (0..d.taps * d.channels)
        .map(|i| w[i % d.channels * d.taps + i / d.channels].up())
        .collect()
}

/// p of one row of time into `out`; `x` starts at that row.
#[inline(always)]
fn convolve<T: Scalar>(x: &[T], w: &[T::Math], d: Dims, out: &mut [T::Math]) {
    let c = d.channels;
    out.iter_mut()
        .zip(x)
        .zip(w)
        .for_each(|((o, &x), &w)| *o = x.up() * w);
    for j in 1..d.taps {
        for ((o, &x), &w) in out.iter_mut().zip(&x[j * c..]).zip(&w[j * c..]) {
            *o += x.up() * w;
        }
    }
}

/// x contiguous from `ox`, w contiguous from `ow`.
pub fn forward(
    (x, ox): (&CpuStorage, usize),
    (w, ow): (&CpuStorage, usize),
    d: Dims,
) -> Result<CpuStorage> {
    fn run<T: Scalar>(x: &[T], w: &[T], d: Dims) -> Result<CpuStorage> {
        let (c, w) = (d.channels, by_tap(w, d));
        let mut y = Buffer::<T>::unwritten(d.batch * d.tokens * c);
        let rows_in = d.tokens + d.taps - 1;
        // Eight rows of time at once share one scratch row.
        let group = 8.min(d.tokens);
        let width = if d.tokens.is_multiple_of(group) {
            group * c
        } else {
            c
        };
        for_rows(&mut y, width, width * (d.taps + 4), |r, out| {
            let mut p = vec![T::Math::ZERO; c];
            vectorize(
                #[inline(always)]
                || {
                    for (i, out) in out.chunks_exact_mut(c).enumerate() {
                        let row = r * (width / c) + i;
                        let (b, t) = (row / d.tokens, row % d.tokens);
                        convolve(&x[(b * rows_in + t) * c..], &w, d, &mut p);
                        out.iter_mut()
                            .zip(&p)
                            .for_each(|(o, &p)| *o = T::down(p * p.sigmoid()));
                    }
                },
            );
        });
        Ok(T::wrap(y))
    }
    let n = d.batch * (d.tokens + d.taps - 1) * d.channels;
    each_float!("conv1d_silu", x, x => run(&x[ox..][..n], &same(x, w)?[ow..][..d.channels * d.taps], d))
}

fn same<'a, T: Scalar>(_: &[T], s: &'a CpuStorage) -> Result<&'a [T]> {
    s.slice::<T>("conv1d_silu")
}

/// Gradients of x and w from g [B, T, C].
pub fn backward(
    (x, ox): (&CpuStorage, usize),
    (w, ow): (&CpuStorage, usize),
    (g, og): (&CpuStorage, usize),
    d: Dims,
) -> Result<[CpuStorage; 2]> {
    fn run<T: Scalar>(x: &[T], weight: &[T], g: &[T], d: Dims) -> Result<[CpuStorage; 2]> {
        let (c, k, w) = (d.channels, d.taps, by_tap(weight, d));
        let rows_in = d.tokens + k - 1;
        let pieces = rows_in.div_ceil(ROWS);
        let mut dx = Buffer::<T>::unwritten(x.len());
        let mut parts = Buffer::<T::Math>::filled(d.batch * pieces * k * c, T::Math::ZERO);
        let rows = dx
            .chunks_exact_mut(rows_in * c)
            .flat_map(|b| b.chunks_mut(ROWS * c));
        let work: Vec<_> = rows.zip(parts.chunks_exact_mut(k * c)).collect();
        work.into_par_iter().enumerate().for_each(|(i, (dx, dw))| {
            let (b, start) = (i / pieces, i % pieces * ROWS);
            let end = start + dx.len() / c;
            // Gradients of p for the outputs that this piece's inputs take part in.
            let first = start.saturating_sub(k - 1);
            let last = end.min(d.tokens);
            let mut dp = vec![T::Math::ZERO; last.saturating_sub(first) * c];
            vectorize(
                #[inline(always)]
                || {
                    for (i, dp) in dp.chunks_exact_mut(c).enumerate() {
                        let t = first + i;
                        let x = &x[(b * rows_in + t) * c..];
                        convolve(x, &w, d, dp);
                        for (p, &g) in dp.iter_mut().zip(&g[(b * d.tokens + t) * c..]) {
                            let s = p.sigmoid();
                            *p = g.up() * (s + *p * s * (T::Math::ONE - s));
                        }
                        if t >= start {
                            for j in 0..k {
                                for ((a, &p), &x) in
                                    dw[j * c..].iter_mut().zip(dp.iter()).zip(&x[j * c..])
                                {
                                    *a += p * x.up();
                                }
                            }
                        }
                    }
                    let mut sum = vec![T::Math::ZERO; c];
                    for (i, dx) in dx.chunks_exact_mut(c).enumerate() {
                        let row = start + i;
                        sum.fill(T::Math::ZERO);
                        for j in 0..k.min(row + 1) {
                            if row - j < last && row - j >= first {
                                let dp = &dp[(row - j - first) * c..];
                                sum.iter_mut()
                                    .zip(dp)
                                    .zip(&w[j * c..])
                                    .for_each(|((s, &p), &w)| *s += p * w);
                            }
                        }
                        dx.iter_mut().zip(&sum).for_each(|(o, &s)| *o = T::down(s));
                    }
                },
            );
        });
        // [k, C] back to [C, k].
        let taps = add_parts::<T>(&parts, k * c);
        let mut dw = Buffer::<T>::unwritten(c * k);
        for (i, v) in taps.iter().enumerate() {
            dw[i % c * k + i / c] = *v;
        }
        Ok([T::wrap(dx), T::wrap(dw)])
    }
    let n = d.batch * (d.tokens + d.taps - 1) * d.channels;
    each_float!("conv1d_silu", x, x => {
        let g = &same(x, g)?[og..][..d.batch * d.tokens * d.channels];
        run(&x[ox..][..n], &same(x, w)?[ow..][..d.channels * d.taps], g, d)
    })
}
