//! The way ahead. A head's state is a block of K rows of lanes; a token takes four rows at a time: their product
//! with W, whose rows stay in registers or in the first-level cache, tanh and the blend.

use rayon::prelude::*;
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::{Dims, Inputs, SEGMENT, Unit};
use crate::shared::delta_rule::rows_by_unit;
use crate::shared::recurrent::product::{LANES, Lane};

/// Multiply-adds of a whole call below which starting threads costs more than the work.
const PARALLEL: usize = 1 << 16;

/// Rows of the state that are computed together: as many sums as hide the latency of an addition, and no more than
/// the compiler keeps in registers.
pub(super) const ROWS: usize = 4;

/// Outputs, and what the way back needs.
pub(super) struct Outcome<R: Real> {
    /// [B, T, N, V]
    pub o: Buffer<R>,
    /// For each unit and head the states before every [`SEGMENT`]-th token, in lanes; `None` if not asked for.
    pub starts: Option<Vec<Vec<Buffer<R>>>>,
}

/// Runs all tokens and moves `state` [B, N, K, V] on to the last one.
pub(super) fn forward<R: Real>(d: Dims, x: &Inputs<R>, state: &mut [R], save: bool) -> Outcome<R> {
    let units = d.units();
    let mut o = Buffer::unwritten(d.batch * d.tokens * d.heads * d.value_dim);
    let mut outputs = rows_by_unit(&mut o, d.tokens, d.heads, d.value_dim).into_iter();
    let mut states = state.chunks_exact_mut(d.matrix());
    // Units follow one another in the order of (batch, head), as the lists do.
    let work: Vec<_> = units
        .iter()
        .map(|u| {
            let outputs: Vec<_> = outputs.by_ref().take(u.heads).collect();
            let states: Vec<_> = states.by_ref().take(u.heads).collect();
            (u, outputs, states)
        })
        .collect();
    type Work<'a, R> = (&'a Unit, Vec<Vec<&'a mut [R]>>, Vec<&'a mut [R]>);
    let run = |(u, outputs, states): Work<R>| {
        let heads = u.range().zip(outputs).zip(states);
        heads
            .map(|((head, mut o), state)| one_head(&d, x, (u, head), state, &mut o, save))
            .collect()
    };
    let starts = if d.batch * d.tokens * d.heads * d.matrix() * d.value_dim < PARALLEL {
        work.into_iter().map(run).collect()
    } else {
        work.into_par_iter().map(run).collect()
    };
    Outcome {
        o,
        starts: save.then_some(starts),
    }
}

fn one_head<R: Real>(
    d: &Dims,
    x: &Inputs<R>,
    (u, head): (&Unit, usize),
    state: &mut [R],
    o: &mut [&mut [R]],
    save: bool,
) -> Buffer<R> {
    let panels = d.panels();
    let mut scratch = Scratch::new(d, x, head);
    let mut h = lanes_of(state, d.value_dim);
    let mut z = Buffer::unwritten(h.len());
    let mut starts = vec![];
    vectorize(
        #[inline(always)]
        || {
            for t in 0..d.tokens {
                if save && t % SEGMENT == 0 {
                    starts.extend_from_slice(&h);
                }
                let (h, z) = (h.as_chunks_mut().0, z.as_chunks_mut().0);
                scratch.token(d, x, (u, head, t), h, z);
                read(x.query(d, u, t), h, panels, o[t]);
            }
        },
    );
    for (to, from) in state
        .chunks_exact_mut(d.value_dim)
        .zip(h.chunks_exact(panels * LANES))
    {
        to.copy_from_slice(&from[..d.value_dim]);
    }
    Buffer::from_slice(&starts)
}

/// Rows of `width` elements as rows of lanes, filled up with zeros.
pub(super) fn lanes_of<R: Real>(rows: &[R], width: usize) -> Buffer<R> {
    let padded = width.next_multiple_of(LANES);
    let mut lanes = Buffer::filled(rows.len() / width * padded, R::ZERO);
    for (to, from) in lanes.chunks_exact_mut(padded).zip(rows.chunks_exact(width)) {
        to[..width].copy_from_slice(from);
    }
    lanes
}

/// What the tokens of one head share: W, and room for a value.
pub(super) struct Scratch<R: Real> {
    w: Buffer<R>,
    v: Buffer<R>,
}

impl<R: Real> Scratch<R> {
    pub fn new(d: &Dims, x: &Inputs<R>, head: usize) -> Self {
        let size = d.value_dim * d.value_dim;
        Scratch {
            w: lanes_of(&x.w[head * size..][..size], d.value_dim),
            v: Buffer::filled(d.panels() * LANES, R::ZERO),
        }
    }

