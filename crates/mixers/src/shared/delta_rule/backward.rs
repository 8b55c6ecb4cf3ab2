//! The chunkwise form, backward: chunks in reverse, dS the gradient of the state behind the chunk.
//!
//! The adjoint of the three equations in `chunk` (dX is the gradient of Z - Eg S, hence of Z = w . v):
//!
//! ```text
//! dR = P^T dO + Kt dS              (I + T)^T dX = dR
//! dEg = -dX S^T     dQg = dO S^T     dKt = R dS'^T     dgamma = rowsum(S . dS')
//! dT = -strictly lower(dX R^T)       dP = lower(dO R^T)
//! dS = diag(gamma) dS' + Qg^T dO - Eg^T dX
//! ```
//!
//! (The usual dA, then dT = -A^T dA A^T, costs four products more: with dA = dR X^T and dX = A^T dR, R = A X
//! it is -dX R^T.) What follows from dEg, dQg, dKt, dT, dP for keys and gates is in `keys_backward`.
//!
//! Work is divided as in the forward pass: heads over threads, or for few heads the scans of dS by panels of
//! value columns, then everything else by chunks.

use rayon::prelude::*;
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::blocks::{
    LANES, Lane, Lanes, Left, Mode, lane, lanes, product, scale_rows, solve_upper, store, sum,
};
use super::chunk::{Saved, all_pairs, load_state, store_state};
use super::keys::{Keys, Pairs};
use super::keys_backward::{KeyGradients, KeyRows};
use super::{Dims, Gate, Inputs, Layout, Span, Unit};
use crate::shared::rows::rows_by_unit;

/// Gradients of everything in [`Inputs`], in the same layouts. `decay` is empty if nothing decays.
pub struct Gradients<R: Real> {
    /// Of q, k (before the L2 norm) and v, packed like them.
    pub qkv: Buffer<R>,
    /// Of the log decay g.
    pub decay: Buffer<R>,
    /// Of the erase gate.
    pub erase: Buffer<R>,
    /// Of the write gate.
    pub write: Buffer<R>,
    /// Of the state before the first token [B, HV, K, V].
    pub state: Buffer<R>,
}

/// Gradients given those of the outputs [B, T, HV, V] and of the final state [B, HV, K, V] (zero if absent).
/// `saved` comes from [`super::forward`] on the same inputs.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn backward<R: Real>(
    dims: Dims,
    x: &Inputs<R>,
    saved: &Saved<R>,
    d_o: &[R],
    d_state: Option<&[R]>,
) -> Gradients<R> {
    x.check(&dims);
    let l = Layout::new(dims, x, saved.chunk);
    assert_eq!(
        d_o.len(),
        dims.output_len(),
        "delta_rule: gradient of o of {dims:?}"
    );
    assert_eq!(
        saved.states.len(),
        l.units() * l.panels * l.chunks * l.channels(),
        "delta_rule: saved of {dims:?}"
    );
    let zeros = |n| Buffer::filled(n, R::ZERO);
    let gate = |gate: &Gate<R>| zeros(gate.data.len());
    let mut state = match d_state {
        Some(d_state) => Buffer::from_slice(d_state),
        None => zeros(dims.state_len()),
    };
    assert_eq!(
        state.len(),
        dims.state_len(),
        "delta_rule: gradient of the state of {dims:?}"
    );
    let mut grads = Gradients {
        qkv: zeros(dims.qkv_len()),
        decay: x.decay.as_ref().map_or_else(|| zeros(0), gate),
        erase: gate(&x.erase),
        write: gate(&x.write),
        state: zeros(0),
    };

    let per_head = dims.repeat() * dims.key_dim * dims.value_dim;
    let heads: Vec<_> = Rows::by_key_head(&dims, x, &mut grads)
        .into_iter()
        .zip(state.chunks_exact_mut(per_head))
        .enumerate()
        .collect();
    let one_thread_each = heads.len() >= rayon::current_num_threads();
    heads.into_par_iter().for_each_init(
        || Scratch::new(&l),
        |scratch, (head, (mut rows, state))| {
            for (group, d_state) in state
                .chunks_exact_mut(l.columns() * dims.key_dim)
                .enumerate()
            {
                let index = head * l.groups + group;
                let call = Call {
                    l: &l,
                    x,
                    d_o,
                    saved,
                    unit: l.unit(index),
                    index,
                };
                if one_thread_each {
                    call.in_order(scratch, &mut rows, d_state);
                } else {
                    call.by_panels_then_chunks(&mut rows, d_state);
                }
            }
        },
    );
    Gradients { state, ..grads }
}

