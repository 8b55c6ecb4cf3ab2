//! The way back: segment by segment from the last, each run ahead again and then walked backwards.

use rayon::prelude::*;
use weft_tensor::cpu::gemm::{Strides, gemm};
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::product::{Right, padded};
use super::trace::Trace;
use super::{Backward, Cell, Dims, Inputs, SEGMENT, Sizes, Unit, rows_of_units, units};

/// Gradients of everything that a scan reads.
pub(super) struct Gradients<R: Real> {
    /// [B, T, N, X]
    pub x: Buffer<R>,
    /// [N, out, in] of both products.
    pub weights: [Buffer<R>; 2],
    /// [N, P]
    pub params: Buffer<R>,
    /// [B, N, S]
    pub state: Buffer<R>,
}

/// Gradients from those of the outputs `d_o` [B, T, N, O] and of the last state [B, N, S]; `starts` are from the
/// way ahead. The gradient of a state is clamped to [-clip, clip] before a token hands it on.
pub(super) fn backward<C: Cell, R: Real>(
    cell: &C,
    dims: Dims,
    x: &Inputs<R>,
    starts: &[Buffer<R>],
    (d_o, d_state): (&[R], Option<&[R]>),
    clip: Option<R>,
) -> Gradients<R> {
    let (sizes, units) = (cell.sizes(), units(dims));
    let rows = dims.batch * dims.tokens * dims.heads;
    let mut g = Gradients {
        x: Buffer::unwritten(rows * sizes.input),
        weights: [sizes.first, sizes.second.unwrap_or([0, 0])]
            .map(|[n_in, n_out]| Buffer::filled(dims.heads * n_in * n_out, R::ZERO)),
        params: Buffer::filled(dims.heads * sizes.params, R::ZERO),
        state: Buffer::filled(dims.batch * dims.heads * sizes.state, R::ZERO),
    };
    if let Some(d_state) = d_state {
        g.state.copy_from_slice(d_state);
    }
    let one = Dims { tokens: 1, ..dims };
    let d_x = rows_of_units(&mut g.x, dims, sizes.input, &units);
    let d_state = rows_of_units(&mut g.state, one, sizes.state, &units);
    let work = units.par_iter().zip(starts).zip(d_x).zip(d_state);
    let parts: Vec<Part<R>> = work
        .map(|(((unit, starts), d_x), d_state)| {
            let walk = Walk {
                cell,
                dims,
                x,
                unit,
                sizes,
                d_o,
                clip,
            };
            walk.run(starts, d_x, d_state)
        })
        .collect();
    for (unit, part) in units.iter().zip(parts) {
        for (sum, part) in g.weights.iter_mut().zip(&part.weights) {
            add(&mut sum[unit.head * part.len()..][..part.len()], part);
        }
        let params = &mut g.params[unit.head * sizes.params..][..sizes.params];
        add(params, &part.params);
    }
    g
}

fn add<R: Real>(sum: &mut [R], part: &[R]) {
    sum.iter_mut().zip(part).for_each(|(s, p)| *s += *p);
}

/// A unit's share of the gradients of weights and parameters.
struct Part<R: Real> {
    weights: [Buffer<R>; 2],
    params: Buffer<R>,
}

/// What the walk over one unit needs to know.
struct Walk<'a, C, R> {
    cell: &'a C,
    dims: Dims,
    x: &'a Inputs<'a, R>,
    unit: &'a Unit,
    sizes: Sizes,
    d_o: &'a [R],
    clip: Option<R>,
}

/// Gradients on the way through one unit.
struct Flow<R: Real> {
    /// Of the products of a segment's tokens [tokens, rows, out].
    d_u: [Buffer<R>; 2],
    /// Of what each product was fed [rows, in], rows padded to lanes.
    d_fed: [Buffer<R>; 2],
    /// Of the states after and before a token [rows, S].
    d_after: Buffer<R>,
    d_before: Buffer<R>,
    d_params: Buffer<R>,
}

