//! The chunkwise form, backward: dS' the gradient of the state behind a chunk, from the reverse pass of `states`.
//!
//! ```text
//! dV  = P^T dO + Kg dS'      dP = lower(dO V^T)
//! dQg = dO S^T               dKg = V dS'^T          dgamma = rowsum(S . dS')
//! ```
//!
//! All chunks in parallel. What follows from dP, dQg, dKg and dgamma for queries, keys and decays is in
//! `scores_backward`.

use rayon::prelude::*;
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::super::blocks::{LANES, Lane, Lanes, Left, Mode, lanes, product, sum, transpose};
use super::chunk::{Block, Kept, Saved, load_values, store_values};
use super::scores::{Keys, Scores, Side, decay_rows};
use super::scores_backward::KeyGradients;
use super::states::{Pass, from_panels, to_panels};
use super::{Dims, Inputs, Layout};

/// Gradients of everything that the recurrence reads, in the same layouts.
pub struct Gradients<R: Real> {
    /// Of q.
    pub q: Buffer<R>,
    /// Of k.
    pub k: Buffer<R>,
    /// Of v.
    pub v: Buffer<R>,
    /// Of the log decay g, if it was asked for.
    pub decay: Option<Buffer<R>>,
    /// Of the state before the first token [B, HV, K, V].
    pub state: Buffer<R>,
}

/// Gradients given those of the outputs [B, T, HV, V] and of the final state [B, HV, K, V] (zero if absent).
/// `saved` comes from [`super::forward`] on the same inputs; `decay` asks for the gradient of the decays.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn backward<R: Real>(
    dims: Dims,
    x: &Inputs<R>,
    saved: &Saved<R>,
    d_o: &[R],
    d_state: Option<&[R]>,
    decay: bool,
) -> Gradients<R> {
    x.check(&dims);
    let l = Layout::new(dims, x, saved.chunk);
    assert_eq!(
        d_o.len(),
        dims.values_len(),
        "decayed: gradient of o of {dims:?}"
    );
    let per_state = l.panels * l.channels();
    assert_eq!(
        saved.states.len(),
        l.units() * per_state * l.chunks,
        "decayed: saved of {dims:?}"
    );
    let mut state = match d_state {
        Some(d_state) => Buffer::from_slice(d_state),
        None => Buffer::filled(dims.state_len(), R::ZERO),
    };
    assert_eq!(
        state.len(),
        dims.state_len(),
        "decayed: gradient of the state of {dims:?}"
    );
    let mut running = to_panels(&l, &state);
    let mut behind = lanes(saved.states.len());
    let pass = Pass {
        l: &l,
        x,
        factors: &saved.factors,
        values: d_o,
        side: Side::Start,
    };
    pass.run(0..l.chunks, &mut running, &mut behind);
    from_panels(&l, &running, &mut state);

    let [mut q, mut k] = [(); 2].map(|()| Buffer::unwritten(dims.keys_len()));
    let mut v = Buffer::unwritten(dims.values_len());
    let mut g = decay.then(|| Buffer::unwritten(x.decay.values().len()));
    let decay_width = if l.by_channel {
        dims.key_dim
    } else {
        dims.repeat()
    };
    let mut decays = g
        .as_mut()
        .map_or_else(Vec::new, |g| l.blocks(g, decay_width))
        .into_iter();
    let rows: Vec<Rows<R>> = l
        .blocks(&mut q, dims.key_dim)
        .into_iter()
        .zip(l.blocks(&mut k, dims.key_dim))
        .zip(l.blocks(&mut v, dims.repeat() * dims.value_dim))
        .map(|((q, k), v)| Rows {
            q,
            k,
            v,
            decay: decays.next(),
        })
        .collect();
    let kept = |states| Kept {
        states,
        first: 0,
        count: l.chunks,
    };
    let call = Call {
        l: &l,
        x,
        factors: &saved.factors,
        d_o,
        states: kept(&saved.states[..]),
        behind: kept(&behind[..]),
    };
    let heads = dims.batch * dims.heads;
    rows.into_par_iter().enumerate().for_each_init(
        || Scratch::new(&l),
        |scratch, (i, mut rows)| {
            let at = Block {
                chunk: i / heads,
                head: i % heads,
            };
            call.block(scratch, at, &mut rows);
        },
    );
    Gradients {
        q,
        k,
        v,
        decay: g,
        state,
    }
}

/// The rows of a block that receive the gradients.
pub(super) struct Rows<'a, R> {
    pub q: Vec<&'a mut [R]>,
    pub k: Vec<&'a mut [R]>,
    v: Vec<&'a mut [R]>,
    /// Of the value heads, or of the key head's channels; `None` if nobody asks.
    pub decay: Option<Vec<&'a mut [R]>>,
}

struct Call<'a, R: Real> {
    l: &'a Layout,
    x: &'a Inputs<'a, R>,
    factors: &'a [R],
    d_o: &'a [R],
    states: Kept<'a, R>,
    behind: Kept<'a, R>,
}

struct Scratch<R: Real> {
    keys: Keys<R>,
    scores: Scores<R>,
    qg: Lanes<R>,
    kg: Lanes<R>,
    gamma: Lanes<R>,
    /// [C, V]
    v: Lanes<R>,
    d_o: Lanes<R>,
    d_v: Lanes<R>,
    /// [V, C], and [V, K] twice: what products need turned.
    v_turned: Lanes<R>,
    state: Lanes<R>,
    behind: Lanes<R>,
    grads: KeyGradients<R>,
}

