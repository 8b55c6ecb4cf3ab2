//! The chunkwise form, forward.
//!
//! Inside a chunk with state S before it (T, P, Eg, Qg, Kt, gamma from `keys`, Z = w . v):
//!
//! ```text
//! (I + T) R = Z - Eg S            R [C, V]: what each token really writes
//! O  = Qg S + P R
//! S' = diag(gamma) S + Kt^T R
//! ```
//!
//! The paper forms A = (I + T)^-1, Y = A E, U = A Z first, so that a GPU can do all but R = U - Y S for all
//! chunks at once. R = A (Z - E S) is the same with one triangular solve and without Y: fewer operations. The
//! columns of V are independent of each other, given the key side; that is where the parallelism is when
//! there are fewer heads than threads: key sides of all chunks in parallel, then the panels of columns, each
//! through all chunks. With enough heads, each thread takes a head through its chunks and all stays in cache.
//! Both orders do the same operations on every element: same bits.

use rayon::prelude::*;
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::blocks::{
    LANES, Lane, Lanes, Left, Mode, lane, lanes, product, scale_rows, solve_lower, store,
};
use super::keys::{Keys, Pairs};
use super::{Dims, Inputs, Layout, Span, Unit};
use crate::shared::rows::rows_by_unit;

/// What [`forward`] returns.
pub struct Forward<R: Real> {
    /// Outputs [B, T, HV, V].
    pub o: Buffer<R>,
    /// State after the last token [B, HV, K, V].
    pub state: Buffer<R>,
    /// What [`super::backward`] needs beside the inputs, if it was asked for.
    pub saved: Option<Saved<R>>,
}

/// States before each chunk and effective values R of all chunks, in panels of 16 value columns: K / C + 1
/// numbers per token and value column. The rest is computed again in the backward pass.
pub struct Saved<R: Real> {
    pub(super) chunk: usize,
    /// [units, panels, chunks, K] lanes.
    pub(super) states: Lanes<R>,
    /// [units, panels, chunks, C] lanes.
    pub(super) values: Lanes<R>,
}

/// Runs the rule over all tokens in chunks of `chunk`; `save` keeps what the backward pass needs.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn forward<R: Real>(dims: Dims, x: &Inputs<R>, chunk: usize, save: bool) -> Forward<R> {
    x.check(&dims);
    let l = Layout::new(dims, x, chunk);
    let kept = if save {
        l.units() * l.panels * l.chunks
    } else {
        0
    };
    let mut states = lanes(kept * l.channels());
    let mut values = lanes(kept * l.rows());
    let mut o = Buffer::unwritten(dims.output_len());
    let mut state = match x.state {
        Some(state) => Buffer::from_slice(state),
        None => Buffer::filled(dims.state_len(), R::ZERO),
    };

    let per_unit = l.panels * l.chunks;
    let mut kept_states = states.chunks_exact_mut(per_unit * l.channels());
    let mut kept_values = values.chunks_exact_mut(per_unit * l.rows());
    let units: Vec<_> = rows_by_unit(&mut o, dims.tokens, dims.heads * l.groups, l.columns())
        .into_iter()
        .zip(state.chunks_exact_mut(l.columns() * dims.key_dim))
        .enumerate()
        .map(|(i, (rows, state))| {
            let kept = (
                kept_states.next().unwrap_or_default(),
                kept_values.next().unwrap_or_default(),
            );
            (l.unit(i), panels(&l, rows, state, kept), state)
        })
        .collect();
    let one_thread_each = units.len() >= rayon::current_num_threads();
    units.into_par_iter().for_each_init(
        || Scratch::new(&l),
        |scratch, (unit, mut panels, state)| {
            if one_thread_each {
                for c in 0..l.chunks {
                    scratch.keys.load(&l, x, unit, l.span(c));
                    scratch.pairs.build(&l, &scratch.keys, l.span(c).rows);
                    for panel in &mut panels {
                        panel.advance(
                            &l,
                            x,
                            unit,
                            c,
                            &scratch.pairs,
                            &mut scratch.x,
                            &mut scratch.o,
                        );
                    }
                }
            } else {
                let pairs = all_pairs(&l, x, unit);
                panels.par_iter_mut().for_each_init(
                    || (lanes(l.rows()), lanes(l.rows())),
                    |(values, o), panel| {
                        for (c, pairs) in pairs.iter().enumerate() {
                            panel.advance(&l, x, unit, c, pairs, values, o);
                        }
                    },
                );
            }
            for panel in &panels {
                store_state(&l, panel.column, &panel.state, state);
            }
        },
    );
    let saved = save.then_some(Saved {
        chunk,
        states,
        values,
    });
    Forward { o, state, saved }
}