/// The backward pass of one unit.
struct Call<'a, R: Real> {
    l: &'a Layout,
    x: &'a Inputs<'a, R>,
    d_o: &'a [R],
    saved: &'a Saved<R>,
    unit: Unit,
    index: usize,
}

impl<R: Real> Call<'_, R> {
    /// Chunk by chunk from the last, all columns of each.
    fn in_order(&self, scratch: &mut Scratch<R>, rows: &mut Rows<R>, d_state: &mut [R]) {
        let l = self.l;
        let mut panels: Vec<_> = (0..l.panels)
            .map(|j| load_state(l, j * LANES, d_state))
            .collect();
        for (c, mut rows) in rows
            .by_chunk(l, self.x, self.unit)
            .into_iter()
            .enumerate()
            .rev()
        {
            let (
                span,
                Scratch {
                    keys,
                    pairs,
                    grads,
                    d_o,
                    d_x,
                },
            ) = (l.span(c), &mut *scratch);
            keys.load(l, self.x, self.unit, span);
            pairs.build(l, keys, span.rows);
            grads.reset();
            for (j, d_state) in panels.iter_mut().enumerate() {
                self.load_outputs(span, j, d_o);
                values_adjoint(l, span.rows, pairs, d_state, d_o, d_x);
                grads.add_panel(l, span.rows, &self.panel(j, c, d_state, d_o, d_x));
                self.write_values(span, j, d_x, &mut rows);
                state_adjoint(l, span.rows, pairs, d_o, d_x, d_state);
            }
            grads.finish(l, self.x, self.unit, span, keys, pairs, &mut rows.keys);
        }
        for (j, panel) in panels.iter().enumerate() {
            store_state(l, j * LANES, panel, d_state);
        }
    }

    /// All panels of columns through all chunks, then all chunks.
    fn by_panels_then_chunks(&self, rows: &mut Rows<R>, d_state: &mut [R]) {
        let l = self.l;
        let pairs = all_pairs(l, self.x, self.unit);
        let scan = |j: usize| {
            let mut d_s = load_state(l, j * LANES, d_state);
            let mut d_o = lanes(l.rows());
            let mut d_states = lanes(l.chunks * l.channels());
            let mut d_xs = lanes(l.chunks * l.rows());
            let (behind, ds) = (
                d_states.chunks_exact_mut(l.channels()),
                d_xs.chunks_exact_mut(l.rows()),
            );
            for (c, (behind, d_x)) in behind.zip(ds).enumerate().rev() {
                let span = l.span(c);
                behind.copy_from_slice(&d_s);
                self.load_outputs(span, j, &mut d_o);
                values_adjoint(l, span.rows, &pairs[c], &d_s, &d_o, d_x);
                state_adjoint(l, span.rows, &pairs[c], &d_o, d_x, &mut d_s);
            }
            (d_s, d_states, d_xs)
        };
        let panels: Vec<_> = (0..l.panels).into_par_iter().map(scan).collect();
        rows.by_chunk(l, self.x, self.unit)
            .into_par_iter()
            .enumerate()
            .for_each_init(
                || (Keys::new(l), KeyGradients::new(l), lanes(l.rows())),
                |(keys, grads, d_o), (c, mut rows)| {
                    let span = l.span(c);
                    keys.load(l, self.x, self.unit, span);
                    grads.reset();
                    for (j, (_, d_states, d_xs)) in panels.iter().enumerate() {
                        let d_state = &d_states[c * l.channels()..][..l.channels()];
                        let d_x = &d_xs[c * l.rows()..][..l.rows()];
                        self.load_outputs(span, j, d_o);
                        grads.add_panel(l, span.rows, &self.panel(j, c, d_state, d_o, d_x));
                        self.write_values(span, j, d_x, &mut rows);
                    }
                    grads.finish(l, self.x, self.unit, span, keys, &pairs[c], &mut rows.keys);
                },
            );
        for (j, (panel, ..)) in panels.iter().enumerate() {
            store_state(l, j * LANES, panel, d_state);
        }
    }

    fn panel<'p>(
        &'p self,
        j: usize,
        c: usize,
        d_state: &'p [Lane<R>],
        d_o: &'p [Lane<R>],
        d_x: &'p [Lane<R>],
    ) -> PanelGradients<'p, R> {
        let (l, i) = (self.l, (self.index * self.l.panels + j) * self.l.chunks + c);
        PanelGradients {
            state: &self.saved.states[i * l.channels()..][..l.channels()],
            values: &self.saved.values[i * l.rows()..][..l.rows()],
            d_state,
            d_o,
            d_x,
        }
    }

    /// dO of panel `j`, zero beyond the tokens and columns.
    fn load_outputs(&self, span: Span, j: usize, d_o: &mut [Lane<R>]) {
        let (l, columns) = (self.l, self.l.panel(j * LANES));
        for (r, row) in d_o[..span.rows].iter_mut().enumerate() {
            *row = [R::ZERO; LANES];
            if r < span.tokens {
                let position = l.position(self.unit, span.start + r);
                let head = position * l.dims.value_heads + self.unit.value_head;
                *row = lane(&self.d_o[head * l.dims.value_dim..][columns.clone()]);
            }
        }
    }

    /// dv = dX . w and dw = dX . v of panel `j`.
    fn write_values(&self, span: Span, j: usize, d_x: &[Lane<R>], rows: &mut Rows<R>) {
        let (l, x, columns) = (self.l, self.x, self.l.panel(j * LANES));
        vectorize(
            #[inline(always)]
            || {
                for r in 0..span.tokens {
                    let (position, head) =
                        (l.position(self.unit, span.start + r), self.unit.value_head);
                    let v = x.values(&l.dims, position, head, columns.clone());
                    let (v, w) = (lane(v), x.write.columns(position, head, columns.clone()));
                    let weight = if let [w] = w { [*w; LANES] } else { lane(w) };
                    let (mut d_v, mut d_w) = (d_x[r], d_x[r]);
                    for l in 0..LANES {
                        d_v[l] *= weight[l];
                        d_w[l] *= v[l];
                    }
                    store(&d_v, &mut rows.v[r][columns.clone()]);
                    match &mut *rows.write[r] {
                        [total] => *total += sum(d_w),
                        row => store(&d_w, &mut row[columns.clone()]),
                    }
                }
            },
        )
    }
}