impl<R: Real> Scratch<R> {
    fn new(l: &Layout) -> Self {
        let keys = || lanes(l.rows() * l.key_lanes);
        let values = || lanes(l.rows() * l.panels);
        let state = || lanes(l.columns() * l.key_lanes);
        Scratch {
            keys: Keys::new(l),
            scores: Scores::new(l),
            qg: keys(),
            kg: keys(),
            gamma: lanes(l.key_lanes),
            v: values(),
            d_o: values(),
            d_v: values(),
            v_turned: lanes(l.columns() * l.row_lanes),
            state: state(),
            behind: state(),
            grads: KeyGradients::new(l),
        }
    }
}

impl<R: Real> Call<'_, R> {
    fn block(&self, s: &mut Scratch<R>, at: Block, out: &mut Rows<R>) {
        let (l, d) = (self.l, &self.l.dims);
        let (batch, head) = (at.head / d.heads, at.head % d.heads);
        let span = l.span(batch, at.chunk);
        let rows = span.rows;
        s.keys.load_q(l, self.x, span, head);
        s.keys.load_k(l, self.x, span, head);
        s.keys.load_decay(l, self.factors, span, head * d.repeat());
        s.scores.of_key_head(l, &s.keys, rows);
        s.grads.reset();
        for n in 0..d.repeat() {
            let value_head = head * d.repeat() + n;
            let unit = batch * d.value_heads + value_head;
            s.keys.load_decay(l, self.factors, span, value_head);
            s.scores.of_value_head(l, &s.keys, rows);
            decay_rows(
                l,
                &s.keys,
                rows,
                Side::Start,
                &s.keys.q,
                &mut s.qg,
                &mut s.gamma,
            );
            decay_rows(
                l,
                &s.keys,
                rows,
                Side::End,
                &s.keys.k,
                &mut s.kg,
                &mut s.gamma,
            );
            load_values(l, self.x.v, span, value_head, &mut s.v);
            load_values(l, self.d_o, span, value_head, &mut s.d_o);
            self.values(s, rows, unit, at.chunk);
            store_values(l, n, &s.d_v, &mut out.v);
            self.key_side(s, rows, unit, at.chunk);
            if !l.by_channel {
                let decay = out.decay.as_deref_mut();
                s.grads.of_value_head(
                    l,
                    span,
                    &s.keys,
                    &s.scores,
                    [&s.qg, &s.kg],
                    &s.gamma,
                    n,
                    decay,
                );
            }
        }
        s.grads
            .finish(l, self.x.scale, span, &s.keys, &s.scores, &s.gamma, out);
    }

    /// dV = P^T dO + Kg dS'.
    fn values(&self, s: &mut Scratch<R>, rows: usize, unit: usize, chunk: usize) {
        let (l, vl) = (self.l, self.l.panels);
        for i in (0..rows).step_by(LANES) {
            let p = Left::rows(&s.scores.p, l.row_lanes).from(i, i).t();
            let (d_o, d_v) = ((&s.d_o[i * vl..], vl), (&mut s.d_v[i * vl..], vl));
            product((LANES, vl, rows - i), p, d_o, d_v, Mode::Set);
        }
        for j in 0..vl {
            let behind = self.behind.panel(l, unit, j, chunk);
            let kg = Left::rows(&s.kg, l.key_lanes);
            product(
                (rows, 1, l.channels()),
                kg,
                (behind, 1),
                (&mut s.d_v[j..], vl),
                Mode::Add,
            );
        }
    }

    /// Adds to dP, dQg, dKg and dgamma.
    fn key_side(&self, s: &mut Scratch<R>, rows: usize, unit: usize, chunk: usize) {
        let (l, kl, vl, rl) = (self.l, self.l.key_lanes, self.l.panels, self.l.row_lanes);
        transpose((rows, vl), (&s.v, vl), (&mut s.v_turned, rl));
        for j in 0..vl {
            let (before, behind) = (
                self.states.panel(l, unit, j, chunk),
                self.behind.panel(l, unit, j, chunk),
            );
            let at = j * LANES * kl;
            transpose((l.channels(), 1), (before, 1), (&mut s.state[at..], kl));
            transpose((l.channels(), 1), (behind, 1), (&mut s.behind[at..], kl));
            s.grads.add_gamma(before, behind);
        }
        let (d_o, v) = (Left::rows(&s.d_o, vl), Left::rows(&s.v, vl));
        for i in (0..rows).step_by(LANES) {
            let (shape, out) = (
                (LANES, i / LANES + 1, l.columns()),
                &mut s.grads.p[i * rl..],
            );
            product(
                shape,
                d_o.from(i, 0),
                (&s.v_turned, rl),
                (out, rl),
                Mode::Add,
            );
        }
        let shape = (rows, kl, l.columns());
        product(shape, d_o, (&s.state, kl), (&mut s.grads.q, kl), Mode::Add);
        product(shape, v, (&s.behind, kl), (&mut s.grads.k, kl), Mode::Add);
    }
}

/// a[c] += sum over lanes of x[c] . y[c].
pub(super) fn add_row_products<R: Real>(x: &[Lane<R>], y: &[Lane<R>], a: &mut [R]) {
    vectorize(
        #[inline(always)]
        || {
            for ((a, x), y) in a.iter_mut().zip(x).zip(y) {
                let mut product = *x;
                for l in 0..LANES {
                    product[l] *= y[l];
                }
                *a += sum(product);
            }
        },
    );
}