/// The key sides of all chunks of a unit, in parallel.
pub(super) fn all_pairs<R: Real>(l: &Layout, x: &Inputs<R>, unit: Unit) -> Vec<Pairs<R>> {
    let build = |keys: &mut Keys<R>, c| {
        let mut pairs = Pairs::new(l);
        keys.load(l, x, unit, l.span(c));
        pairs.build(l, keys, l.span(c).rows);
        pairs
    };
    (0..l.chunks)
        .into_par_iter()
        .map_init(|| Keys::new(l), build)
        .collect()
}

struct Scratch<R: Real> {
    keys: Keys<R>,
    pairs: Pairs<R>,
    x: Lanes<R>,
    o: Lanes<R>,
}

impl<R: Real> Scratch<R> {
    fn new(l: &Layout) -> Self {
        let (keys, pairs) = (Keys::new(l), Pairs::new(l));
        Scratch {
            keys,
            pairs,
            x: lanes(l.rows()),
            o: lanes(l.rows()),
        }
    }
}

/// Up to 16 value columns of a unit on their way through the chunks.
struct Panel<'a, R: Real> {
    /// The first column.
    column: usize,
    /// The columns' part of each output row.
    rows: Vec<&'a mut [R]>,
    /// [K] lanes.
    state: Lanes<R>,
    /// [chunks, K] and [chunks, C] lanes, or nothing.
    kept_states: &'a mut [Lane<R>],
    kept_values: &'a mut [Lane<R>],
}

fn panels<'a, R: Real>(
    l: &Layout,
    rows: Vec<&'a mut [R]>,
    state: &[R],
    kept: (&'a mut [Lane<R>], &'a mut [Lane<R>]),
) -> Vec<Panel<'a, R>> {
    let mut kept_states = kept.0.chunks_exact_mut(l.chunks * l.channels());
    let mut kept_values = kept.1.chunks_exact_mut(l.chunks * l.rows());
    let mut panels: Vec<Panel<R>> = (0..l.panels)
        .map(|j| Panel {
            column: j * LANES,
            rows: Vec::with_capacity(l.dims.tokens),
            state: load_state(l, j * LANES, state),
            kept_states: kept_states.next().unwrap_or_default(),
            kept_values: kept_values.next().unwrap_or_default(),
        })
        .collect();
    for row in rows {
        for (panel, part) in panels.iter_mut().zip(row.chunks_mut(LANES)) {
            panel.rows.push(part);
        }
    }
    panels
}

impl<R: Real> Panel<'_, R> {
    /// Takes the columns through chunk `c`; `o` is scratch, `values` too where they are not kept.
    fn advance(
        &mut self,
        l: &Layout,
        x: &Inputs<R>,
        unit: Unit,
        c: usize,
        pairs: &Pairs<R>,
        values: &mut [Lane<R>],
        o: &mut [Lane<R>],
    ) {
        let span = l.span(c);
        if let Some(kept) = self.kept_states.chunks_exact_mut(l.channels()).nth(c) {
            kept.copy_from_slice(&self.state);
        }
        let values = match self.kept_values.chunks_exact_mut(l.rows()).nth(c) {
            Some(kept) => kept,
            None => values,
        };
        load_values(l, x, unit, span, self.column, values);
        advance_chunk(l, span.rows, pairs, &mut self.state, values, o);
        for (row, o) in self.rows[span.start..].iter_mut().zip(&o[..span.tokens]) {
            store(o, row);
        }
    }
}