/// dX for 16 columns, given the gradient of the state behind the chunk.
fn values_adjoint<R: Real>(
    l: &Layout,
    rows: usize,
    pairs: &Pairs<R>,
    d_state: &[Lane<R>],
    d_o: &[Lane<R>],
    d_x: &mut [Lane<R>],
) {
    let (rl, k) = (l.row_lanes, l.channels());
    for i in (0..rows).step_by(LANES) {
        let p = Left::rows(&pairs.p, rl).from(i, i).t();
        product(
            (LANES, 1, rows - i),
            p,
            (&d_o[i..], 1),
            (&mut d_x[i..], 1),
            Mode::Set,
        );
    }
    product(
        (rows, 1, k),
        Left::rows(&pairs.kt, rl).t(),
        (d_state, 1),
        (d_x, 1),
        Mode::Add,
    );
    solve_upper(rows, Left::rows(&pairs.t, rl).t(), d_x);
}

/// Takes `d_state` [K] from behind the chunk to before it.
fn state_adjoint<R: Real>(
    l: &Layout,
    rows: usize,
    pairs: &Pairs<R>,
    d_o: &[Lane<R>],
    d_x: &[Lane<R>],
    d_state: &mut [Lane<R>],
) {
    let (kl, k) = (l.key_lanes, l.channels());
    scale_rows(pairs.gamma.as_flattened(), 1, d_state);
    product(
        (k, 1, rows),
        Left::rows(&pairs.qg, kl).t(),
        (d_o, 1),
        (d_state, 1),
        Mode::Add,
    );
    product(
        (k, 1, rows),
        Left::rows(&pairs.eg, kl).t(),
        (d_x, 1),
        (d_state, 1),
        Mode::Sub,
    );
}

/// What 16 value columns of a chunk contribute to the gradients of the key side.
pub(super) struct PanelGradients<'a, R> {
    /// S before the chunk [K] and R [C].
    pub state: &'a [Lane<R>],
    pub values: &'a [Lane<R>],
    /// dS' behind the chunk [K], dO and dX [C].
    pub d_state: &'a [Lane<R>],
    pub d_o: &'a [Lane<R>],
    pub d_x: &'a [Lane<R>],
}

struct Scratch<R: Real> {
    keys: Keys<R>,
    pairs: Pairs<R>,
    grads: KeyGradients<R>,
    d_o: Lanes<R>,
    d_x: Lanes<R>,
}

