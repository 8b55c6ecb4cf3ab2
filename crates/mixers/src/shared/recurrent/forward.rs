//! The way ahead: all tokens of a unit, one after the other.

use rayon::prelude::*;
use weft_tensor::{Buffer, Real};

use super::product::Right;
use super::trace::Trace;
use super::{Cell, Dims, Inputs, SEGMENT, Sizes, Unit, rows_of_units, units};

/// Multiply-adds of a whole call below which starting threads costs more than the work.
const PARALLEL: usize = 1 << 16;

/// Outputs, and what the way back needs.
pub(super) struct Outcome<R: Real> {
    /// [B, T, N, O]
    pub o: Buffer<R>,
    /// For each unit the states before every [`SEGMENT`]-th token; `None` if not asked for.
    pub starts: Option<Vec<Buffer<R>>>,
}

/// Runs the cell over all tokens and moves `state` [B, N, S] on to the last one.
pub(super) fn forward<C: Cell, R: Real>(
    cell: &C,
    dims: Dims,
    x: &Inputs<R>,
    state: &mut [R],
    save: bool,
) -> Outcome<R> {
    let (sizes, units) = (cell.sizes(), units(dims));
    let mut o = Buffer::unwritten(dims.batch * dims.tokens * dims.heads * sizes.output);
    let outputs = rows_of_units(&mut o, dims, sizes.output, &units);
    let one = Dims { tokens: 1, ..dims };
    let states = rows_of_units(state, one, sizes.state, &units);
    type Rows<'a, R> = Vec<Vec<&'a mut [R]>>;
    let run = |((unit, mut o), mut state): ((&Unit, Rows<R>), Rows<R>)| {
        let weights = x.weights_of(&sizes, unit, dims.tokens);
        let mut trace = Trace::new(sizes, unit.rows, 1);
        for (row, state) in state.iter().enumerate() {
            trace.set_start(row, state[0]);
        }
        let mut starts = Vec::new();
        for t in 0..dims.tokens {
            if save && t % SEGMENT == 0 {
                starts.extend_from_slice(trace.state(0));
            }
            trace.token(cell, x, dims, unit, &weights, (0, t));
            for (row, o) in o.iter_mut().enumerate() {
                o[t].copy_from_slice(trace.output(row));
            }
            trace.rewind();
        }
        for (row, state) in state.iter_mut().enumerate() {
            state[0].copy_from_slice(&trace.state(0)[row * sizes.state..][..sizes.state]);
        }
        Buffer::from_slice(&starts)
    };
    let work = units.iter().zip(outputs).zip(states);
    let starts: Vec<Buffer<R>> = if sizes.work() * dims.batch * dims.tokens * dims.heads < PARALLEL
    {
        work.map(run).collect()
    } else {
        work.collect::<Vec<_>>().into_par_iter().map(run).collect()
    };
    Outcome {
        o,
        starts: save.then_some(starts),
    }
}

impl Sizes {
    /// Multiply-adds of a token in one head.
    pub fn work(&self) -> usize {
        let product = |[a, b]: [usize; 2]| a * b;
        product(self.first) + self.second.map_or(0, product)
    }
}

impl<R: Real> Inputs<'_, R> {
    /// A unit's recurrent weights, ready for products over `tokens` tokens.
    pub fn weights_of(&self, sizes: &Sizes, unit: &Unit, tokens: usize) -> Vec<Right<'_, R>> {
        self.weights
            .into_iter()
            .zip([Some(sizes.first), sizes.second])
            .filter_map(|(w, size)| {
                let [n_in, n_out] = size?;
                let w = &w[unit.head * n_in * n_out..][..n_in * n_out];
                Some(Right::transposed(w, [n_out, n_in], tokens * unit.rows))
            })
            .collect()
    }

    /// The pre-activations of a row of a unit at a token.
    #[inline(always)]
    pub fn row(&self, dims: Dims, unit: &Unit, (row, t): (usize, usize), width: usize) -> &[R] {
        let position = (unit.first + row) * dims.tokens + t;
        &self.x[(position * dims.heads + unit.head) * width..][..width]
    }

    /// Whether a token of a row is valid.
    #[inline(always)]
    pub fn valid(&self, unit: &Unit, (row, t): (usize, usize)) -> bool {
        self.lengths.is_none_or(|n| t < n[unit.first + row])
    }

    /// The parameters of a unit's head.
    #[inline(always)]
    pub fn params_of(&self, unit: &Unit, width: usize) -> &[R] {
        &self.params[unit.head * width..][..width]
    }
}