/// The three equations at the head of this file for 16 columns: `values` [C] goes in as Z and comes out as R,
/// `state` [K] as S and as S'.
pub(super) fn advance_chunk<R: Real>(
    l: &Layout,
    rows: usize,
    pairs: &Pairs<R>,
    state: &mut [Lane<R>],
    values: &mut [Lane<R>],
    o: &mut [Lane<R>],
) {
    let (kl, rl, k) = (l.key_lanes, l.row_lanes, l.channels());
    product(
        (rows, 1, k),
        Left::rows(&pairs.eg, kl),
        (state, 1),
        (values, 1),
        Mode::Sub,
    );
    solve_lower(rows, Left::rows(&pairs.t, rl), values);
    product(
        (rows, 1, k),
        Left::rows(&pairs.qg, kl),
        (state, 1),
        (o, 1),
        Mode::Set,
    );
    for i in (0..rows).step_by(LANES) {
        let p = Left::rows(&pairs.p, rl).from(i, 0);
        product(
            (LANES, 1, i + LANES),
            p,
            (values, 1),
            (&mut o[i..], 1),
            Mode::Add,
        );
    }
    scale_rows(pairs.gamma.as_flattened(), 1, state);
    product(
        (k, 1, rows),
        Left::rows(&pairs.kt, rl),
        (values, 1),
        (state, 1),
        Mode::Add,
    );
}

/// Z = w . v of the columns from `column`, zero beyond the tokens and columns.
fn load_values<R: Real>(
    l: &Layout,
    x: &Inputs<R>,
    unit: Unit,
    span: Span,
    column: usize,
    values: &mut [Lane<R>],
) {
    let columns = l.panel(column);
    vectorize(
        #[inline(always)]
        || {
            for (r, row) in values[..span.rows].iter_mut().enumerate() {
                if r >= span.tokens {
                    *row = [R::ZERO; LANES];
                    continue;
                }
                let (position, head) = (l.position(unit, span.start + r), unit.value_head);
                *row = lane(x.values(&l.dims, position, head, columns.clone()));
                let w = match x.write.columns(position, head, columns.clone()) {
                    [w] => [*w; LANES],
                    w => lane(w),
                };
                for l in 0..LANES {
                    row[l] *= w[l];
                }
            }
        },
    )
}

/// Columns `column..column + 16` of a unit's state [heads, K, V] as [K] lanes.
pub(super) fn load_state<R: Real>(l: &Layout, column: usize, state: &[R]) -> Lanes<R> {
    let mut panel = lanes(l.channels());
    panel.fill([R::ZERO; LANES]);
    for (i, at) in columns(l, column).enumerate() {
        for (k, row) in panel[..l.dims.key_dim].iter_mut().enumerate() {
            row[i] = state[at + k * l.dims.value_dim];
        }
    }
    panel
}

/// The inverse of [`load_state`].
pub(super) fn store_state<R: Real>(l: &Layout, column: usize, panel: &[Lane<R>], state: &mut [R]) {
    for (i, at) in columns(l, column).enumerate() {
        for (k, row) in panel[..l.dims.key_dim].iter().enumerate() {
            state[at + k * l.dims.value_dim] = row[i];
        }
    }
}

/// Where the columns from `column` begin in a unit's state [heads, K, V].
fn columns(l: &Layout, column: usize) -> impl Iterator<Item = usize> {
    let (k, v) = (l.dims.key_dim, l.dims.value_dim);
    (column..l.columns().min(column + LANES)).map(move |c| c / v * k * v + c % v)
}
