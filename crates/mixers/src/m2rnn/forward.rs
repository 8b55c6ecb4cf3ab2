//! The way ahead. A head's state is a block of K rows of lanes; a token takes four rows at a time: their product
//! with W, whose rows stay in registers or in the first-level cache, tanh and the blend.

use rayon::prelude::*;
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::{Dims, Inputs, SEGMENT, Unit};
use crate::shared::recurrent::product::{LANES, Lane, four_rows, one_row};
use crate::shared::rows::rows_by_unit;

/// Multiply-adds of a whole call below which starting threads costs more than the work.
const PARALLEL: usize = 1 << 16;

/// Rows of the state that are computed together: as many sums as hide the latency of an addition.
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
    for t in 0..d.tokens {
        if save && t % SEGMENT == 0 {
            starts.extend_from_slice(&h);
        }
        let (h, z) = (h.as_chunks_mut().0, z.as_chunks_mut().0);
        scratch.token(d, x, (u, head, t), h, z);
        read(x.query(d, u, t), h, panels, o[t]);
    }
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
        vectorize(
            #[inline(always)]
            || token.run(h, z),
        )
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
    #[inline(always)]
    fn run(&self, h: &mut [Lane<R>], z: &mut [Lane<R>]) {
        let (n, rows) = (self.panels, self.k.len());
        let whole = rows / ROWS * ROWS;
        for p in 0..n {
            let write = |k: R| {
                let mut y = self.v[p];
                y.iter_mut().for_each(|y| *y = k * *y);
                y
            };
            let w = (&self.w[p..], n);
            for i in (0..whole).step_by(ROWS) {
                let start = [
                    write(self.k[i]),
                    write(self.k[i + 1]),
                    write(self.k[i + 2]),
                    write(self.k[i + 3]),
                ];
                let [a, b, c, d] = four_rows(four(h, i, n, self.values), w, start);
                z[i * n + p] = a;
                z[(i + 1) * n + p] = b;
                z[(i + 2) * n + p] = c;
                z[(i + 3) * n + p] = d;
            }
            for i in whole..rows {
                z[i * n + p] = one_row(row(h, i, n, self.values), w, write(self.k[i]));
            }
        }
        let (h, z) = (h.as_flattened_mut(), z.as_flattened_mut());
        if !self.linear {
            z.iter_mut().for_each(|z| *z = z.tanh());
        }
        let new = R::ONE - self.f;
        for (h, z) in h.iter_mut().zip(z) {
            // A gate of 1 keeps every bit.
            *h = self.f.mul_add(*h, new * *z);
        }
    }
}

/// The first `len` elements of row i, rows being `n` lanes.
#[inline(always)]
pub(super) fn row<R>(x: &[Lane<R>], i: usize, n: usize, len: usize) -> &[R] {
    &x[i * n..].as_flattened()[..len]
}

/// The same of the rows i .. i + 4.
#[inline(always)]
pub(super) fn four<R>(x: &[Lane<R>], i: usize, n: usize, len: usize) -> [&[R]; ROWS] {
    [
        row(x, i, n, len),
        row(x, i + 1, n, len),
        row(x, i + 2, n, len),
        row(x, i + 3, n, len),
    ]
}

/// o = H^T q, for H in rows of lanes.
pub(super) fn read<R: Real>(q: &[R], h: &[Lane<R>], panels: usize, o: &mut [R]) {
    vectorize(
        #[inline(always)]
        || read_here(q, h, panels, o),
    )
}

/// In four sums: a row of q times a lane of H at every place.
#[inline(always)]
fn read_here<R: Real>(q: &[R], h: &[Lane<R>], panels: usize, o: &mut [R]) {
    for p in 0..panels {
        let [mut a, mut b, mut c, mut d] = [[R::ZERO; LANES]; 4];
        let whole = q.len() / 4 * 4;
        for i in (0..whole).step_by(4) {
            let at = |r: usize| &h[(i + r) * panels + p];
            let (h0, h1, h2, h3) = (at(0), at(1), at(2), at(3));
            let (q0, q1, q2, q3) = (q[i], q[i + 1], q[i + 2], q[i + 3]);
            for l in 0..LANES {
                a[l] = q0.mul_add(h0[l], a[l]);
                b[l] = q1.mul_add(h1[l], b[l]);
                c[l] = q2.mul_add(h2[l], c[l]);
                d[l] = q3.mul_add(h3[l], d[l]);
            }
        }
        a = one_row(
            &q[whole..],
            (&h[(whole * panels + p).min(h.len())..], panels),
            a,
        );
        let mut sums = [R::ZERO; LANES];
        for l in 0..LANES {
            sums[l] = (a[l] + b[l]) + (c[l] + d[l]);
        }
        let o = &mut o[p * LANES..];
        let width = LANES.min(o.len());
        o[..width].copy_from_slice(&sums[..width]);
    }
}