impl<C: Cell, R: Real> Walk<'_, C, R> {
    fn run(
        &self,
        starts: &[R],
        mut d_x: Vec<Vec<&mut [R]>>,
        mut d_state: Vec<Vec<&mut [R]>>,
    ) -> Part<R> {
        let (sizes, rows) = (self.sizes, self.unit.rows);
        let products = [Some(sizes.first), sizes.second];
        let segment = SEGMENT.min(self.dims.tokens);
        let ahead = self.x.weights_of(&sizes, self.unit, self.dims.tokens);
        let back: Vec<Right<R>> = products
            .iter()
            .zip(self.x.weights)
            .filter_map(|(size, w)| {
                let [n_in, n_out] = (*size)?;
                let w = &w[self.unit.head * n_in * n_out..][..n_in * n_out];
                Some(Right::as_is(w, [n_out, n_in]))
            })
            .collect();
        let [first, second] = products.map(|p| p.unwrap_or([0, 0]));
        let mut flow = Flow {
            d_u: [first, second].map(|[_, n]| Buffer::unwritten(segment * rows * n)),
            d_fed: [first, second].map(|[n, _]| Buffer::unwritten(rows * padded(n))),
            d_after: Buffer::unwritten(rows * sizes.state),
            d_before: Buffer::unwritten(rows * sizes.state),
            d_params: Buffer::filled(sizes.params, R::ZERO),
        };
        for (to, from) in flow.d_after.chunks_exact_mut(sizes.state).zip(&d_state) {
            to.copy_from_slice(from[0]);
        }
        let mut d_weights = [first, second].map(|[a, b]| Buffer::filled(a * b, R::ZERO));
        let mut trace = Trace::new(sizes, rows, segment);
        let width = rows * sizes.state;
        for (s, start) in starts.chunks_exact(width).enumerate().rev() {
            let from = s * SEGMENT;
            let tokens = SEGMENT.min(self.dims.tokens - from);
            trace.states_mut()[..width].copy_from_slice(start);
            for i in 0..tokens {
                let at = (i, from + i);
                trace.token(self.cell, self.x, self.dims, self.unit, &ahead, at);
            }
            for i in (0..tokens).rev() {
                self.token(&mut flow, &trace, &back, (i, from + i), &mut d_x);
            }
            // d U [out, in] += d_u^T [out, tokens rows] times what was fed [tokens rows, in].
            let fed = [
                (trace.state_rows(tokens), sizes.state),
                (trace.kept_rows(tokens), sizes.kept),
            ];
            for (p, [n_in, n_out]) in products.iter().flatten().copied().enumerate() {
                gemm(
                    (n_out, n_in, tokens * rows),
                    R::ONE,
                    (&flow.d_u[p], Strides::transposed(n_out)),
                    (fed[p].0, Strides::rows(fed[p].1)),
                    R::ONE,
                    (&mut d_weights[p], Strides::rows(n_in)),
                    false,
                );
            }
        }
        for (from, to) in flow.d_after.chunks_exact(sizes.state).zip(&mut d_state) {
            to[0].copy_from_slice(from);
        }
        Part {
            weights: d_weights,
            params: flow.d_params,
        }
    }

    /// One token back: from `flow.d_after` of this token to that of the one before.
    fn token(
        &self,
        flow: &mut Flow<R>,
        trace: &Trace<R>,
        back: &[Right<R>],
        (slot, t): (usize, usize),
        d_x: &mut [Vec<&mut [R]>],
    ) {
        let (sizes, rows) = (self.sizes, self.unit.rows);
        let Flow {
            d_u,
            d_fed,
            d_after,
            d_before,
            d_params,
        } = flow;
        let params = self.x.params_of(self.unit, sizes.params);
        if let Some(c) = self.clip {
            for (r, d) in d_after.chunks_exact_mut(sizes.state).enumerate() {
                // Padding hands the gradient on as it is.
                if self.x.valid(self.unit, (r, t)) {
                    d.iter_mut().for_each(|d| *d = d.max(-c).min(c));
                }
            }
        }
        d_before.fill(R::ZERO);
        let (befores, afters) = (trace.state(slot), trace.state(slot + 1));
        for part in (0..back.len()).rev() {
            let size = if part == 0 {
                Some(sizes.first)
            } else {
                sizes.second
            };
            let Some([n_in, n_out]) = size else { continue };
            let n_fed = sizes.second.map_or(0, |s| s[0]);
            let [d_state, d_kept] = &mut *d_fed;
            let d_u = &mut d_u[part][slot * rows * n_out..][..rows * n_out];
            vectorize(
                #[inline(always)]
                || {
                    for r in 0..rows {
                        let position = (self.unit.first + r) * self.dims.tokens + t;
                        let output = (position * self.dims.heads + self.unit.head) * sizes.output;
                        let (d_u, d_x) = (&mut d_u[r * n_out..][..n_out], &mut *d_x[r][t]);
                        let state = r * sizes.state..(r + 1) * sizes.state;
                        if !self.x.valid(self.unit, (r, t)) {
                            d_u.fill(R::ZERO);
                            d_x.fill(R::ZERO);
                            if part == 0 {
                                d_before[state.clone()].copy_from_slice(&d_after[state]);
                            }
                            continue;
                        }
                        let row = Backward {
                            params,
                            before: &befores[state.clone()],
                            after: &afters[state.clone()],
                            kept: &trace.kept(slot)[r * sizes.kept..][..sizes.kept],
                            d_o: &self.d_o[output..][..sizes.output],
                            d_after: &d_after[state.clone()],
                            d_fed: &d_kept[r * padded(n_fed)..][..n_fed],
                            d_x,
                            d_u,
                            d_before: &mut d_before[state],
                            d_params,
                        };
                        if part == 0 {
                            self.cell.first_back(row);
                        } else {
                            self.cell.second_back(row);
                        }
                    }
                },
            );
            if part == 1 {
                back[1].times(rows, (d_u, n_out), d_kept);
                continue;
            }
            back[0].times(rows, (d_u, n_out), d_state);
            let of_state = d_state.chunks_exact(padded(n_in));
            for (sum, more) in d_before.chunks_exact_mut(sizes.state).zip(of_state) {
                add(&mut sum[..n_in], &more[..n_in]);
            }
        }
        std::mem::swap(d_after, d_before);
    }
}
