//! The ring cache: which slot holds which position, and moving it on.

use weft_tensor::Tensor;

use crate::error::Result;
use crate::shared::cache_rows::{Starts, write_rows};
use crate::state::State;

/// `sinks` fixed slots, then a ring of `window` slots.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Slots that are used round and round.
    pub window: usize,
    /// Slots of the first positions.
    pub sinks: usize,
}

impl Ring {
    /// All slots.
    pub fn slots(&self) -> usize {
        self.sinks + self.window
    }

    /// The slot of a position.
    fn slot(&self, position: usize) -> usize {
        match position.checked_sub(self.sinks) {
            Some(p) => self.sinks + p % self.window,
            None => position,
        }
    }

    /// The position in a slot after `seen` tokens: the last one below `seen` that belongs there, or -1.
    fn position(&self, slot: usize, seen: usize) -> i64 {
        if slot >= seen {
            return -1;
        }
        if slot < self.sinks {
            return slot as i64;
        }
        (slot + (seen - 1 - slot) / self.window * self.window) as i64
    }

    /// [B, slots]: the positions in each row's slots after the given numbers of tokens.
    pub fn positions(&self, seen: &[usize]) -> Vec<i64> {
        seen.iter()
            .flat_map(|&n| (0..self.slots()).map(move |s| self.position(s, n)))
            .collect()
    }

    /// [B, slots + tokens]: the ring's positions, then those of the new tokens.
    pub fn positions_with(&self, seen: &[usize], tokens: usize) -> Vec<i64> {
        let row = |&n: &usize| {
            let ring = (0..self.slots()).map(move |s| self.position(s, n));
            ring.chain((n..n + tokens).map(|p| p as i64))
        };
        seen.iter().flat_map(row).collect()
    }

    /// Write one token per row in place; returns the rings of keys and values.
    pub fn write_one(
        &self,
        state: &mut State,
        starts: &[usize],
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let slots: Vec<usize> = starts.iter().map(|&s| self.slot(s)).collect();
        self.write_at(state, Starts::Host(&slots), k, v)
    }

    /// The same, into given slots.
    pub fn write_at(
        &self,
        state: &mut State,
        slots: Starts,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let mut write = |name: &str, new: &Tensor| -> Result<Tensor> {
            let mut ring = state.take(name)?;
            write_rows(&mut ring, slots, new)?;
            state.put(name, ring.clone())?;
            Ok(ring)
        };
        Ok((write("k", k)?, write("v", v)?))
    }

    /// Move the rings on by the first `lengths[b]` of the new tokens [B, T, Hkv, D]: every slot takes the last
    /// token that belongs there, or keeps what it has. Differentiable.
    pub fn write_many(
        &self,
        state: &mut State,
        starts: &[usize],
        lengths: &[usize],
        k: &Tensor,
        v: &Tensor,
    ) -> Result<()> {
        let [b, t, h, d] = k.dims()?;
        let slots = self.slots();
        let source = |(row, slot): (usize, usize)| {
            let last = self.position(slot, starts[row] + lengths[row]);
            match usize::try_from(last)
                .ok()
                .and_then(|p| p.checked_sub(starts[row]))
            {
                Some(token) => (b * slots + row * t + token) as i64,
                None => (row * slots + slot) as i64,
            }
        };
        let index: Vec<i64> = (0..b)
            .flat_map(|r| (0..slots).map(move |s| (r, s)))
            .map(source)
            .collect();
        let index = Tensor::from_vec(index, &[b * slots], &k.device())?;
        for (name, new) in [("k", k), ("v", v)] {
            let old = state.take(name)?.reshape(&[b * slots, h, d])?;
            let both = Tensor::cat(&[&old, &new.reshape(&[b * t, h, d])?], 0)?;
            state.put(
                name,
                both.index_select(0, &index)?.reshape(&[b, slots, h, d])?,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_the_last_positions_and_the_sinks() {
        let ring = Ring {
            window: 4,
            sinks: 2,
        };
        for seen in 0..30 {
            let held = ring.positions(&[seen]);
            let want: Vec<i64> = (0..seen)
                .filter(|&p| p < 2 || p + 4 >= seen)
                .map(|p| p as i64)
                .collect();
            let mut sorted: Vec<i64> = held.iter().copied().filter(|&p| p >= 0).collect();
            sorted.sort_unstable();
            assert_eq!(sorted, want, "after {seen} tokens");
            for (slot, &p) in held.iter().enumerate().filter(|(_, p)| **p >= 0) {
                assert_eq!(ring.slot(p as usize), slot);
            }
        }
    }
}
