//! The growing cache of keys and values: tensors `k` and `v` [B, capacity, Hkv, D], row b filled up to its
//! position. Without gradients new tokens are written in place; with gradients a new cache is composed.

use weft_tensor::Tensor;

use super::in_place;
use crate::error::Result;
use crate::shared::cache_rows::{Starts, write_rows};
use crate::state::State;

/// Slots for a number of tokens: a power of two, at least 64, so that growth costs little per token.
pub fn capacity(tokens: usize) -> usize {
    if tokens == 0 {
        0
    } else {
        tokens.next_power_of_two().max(64)
    }
}

/// Put k and v [B, T, Hkv, D] of the tokens after `starts` into the state; returns the whole cache. Under a clock its
/// places are those of the clock, and must exist.
pub fn append(
    state: &mut State,
    starts: &[usize],
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let k = extend(state, "k", starts, k)?;
    let v = extend(state, "v", starts, v)?;
    Ok((k, v))
}

/// Put new rows [B, T, H, D] of the tokens after `starts` into one tensor of the state; returns all of it.
pub fn extend(state: &mut State, name: &str, starts: &[usize], new: &Tensor) -> Result<Tensor> {
    if let Some(clock) = state.clock().cloned() {
        let mut cache = state.take(name)?;
        write_rows(&mut cache, Starts::Gpu(&clock), new)?;
        state.put(name, cache.clone())?;
        return Ok(cache);
    }
    let tokens = new.dim(1)?;
    let longest = starts.iter().copied().max().unwrap_or(0);
    let slots = capacity(longest + tokens);
    let old = state.take(name)?;
    let cache = if in_place(&[&old, new]) {
        written(old, starts, new, slots)?
    } else {
        composed(&old, starts, new, slots)?
    };
    state.put(name, cache.clone())?;
    Ok(cache)
}

/// The old cache with `slots` slots at least, those behind it zero.
fn grown(old: Tensor, slots: usize) -> Result<Tensor> {
    let missing = slots.saturating_sub(old.dim(1)?);
    Ok(if missing == 0 {
        old
    } else {
        old.pad(1, 0, missing, 0.0)?
    })
}

fn written(old: Tensor, starts: &[usize], new: &Tensor, slots: usize) -> Result<Tensor> {
    // A whole cache of new tokens needs no copy.
    if starts.iter().all(|&s| s == 0) && new.dim(1)? == slots {
        return Ok(new.contiguous()?);
    }
    let mut cache = grown(old, slots)?;
    write_rows(&mut cache, Starts::Host(starts), new)?;
    Ok(cache)
}

fn composed(old: &Tensor, starts: &[usize], new: &Tensor, slots: usize) -> Result<Tensor> {
    let [b, t, h, d] = new.dims()?;
    if starts.windows(2).all(|w| w[0] == w[1]) {
        let start = starts.first().copied().unwrap_or(0);
        let joined = if start == 0 {
            new.clone()
        } else {
            Tensor::cat(&[&old.narrow(1, 0, start)?, new], 1)?
        };
        return grown(joined, slots);
    }
    // Rows of different lengths: slot s of row b comes from the old cache or from a new token.
    let old = grown(old.clone(), slots)?;
    let slots = old.dim(1)?;
    let both = Tensor::cat(
        &[
            &old.reshape(&[b * slots, h, d])?,
            &new.reshape(&[b * t, h, d])?,
        ],
        0,
    )?;
    let source = |(b_, s): (usize, usize)| match s.checked_sub(starts[b_]) {
        Some(i) if i < t => (b * slots + b_ * t + i) as i64,
        _ => (b_ * slots + s) as i64,
    };
    let index: Vec<i64> = (0..b)
        .flat_map(|r| (0..slots).map(move |s| (r, s)))
        .map(source)
        .collect();
    let index = Tensor::from_vec(index, &[b * slots], &new.device())?;
    Ok(both.index_select(0, &index)?.reshape(&[b, slots, h, d])?)
}
