//! The feedback: s_t = f_t + gamma_t sum_{j < t} A_tj s_j, A_tj = softmax_{j < t}( q_t . k_j / sqrt(D) ), over what the
//! state remembers and the tokens of the call. The first token of a text sees nothing and is s_0 = f_0.
//!
//! [`recurrence`] is that, token by token. [`blocks`] takes 64 tokens: what they read from before the block is a
//! product, what they read from each other one unit lower triangular system (I - B) s = f + past, exact.

use weft_tensor::{Result, Tensor};

/// Tokens of a block.
const BLOCK: usize = 64;

/// Keys and outputs [B, S, D] of earlier calls.
pub(super) struct Past {
    keys: Tensor,
    outputs: Tensor,
    /// [B, 1, S] u8: 1 where a slot holds a token.
    filled: Tensor,
    /// Whether a row has no earlier token.
    fresh: Vec<bool>,
}

impl Past {
    /// Slots from `starts[b]` on may hold anything.
    pub fn new(keys: &Tensor, outputs: &Tensor, starts: &[usize]) -> Result<Past> {
        let [b, slots, _] = keys.dims()?;
        // No slot behind the longest row is of use.
        let slots = slots.min(starts.iter().copied().max().unwrap_or(0));
        let filled = starts
            .iter()
            .flat_map(|&n| (0..slots).map(move |s| u8::from(s < n)));
        let filled = Tensor::from_vec(filled.collect(), &[b, 1, slots], &keys.device())?;
        let dtype = outputs.dtype();
        let valid = |x: &Tensor| {
            if slots == 0 {
                return Ok(Tensor::zeros(&[b, 0, x.dim(2)?], dtype, &x.device()));
            }
            let x = x.narrow(1, 0, slots)?.to_dtype(dtype)?;
            filled
                .transpose(1, 2)?
                .where_cond(&x, &Tensor::zeros(&[], dtype, &x.device()))
        };
        Ok(Past {
            keys: valid(keys)?,
            outputs: valid(outputs)?,
            fresh: starts.iter().map(|&n| n == 0).collect(),
            filled,
        })
    }

    /// B [B, C, S + seen] = gamma A for queries q [B, C, D], the first of which is token `first` of the call, over the
    /// past and keys k [B, seen, D] of the call.
    fn weights(&self, q: &Tensor, k: &Tensor, gamma: &Tensor, first: usize) -> Result<Tensor> {
        let ([b, count, d], seen, device) = (q.dims()?, k.dim(1)?, q.device());
        let keys = join(&self.keys, k, 1)?;
        let scores = q
            .matmul(&keys.transpose(1, 2)?)?
            .mul_scalar((d as f64).powf(-0.5))?;
        let before = Tensor::tril_mask(count, seen, first as i64 - 1, &device)?;
        let before = before.unsqueeze(0)?.broadcast_to(&[b, count, seen])?;
        let slots = self.filled.dim(2)?;
        let mask = join(&self.filled.broadcast_to(&[b, count, slots])?, &before, 2)?;
        // A row that sees nothing must not be all minus infinity: its softmax would be NaN.
        let alone = |row: usize, t: usize| first + t == 0 && self.fresh[row];
        let hidden: Vec<f64> = (0..b)
            .flat_map(|row| (0..count).map(move |t| (row, t)))
            .map(|(row, t)| {
                if alone(row, t) {
                    0.0
                } else {
                    f64::NEG_INFINITY
                }
            })
            .collect();
        let hidden = Tensor::from_vec(hidden, &[b, count, 1], &device)?.to_dtype(q.dtype())?;
        let a = mask.where_cond(&scores, &hidden)?.softmax(-1)?;
        mask.where_cond(&a, &a.zeros_like())?.mul(gamma)
    }
}

/// Two tensors one after the other along an axis; the first may be empty.
fn join(a: &Tensor, b: &Tensor, axis: isize) -> Result<Tensor> {
    if a.dim(axis)? == 0 {
        Ok(b.clone())
    } else {
        Tensor::cat(&[a, b], axis)
    }
}

/// s [B, T, D] of f [B, T, D], gamma [B, T, 1] and feedback queries and keys [B, T, D], token by token.
pub(super) fn recurrence(
    f: &Tensor,
    gamma: &Tensor,
    (q, k): (&Tensor, &Tensor),
    past: &Past,
) -> Result<Tensor> {
    let mut all = past.outputs.clone();
    let before = all.dim(1)?;
    for t in 0..f.dim(1)? {
        let at = |x: &Tensor| x.narrow(1, t, 1);
        let mut s = at(f)?;
        if before + t > 0 {
            let weights = past.weights(&at(q)?, &k.narrow(1, 0, t + 1)?, &at(gamma)?, t)?;
            s = s.add(&weights.narrow(2, 0, before + t)?.matmul(&all)?)?;
        }
        all = join(&all, &s, 1)?;
    }
    all.narrow(1, before, f.dim(1)?)
}

/// The same, block by block.
pub(super) fn blocks(
    f: &Tensor,
    gamma: &Tensor,
    (q, k): (&Tensor, &Tensor),
    past: &Past,
) -> Result<Tensor> {
    let tokens = f.dim(1)?;
    let mut all = past.outputs.clone();
    let before = all.dim(1)?;
    for from in (0..tokens).step_by(BLOCK) {
        let count = BLOCK.min(tokens - from);
        let at = |x: &Tensor| x.narrow(1, from, count);
        let weights = past.weights(&at(q)?, &k.narrow(1, 0, from + count)?, &at(gamma)?, from)?;
        let parts = weights.split(2, &[before + from, count])?;
        let mut right = at(f)?;
        if before + from > 0 {
            right = right.add(&parts[0].matmul(&all)?)?;
        }
        // The diagonal counts as 1.
        let s = parts[1].neg()?.tri_solve(&right, false, true)?;
        all = join(&all, &s, 1)?;
    }
    all.narrow(1, before, tokens)
}