    /// H <- f H + (1 - f) Z with Z = tanh(H W + k v^T), which is left in `z`.
    #[inline(always)]
    pub fn token(
        &mut self,
        d: &Dims,
        x: &Inputs<R>,
        (u, head, t): (&Unit, usize, usize),
        h: &mut [Lane<R>],
        z: &mut [Lane<R>],
    ) {
        let position = x.position(d, u, (t, head));
        self.v[..d.value_dim].copy_from_slice(x.value(d, position));
        let token = Token {
            panels: d.panels(),
            values: d.value_dim,
            w: self.w.as_chunks().0,
            k: x.key(d, u, t),
            v: self.v.as_chunks().0,
            f: x.f[position],
            linear: x.linear,
        };
        let mut i = 0;
        while i + ROWS <= d.key_dim {
            token.rows::<ROWS>(i, h, z);
            i += ROWS;
        }
        while i < d.key_dim {
            token.rows::<1>(i, h, z);
            i += 1;
        }
    }
}

/// One token of one head.
struct Token<'a, R> {
    panels: usize,
    values: usize,
    /// [V, panels]
    w: &'a [Lane<R>],
    k: &'a [R],
    v: &'a [Lane<R>],
    f: R,
    linear: bool,
}

impl<R: Real> Token<'_, R> {
    /// Rows i .. i + M of the state.
    #[inline(always)]
    fn rows<const M: usize>(&self, i: usize, h: &mut [Lane<R>], z: &mut [Lane<R>]) {
        let (h, z) = (
            &mut h[i * self.panels..][..M * self.panels],
            &mut z[i * self.panels..][..M * self.panels],
        );
        let k = &self.k[i..][..M];
        for p in 0..self.panels {
            let mut acc = [[R::ZERO; LANES]; M];
            for r in 0..M {
                for l in 0..LANES {
                    acc[r][l] = k[r] * self.v[p][l];
                }
            }
            add_products(&mut acc, h, &self.w[p..], (self.values, self.panels));
            for r in 0..M {
                let z = &mut z[r * self.panels + p];
                for l in 0..LANES {
                    z[l] = if self.linear {
                        acc[r][l]
                    } else {
                        acc[r][l].tanh()
                    };
                }
            }
        }
        let new = R::ONE - self.f;
        for (h, z) in h.iter_mut().zip(&*z) {
            for l in 0..LANES {
                // A gate of 1 keeps every bit.
                h[l] = self.f.mul_add(h[l], new * z[l]);
            }
        }
    }
}

/// acc += x w: M rows x of `panels` lanes of which the first `n` elements count, w one lane of `panels` to a row.
#[inline(always)]
pub(super) fn add_products<R: Real, const M: usize>(
    acc: &mut [Lane<R>; M],
    x: &[Lane<R>],
    w: &[Lane<R>],
    (n, panels): (usize, usize),
) {
    let x = x.as_flattened();
    let mut rows: [&[R]; M] = [&[]; M];
    for r in 0..M {
        rows[r] = &x[r * panels * LANES..][..n];
    }
    let mut sums = *acc;
    for j in 0..n {
        let w = &w[j * panels];
        for r in 0..M {
            let a = rows[r][j];
            for l in 0..LANES {
                sums[r][l] = a.mul_add(w[l], sums[r][l]);
            }
        }
    }
    *acc = sums;
}

/// o = H^T q, for H in rows of lanes, in four sums.
#[inline(always)]
pub(super) fn read<R: Real>(q: &[R], h: &[Lane<R>], panels: usize, o: &mut [R]) {
    for p in 0..panels {
        let mut acc = [[R::ZERO; LANES]; ROWS];
        let whole = q.len() / ROWS * ROWS;
        for i in (0..whole).step_by(ROWS) {
            for r in 0..ROWS {
                let (q, h) = (q[i + r], &h[(i + r) * panels + p]);
                for l in 0..LANES {
                    acc[r][l] = q.mul_add(h[l], acc[r][l]);
                }
            }
        }
        for i in whole..q.len() {
            for l in 0..LANES {
                acc[0][l] = q[i].mul_add(h[i * panels + p][l], acc[0][l]);
            }
        }
        let width = LANES.min(o.len() - p * LANES);
        for (l, o) in o[p * LANES..][..width].iter_mut().enumerate() {
            *o = (acc[0][l] + acc[1][l]) + (acc[2][l] + acc[3][l]);
        }
    }
}
