//! The passes over the state, all chunks in order, one value head and 16 value columns at a time:
//!
//! ```text
//! forward    S'  = diag(gamma) S   + Kg^T V      chunks from the first, S before each is kept
//! backward   dS  = diag(gamma) dS' + Qg^T dO     chunks from the last, dS' behind each is kept
//! ```
//!
//! They are the only part of the chunk form that is sequential in time, and a small one; what follows from the kept
//! states is computed for all chunks in parallel.

use std::ops::Range;

use rayon::prelude::*;
use weft_tensor::{Real, cpu::simd::vectorize};

use super::super::blocks::{LANES, Lane, Lanes, Left, Mode, lane, lanes, product, scale_rows};
use super::scores::{Keys, Side, decay_rows};
use super::{Inputs, Layout, Span};

/// One of the two passes.
pub(super) struct Pass<'a, R> {
    pub l: &'a Layout,
    pub x: &'a Inputs<'a, R>,
    /// exp(g), as the decays in `x`.
    pub factors: &'a [R],
    /// V or dO [B, T, HV, V].
    pub values: &'a [R],
    /// [`Side::End`] decays keys: forward; [`Side::Start`] queries: backward.
    pub side: Side,
}

impl<R: Real> Pass<'_, R> {
    /// Takes `running` [units, panels, K] through `chunks` and keeps it in `kept` [units, panels, chunks, K].
    pub fn run(&self, chunks: Range<usize>, running: &mut [Lane<R>], kept: &mut [Lane<R>]) {
        let (l, k) = (self.l, self.l.channels());
        // One task for all columns of a value head shares the key side; with few heads, one for each panel.
        let panels = match l.units() >= rayon::current_num_threads() {
            true => l.panels,
            false => 1,
        };
        let tasks = running
            .par_chunks_exact_mut(panels * k)
            .zip(kept.par_chunks_exact_mut(panels * chunks.len() * k));
        tasks.enumerate().for_each_init(
            || Scratch::new(l),
            |scratch, (i, (running, kept))| {
                let (unit, panel) = (i * panels / l.panels, i * panels % l.panels);
                for n in 0..chunks.len() {
                    let n = match self.side {
                        Side::End => n,
                        Side::Start => chunks.len() - 1 - n,
                    };
                    let span = scratch.load(self, unit, chunks.start + n);
                    let states = running.chunks_exact_mut(k);
                    let keeps = kept.chunks_exact_mut(chunks.len() * k);
                    for (j, (state, keep)) in states.zip(keeps).enumerate() {
                        keep[n * k..][..k].copy_from_slice(state);
                        self.load_values(span, unit, panel + j, &mut scratch.values);
                        scale_rows(scratch.gamma.as_flattened(), 1, state);
                        let keys = Left::rows(&scratch.decayed, l.key_lanes).t();
                        let values = (&scratch.values[..], 1);
                        product((k, 1, span.rows), keys, values, (state, 1), Mode::Add);
                    }
                }
            },
        );
    }

    /// Columns of panel `j` of a chunk [C], zero beyond the tokens and columns.
    fn load_values(&self, span: Span, unit: usize, j: usize, out: &mut [Lane<R>]) {
        let d = &self.l.dims;
        let (head, columns) = (unit % d.value_heads, panel_columns(self.l, j));
        vectorize(
            #[inline(always)]
            || {
                for (r, out) in out[..span.rows].iter_mut().enumerate() {
                    *out = [R::ZERO; LANES];
                    if r < span.tokens {
                        let row = ((span.first + r) * d.value_heads + head) * d.value_dim;
                        *out = lane(&self.values[row..][columns.clone()]);
                    }
                }
            },
        );
    }
}

struct Scratch<R: Real> {
    keys: Keys<R>,
    /// Kg or Qg [C, K].
    decayed: Lanes<R>,
    gamma: Lanes<R>,
    values: Lanes<R>,
}

impl<R: Real> Scratch<R> {
    fn new(l: &Layout) -> Self {
        Scratch {
            keys: Keys::new(l),
            decayed: lanes(l.rows() * l.key_lanes),
            gamma: lanes(l.key_lanes),
            values: lanes(l.rows()),
        }
    }

    fn load(&mut self, pass: &Pass<R>, unit: usize, chunk: usize) -> Span {
        let (l, d) = (pass.l, &pass.l.dims);
        let (batch, value_head) = (unit / d.value_heads, unit % d.value_heads);
        let (span, head) = (l.span(batch, chunk), value_head / d.repeat());
        let keys = &mut self.keys;
        keys.load_decay(l, pass.factors, span, value_head);
        match pass.side {
            Side::End => keys.load_k(l, pass.x, span, head),
            Side::Start => keys.load_q(l, pass.x, span, head),
        }
        let rows = match pass.side {
            Side::End => &self.keys.k,
            Side::Start => &self.keys.q,
        };
        let (decayed, gamma) = (&mut self.decayed, &mut self.gamma);
        decay_rows(l, &self.keys, span.rows, pass.side, rows, decayed, gamma);
        span
    }
}

/// The value columns of panel `j`.
pub(super) fn panel_columns(l: &Layout, j: usize) -> Range<usize> {
    j * LANES..l.dims.value_dim.min((j + 1) * LANES)
}

/// States [units, K, V] as [units, panels, K] lanes, zero beyond the channels and columns.
pub(super) fn to_panels<R: Real>(l: &Layout, states: &[R]) -> Lanes<R> {
    let (n, k, v) = (l.dims.key_dim, l.channels(), l.dims.value_dim);
    let mut panels = lanes(l.units() * l.panels * k);
    panels.fill([R::ZERO; LANES]);
    for (i, panel) in panels.chunks_exact_mut(k).enumerate() {
        let (unit, columns) = (i / l.panels, panel_columns(l, i % l.panels));
        for (c, row) in panel[..n].iter_mut().enumerate() {
            *row = lane(&states[(unit * n + c) * v..][columns.clone()]);
        }
    }
    panels
}

/// The inverse of [`to_panels`].
pub(super) fn from_panels<R: Real>(l: &Layout, panels: &[Lane<R>], states: &mut [R]) {
    let (n, v) = (l.dims.key_dim, l.dims.value_dim);
    for (i, panel) in panels.chunks_exact(l.channels()).enumerate() {
        let (unit, columns) = (i / l.panels, panel_columns(l, i % l.panels));
        for (c, row) in panel[..n].iter().enumerate() {
            let out = &mut states[(unit * n + c) * v..][columns.clone()];
            out.copy_from_slice(&row[..out.len()]);
        }
    }
}
