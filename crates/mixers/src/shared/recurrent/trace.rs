//! The states, and what a cell keeps, of a run of tokens of one unit: one token on the way ahead, a segment on
//! the way back.

use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::product::{Right, padded};
use super::{Cell, Dims, Forward, Inputs, Sizes, Unit};

pub(super) struct Trace<R: Real> {
    sizes: Sizes,
    rows: usize,
    /// [slots + 1, rows, S]
    states: Buffer<R>,
    /// [slots, rows, kept]
    kept: Buffer<R>,
    /// The last token's products [rows, out], rows padded to lanes, and outputs [rows, O].
    u: Buffer<R>,
    o: Buffer<R>,
}

impl<R: Real> Trace<R> {
    /// Room for `slots` tokens.
    pub fn new(sizes: Sizes, rows: usize, slots: usize) -> Self {
        let widest = sizes.second.map_or(0, |s| s[1]).max(sizes.first[1]);
        Trace {
            sizes,
            rows,
            states: Buffer::unwritten((slots + 1) * rows * sizes.state),
            kept: Buffer::unwritten(slots * rows * sizes.kept),
            u: Buffer::unwritten(rows * padded(widest)),
            o: Buffer::unwritten(rows * sizes.output),
        }
    }

    /// The state of one row before the first slot.
    pub fn set_start(&mut self, row: usize, state: &[R]) {
        self.states[row * self.sizes.state..][..self.sizes.state].copy_from_slice(state);
    }

    /// The states [rows, S] before a slot's token.
    #[inline(always)]
    pub fn state(&self, slot: usize) -> &[R] {
        &self.states[slot * self.rows * self.sizes.state..][..self.rows * self.sizes.state]
    }

    /// All states from the first slot on.
    pub fn states_mut(&mut self) -> &mut [R] {
        &mut self.states
    }

    /// What was kept [rows, kept] of a slot's token.
    #[inline(always)]
    pub fn kept(&self, slot: usize) -> &[R] {
        &self.kept[slot * self.rows * self.sizes.kept..][..self.rows * self.sizes.kept]
    }

    /// The states before the first `slots` tokens [slots, rows, S].
    pub fn state_rows(&self, slots: usize) -> &[R] {
        &self.states[..slots * self.rows * self.sizes.state]
    }

    /// What was kept of the first `slots` tokens [slots, rows, kept].
    pub fn kept_rows(&self, slots: usize) -> &[R] {
        &self.kept[..slots * self.rows * self.sizes.kept]
    }

    /// The last token's outputs of a row.
    #[inline(always)]
    pub fn output(&self, row: usize) -> &[R] {
        &self.o[row * self.sizes.output..][..self.sizes.output]
    }

    /// Make the state after slot 0 that before it.
    #[inline(always)]
    pub fn rewind(&mut self) {
        let width = self.rows * self.sizes.state;
        self.states.copy_within(width..2 * width, 0);
    }

    /// Run token `t` in a slot.
    pub fn token<C: Cell>(
        &mut self,
        cell: &C,
        x: &Inputs<R>,
        dims: Dims,
        unit: &Unit,
        weights: &[Right<R>],
        (slot, t): (usize, usize),
    ) {
        let Sizes {
            input,
            state,
            output,
            params,
            kept,
            first,
            second,
        } = self.sizes;
        let rows = self.rows;
        let (before, after) = self.states.split_at_mut((slot + 1) * rows * state);
        let before = &before[slot * rows * state..];
        let all_kept = &mut self.kept[slot * rows * kept..][..rows * kept];
        let params = x.params_of(unit, params);
        weights[0].times(rows, (before, state), &mut self.u);
        for part in 0..1 + usize::from(second.is_some()) {
            let mut width = first[1];
            if let (1, Some([_, n])) = (part, second) {
                width = n;
                weights[1].times(rows, (all_kept, kept), &mut self.u);
            }
            let (u, outputs) = (&self.u, &mut self.o);
            vectorize(
                #[inline(always)]
                || {
                    for r in 0..rows {
                        let after = &mut after[r * state..][..state];
                        let before = &before[r * state..][..state];
                        let o = &mut outputs[r * output..][..output];
                        let kept = &mut all_kept[r * kept..][..kept];
                        if !x.valid(unit, (r, t)) {
                            after.copy_from_slice(before);
                            kept.fill(R::ZERO);
                            o.fill(R::ZERO);
                            continue;
                        }
                        let row = Forward {
                            x: x.row(dims, unit, (r, t), input),
                            u: &u[r * padded(width)..][..width],
                            params,
                            before,
                            kept,
                            after,
                            o,
                        };
                        if part == 0 {
                            cell.first(row);
                        } else {
                            cell.second(row);
                        }
                    }
                },
            );
        }
    }
}
