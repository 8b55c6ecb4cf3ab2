//! Padding on the left is turned into padding on the right: rows are shifted so that their valid tokens come
//! first, mixed, and shifted back. Mixers only ever see padding behind the valid tokens, where causality
//! keeps it harmless as long as it does not enter the state.

use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::Call;
use crate::state::State;

/// Run `f` on rows whose valid tokens are `spans[b].0 .. spans[b].1`; x [B, T, D], outputs at padding are 0.
pub fn forward(
    f: impl FnOnce(&Tensor, &mut State, &Call) -> Result<Tensor>,
    x: &Tensor,
    state: &mut State,
    spans: &[(usize, usize)],
) -> Result<Tensor> {
    let [b, t, _] = x.dims()?;
    if spans.len() != b || spans.iter().any(|&(s, e)| s > e || e > t) {
        return Err(Error::state(
            state.mixer(),
            format!("spans {spans:?} do not fit {b} rows of {t} tokens"),
        ));
    }
    let lengths: Vec<usize> = spans.iter().map(|(s, e)| e - s).collect();
    let call = Call {
        lengths: Some(&lengths),
        ..Call::default()
    };
    if spans.iter().all(|s| s.0 == 0) {
        return f(x, state, &call);
    }
    let y = f(&shift(x, spans, |i, (s, _)| (i + s) % t)?, state, &call)?;
    shift(&y, spans, |i, (s, _)| (i + t - s) % t)
}

/// Token i of row b comes from token `from(i, spans[b])`.
fn shift(
    x: &Tensor,
    spans: &[(usize, usize)],
    from: impl Fn(usize, (usize, usize)) -> usize,
) -> Result<Tensor> {
    let [b, t, d] = x.dims()?;
    let index: Vec<i64> = spans
        .iter()
        .enumerate()
        .flat_map(|(r, &s)| (0..t).map(move |i| (r, i, s)))
        .map(|(r, i, s)| (r * t + from(i, s)) as i64)
        .collect();
    let index = Tensor::from_vec(index, &[b * t], &x.device())?;
    Ok(x.reshape(&[b * t, d])?
        .index_select(0, &index)?
        .reshape(&[b, t, d])?)
}
