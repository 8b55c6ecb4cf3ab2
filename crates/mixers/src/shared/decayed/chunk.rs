//! The chunkwise form, forward (Yang et al. 2024, arXiv 2312.06635; Qin et al. 2024, arXiv 2401.04658).
//!
//! With S the state before a chunk and P, Qg, Kg, gamma from `scores`:
//!
//! ```text
//! S' = diag(gamma) S + Kg^T V       in order: `states`
//! O  = Qg S + P V                   all chunks in parallel: here
//! ```

use rayon::prelude::*;
use weft_tensor::{
    Buffer, Real, cpu::parallel::GRAIN, cpu::parallel::for_pieces, cpu::simd::vectorize,
};

use super::super::blocks::{LANES, Lane, Lanes, Left, Mode, lanes, load, product, store};
use super::scores::{Keys, Scores, Side, decay_rows};
use super::states::{Pass, from_panels, to_panels};
use super::{Dims, Inputs, Layout, Span};

/// What [`forward`] returns.
pub struct Forward<R: Real> {
    /// Outputs [B, T, HV, V].
    pub o: Buffer<R>,
    /// State after the last token [B, HV, K, V].
    pub state: Buffer<R>,
    /// What [`super::backward`] needs beside the inputs, if it was asked for.
    pub saved: Option<Saved<R>>,
}

/// Decay factors, and the states before all chunks: K / C numbers per token and value column.
pub struct Saved<R: Real> {
    pub(super) chunk: usize,
    /// exp(g), as the decays.
    pub(super) factors: Buffer<R>,
    /// [units, panels, chunks, K] lanes.
    pub(super) states: Lanes<R>,
}

/// Runs the recurrence over all tokens in chunks of `chunk` from `state` [B, HV, K, V]; `save` keeps what the
/// backward pass needs.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn forward<R: Real>(
    dims: Dims,
    x: &Inputs<R>,
    state: &[R],
    chunk: usize,
    save: bool,
) -> Forward<R> {
    x.check(&dims);
    assert_eq!(state.len(), dims.state_len(), "decayed: state of {dims:?}");
    let l = Layout::new(dims, x, chunk);
    let factors = exponentials(x.decay.values());
    let mut o = Buffer::unwritten(dims.values_len());
    let mut running = to_panels(&l, state);
    let at_once = l.at_once(save);
    let mut states = lanes(running.len() * at_once);
    let heads = dims.batch * dims.heads;
    let width = dims.repeat() * dims.value_dim;
    let pass = Pass {
        l: &l,
        x,
        factors: &factors,
        values: x.v,
        side: Side::End,
    };
    for (n, blocks) in l
        .blocks(&mut o, width)
        .chunks_mut(at_once * heads)
        .enumerate()
    {
        let first = n * at_once;
        let count = blocks.len() / heads;
        let states = &mut states[..running.len() * count];
        pass.run(first..first + count, &mut running, states);
        let states = &*states;
        blocks.par_iter_mut().enumerate().for_each_init(
            || Scratch::new(&l),
            |scratch, (i, rows)| {
                let at = Block {
                    chunk: first + i / heads,
                    head: i % heads,
                };
                let kept = Kept {
                    states,
                    first,
                    count,
                };
                scratch.outputs(&l, x, &factors, &kept, at, rows);
            },
        );
    }
    let mut state = Buffer::unwritten(dims.state_len());
    from_panels(&l, &running, &mut state);
    let saved = save.then_some(Saved {
        chunk,
        factors,
        states,
    });
    Forward { o, state, saved }
}

/// exp of each element.
fn exponentials<R: Real>(g: &[R]) -> Buffer<R> {
    let mut a = Buffer::unwritten(g.len());
    for_pieces(&mut a, GRAIN, |start, a| {
        vectorize(
            #[inline(always)]
            || {
                a.iter_mut()
                    .zip(&g[start..])
                    .for_each(|(a, g)| *a = g.exp())
            },
        );
    });
    a
}

/// A chunk of a key head, the heads of all sequences counted through.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub chunk: usize,
    pub head: usize,
}

