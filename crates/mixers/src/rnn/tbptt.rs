//! Truncated back-propagation through time (Williams & Zipser 1989), in its simple form: pieces of k tokens, the
//! state carried from piece to piece without its history.

use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::{Call, Mixer};
use crate::state::State;

/// Mix x [B, T, D] in pieces of `window` tokens. Outputs are those of one forward; gradients reach back to the
/// beginning of their own piece only, and not into `state`. A window of T or more is the full way back.
///
/// Errors if `window` is 0 or the mixer refuses the input.
pub fn truncated(
    mixer: &dyn Mixer,
    x: &Tensor,
    state: &mut State,
    window: usize,
) -> Result<Tensor> {
    let [_, tokens, _] = x.dims()?;
    if window == 0 {
        return Err(Error::config(mixer.name(), "a window of 0 tokens"));
    }
    let mut pieces = Vec::with_capacity(tokens.div_ceil(window));
    for from in (0..tokens).step_by(window) {
        if from > 0 {
            *state = state.detach();
        }
        let piece = x.narrow(1, from, window.min(tokens - from))?;
        pieces.push(mixer.forward(&piece, state, &Call::default())?);
    }
    Ok(Tensor::cat(&pieces.iter().collect::<Vec<_>>(), 1)?)
}