impl<R: Real> Scratch<R> {
    fn new(l: &Layout) -> Self {
        Scratch {
            keys: Keys::new(l),
            pairs: Pairs::new(l),
            grads: KeyGradients::new(l),
            d_o: lanes(l.rows()),
            d_x: lanes(l.rows()),
        }
    }
}

/// The gradient rows of one key head of one sequence, T each; or, cut to them, those of one chunk of a unit.
struct Rows<'a, R> {
    keys: KeyRows<'a, R>,
    v: Vec<&'a mut [R]>,
    write: Vec<&'a mut [R]>,
}

impl<'a, R: Real> Rows<'a, R> {
    fn by_key_head(dims: &Dims, x: &Inputs<R>, grads: &'a mut Gradients<R>) -> Vec<Self> {
        let gate = |gate: &Gate<R>| gate.heads / dims.heads * gate.width;
        let split = |data, width| rows_by_unit(data, dims.tokens, dims.heads, width).into_iter();
        let mut decay = split(&mut grads.decay, x.decay.as_ref().map_or(1, gate));
        let mut erase = split(&mut grads.erase, gate(&x.erase));
        let mut write = split(&mut grads.write, gate(&x.write));
        let rows = || Vec::with_capacity(dims.tokens);
        let mut heads: Vec<Rows<R>> = (0..dims.batch * dims.heads)
            .map(|_| Rows {
                keys: KeyRows {
                    q: rows(),
                    k: rows(),
                    decay: decay.next().unwrap_or_default(),
                    erase: erase.next().unwrap_or_default(),
                },
                v: rows(),
                write: write.next().unwrap_or_default(),
            })
            .collect();
        for (position, row) in grads.qkv.chunks_exact_mut(dims.width()).enumerate() {
            let (q, row) = row.split_at_mut(dims.heads * dims.key_dim);
            let (k, v) = row.split_at_mut(dims.heads * dims.key_dim);
            let values = v.chunks_exact_mut(dims.repeat() * dims.value_dim);
            let keys = q
                .chunks_exact_mut(dims.key_dim)
                .zip(k.chunks_exact_mut(dims.key_dim));
            let sequence = &mut heads[position / dims.tokens * dims.heads..];
            for (head, ((q, k), v)) in sequence.iter_mut().zip(keys.zip(values)) {
                head.keys.q.push(q);
                head.keys.k.push(k);
                head.v.push(v);
            }
        }
        heads
    }

    /// The columns that belong to one unit, chunk by chunk.
    fn by_chunk(&mut self, l: &Layout, x: &Inputs<R>, unit: Unit) -> Vec<Rows<'_, R>> {
        let first = unit.value_head - unit.head * l.dims.repeat();
        let gate = |gate: &Gate<R>| match gate.heads == l.dims.heads {
            true => (0, gate.width),
            false => (first * gate.width, l.heads * gate.width),
        };
        let mut q = cut(&mut self.keys.q, l.chunk, (0, l.dims.key_dim));
        let mut k = cut(&mut self.keys.k, l.chunk, (0, l.dims.key_dim));
        let mut decay = cut(
            &mut self.keys.decay,
            l.chunk,
            x.decay.as_ref().map_or((0, 0), gate),
        );
        let mut erase = cut(&mut self.keys.erase, l.chunk, gate(&x.erase));
        let mut write = cut(&mut self.write, l.chunk, gate(&x.write));
        cut(
            &mut self.v,
            l.chunk,
            (first * l.dims.value_dim, l.columns()),
        )
        .map(|v| Rows {
            keys: KeyRows {
                q: q.next().unwrap_or_default(),
                k: k.next().unwrap_or_default(),
                decay: decay.next().unwrap_or_default(),
                erase: erase.next().unwrap_or_default(),
            },
            v,
            write: write.next().unwrap_or_default(),
        })
        .collect()
    }
}

/// `len` elements from `start` of each row, in lists of `chunk` rows.
fn cut<'s, R>(
    rows: &'s mut [&mut [R]],
    chunk: usize,
    (start, len): (usize, usize),
) -> impl Iterator<Item = Vec<&'s mut [R]>> {
    let columns = move |row: &'s mut &mut [R]| &mut row[start..start + len];
    rows.chunks_mut(chunk)
        .map(move |rows| rows.iter_mut().map(columns).collect())
}