/// States [units, panels, count, K] of the chunks from `first`.
pub(super) struct Kept<'a, R> {
    pub states: &'a [Lane<R>],
    pub first: usize,
    pub count: usize,
}

impl<R: Real> Kept<'_, R> {
    /// Panel `j` of a unit at a chunk [K].
    pub fn panel(&self, l: &Layout, unit: usize, j: usize, chunk: usize) -> &[Lane<R>] {
        let i = (unit * l.panels + j) * self.count + chunk - self.first;
        &self.states[i * l.channels()..][..l.channels()]
    }
}

/// Rows of one value head of data [B, T, HV, V] as [C, V], zero beyond the tokens and columns.
pub(super) fn load_values<R: Real>(
    l: &Layout,
    data: &[R],
    span: Span,
    value_head: usize,
    out: &mut [Lane<R>],
) {
    let d = &l.dims;
    vectorize(
        #[inline(always)]
        || {
            for (r, row) in out[..span.rows * l.panels]
                .chunks_exact_mut(l.panels)
                .enumerate()
            {
                if r < span.tokens {
                    let at = ((span.first + r) * d.value_heads + value_head) * d.value_dim;
                    load(&data[at..][..d.value_dim], row);
                } else {
                    row.fill([R::ZERO; LANES]);
                }
            }
        },
    );
}

/// Stores [C, V] lanes into the columns of value head `n` of a block's rows.
pub(super) fn store_values<R: Real>(l: &Layout, n: usize, from: &[Lane<R>], rows: &mut [&mut [R]]) {
    let v = l.dims.value_dim;
    for (row, from) in rows.iter_mut().zip(from.chunks_exact(l.panels)) {
        for (part, lane) in row[n * v..][..v].chunks_mut(LANES).zip(from) {
            store(lane, part);
        }
    }
}

struct Scratch<R: Real> {
    keys: Keys<R>,
    scores: Scores<R>,
    qg: Lanes<R>,
    gamma: Lanes<R>,
    v: Lanes<R>,
    o: Lanes<R>,
}

impl<R: Real> Scratch<R> {
    fn new(l: &Layout) -> Self {
        Scratch {
            keys: Keys::new(l),
            scores: Scores::new(l),
            qg: lanes(l.rows() * l.key_lanes),
            gamma: lanes(l.key_lanes),
            v: lanes(l.rows() * l.panels),
            o: lanes(l.rows() * l.panels),
        }
    }

    /// O = Qg S + P V for the value heads of a block.
    fn outputs(
        &mut self,
        l: &Layout,
        x: &Inputs<R>,
        factors: &[R],
        kept: &Kept<R>,
        at: Block,
        out: &mut [&mut [R]],
    ) {
        let (d, kl, vl, rl) = (&l.dims, l.key_lanes, l.panels, l.row_lanes);
        let (batch, head) = (at.head / d.heads, at.head % d.heads);
        let span = l.span(batch, at.chunk);
        let Scratch {
            keys,
            scores,
            qg,
            gamma,
            v,
            o,
        } = self;
        keys.load_q(l, x, span, head);
        keys.load_k(l, x, span, head);
        keys.load_decay(l, factors, span, head * d.repeat());
        scores.of_key_head(l, keys, span.rows);
        for n in 0..d.repeat() {
            let value_head = head * d.repeat() + n;
            keys.load_decay(l, factors, span, value_head);
            scores.of_value_head(l, keys, span.rows);
            decay_rows(l, keys, span.rows, Side::Start, &keys.q, qg, gamma);
            load_values(l, x.v, span, value_head, v);
            for j in 0..vl {
                let state = kept.panel(l, batch * d.value_heads + value_head, j, at.chunk);
                let (shape, q) = ((span.rows, 1, l.channels()), Left::rows(qg, kl));
                product(shape, q, (state, 1), (&mut o[j..], vl), Mode::Set);
            }
            for i in (0..span.rows).step_by(LANES) {
                let p = Left::rows(&scores.p, rl).from(i, 0);
                product(
                    (LANES, vl, i + LANES),
                    p,
                    (v, vl),
                    (&mut o[i * vl..], vl),
                    Mode::Add,
                );
            }
            store_values(l, n, o, out);
        }
    }
}
