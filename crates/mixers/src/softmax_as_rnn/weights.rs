//! Attention with other weights than softmax's over a cache of keys and values:
//!
//! ```text
//! num_t = sum_{j <= t} w(q_t . k_j / sqrt(d)) v_j        sum_t = sum_{j <= t} w(q_t . k_j / sqrt(d))
//! ```
//!
//! [`plain`] holds all T x S weights at once. [`blocks`] takes 64 queries at a time and only the keys that they can
//! see, which is half the work, and computes a block again on the way back, so that no weights are kept.

use weft_tensor::{DType, Result, Tensor, checkpoint, grad_enabled};

use super::variants::Kernel;

/// Queries of a block.
pub(super) const BLOCK: usize = 64;

/// Largest score under the exponential.
const CLAMP: f64 = 5.0;

/// Queries [B, T, H, D] at positions `starts[b] + t` over keys and values [B, S, H, D] at positions s.
pub(super) struct Attended<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub starts: &'a [usize],
    pub kernel: Kernel,
    /// P of the Taylor polynomial.
    pub order: usize,
}

/// num [B, T, H, D] and sum [B, T, H, 1], with all weights in memory.
pub(super) fn plain(x: &Attended) -> Result<(Tensor, Tensor)> {
    let tokens = x.q.dim(1)?;
    let seen = Seen::new(x, 0, tokens)?;
    weighted(x.q, x.k, x.v, &seen, x.kernel, x.order)
}

/// The same, block by block.
pub(super) fn blocks(x: &Attended) -> Result<(Tensor, Tensor)> {
    let (tokens, slots) = (x.q.dim(1)?, x.k.dim(1)?);
    let longest = x.starts.iter().copied().max().unwrap_or(0);
    let (mut nums, mut sums) = (vec![], vec![]);
    for from in (0..tokens).step_by(BLOCK) {
        let count = BLOCK.min(tokens - from);
        let keys = slots.min(longest + from + count);
        let seen = Seen::new(x, from, count)?.first(keys)?;
        let parts = [
            x.q.narrow(1, from, count)?,
            x.k.narrow(1, 0, keys)?,
            x.v.narrow(1, 0, keys)?,
        ];
        let (kernel, order) = (x.kernel, x.order);
        let run = move |p: &[Tensor]| {
            let (num, sum) = weighted(&p[0], &p[1], &p[2], &seen, kernel, order)?;
            Ok([num, sum])
        };
        let parts: Vec<&Tensor> = parts.iter().collect();
        let [num, sum] = if grad_enabled() && parts.iter().any(|p| p.is_tracked()) {
            checkpoint(&parts, run)?
        } else {
            run(&parts.into_iter().cloned().collect::<Vec<_>>())?
        };
        nums.push(num);
        sums.push(sum);
    }
    let join = |parts: &[Tensor]| Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1);
    Ok((join(&nums)?, join(&sums)?))
}

/// What some queries see.
struct Seen {
    /// [B, 1, T, S] u8: 1 where a query sees a key.
    pairs: Tensor,
    /// [B, S, 1, 1] u8: 1 where some query sees a key; others may hold anything.
    keys: Tensor,
}

impl Seen {
    /// For queries `from .. from + count`.
    fn new(x: &Attended, from: usize, count: usize) -> Result<Seen> {
        let ([b, slots, ..], device) = (x.k.dims::<4>()?, x.q.device());
        let sees = |row: usize, t: usize, s: usize| u8::from(s <= x.starts[row] + from + t);
        let mut pairs = Vec::with_capacity(b * count * slots);
        let mut keys = Vec::with_capacity(b * slots);
        for row in 0..b {
            for t in 0..count {
                pairs.extend((0..slots).map(|s| sees(row, t, s)));
            }
            keys.extend((0..slots).map(|s| sees(row, count - 1, s)));
        }
        Ok(Seen {
            pairs: Tensor::from_vec(pairs, &[b, 1, count, slots], &device)?,
            keys: Tensor::from_vec(keys, &[b, slots, 1, 1], &device)?,
        })
    }

    /// For the first `keys` keys.
    fn first(&self, keys: usize) -> Result<Seen> {
        Ok(Seen {
            pairs: self.pairs.narrow(-1, 0, keys)?,
            keys: self.keys.narrow(1, 0, keys)?,
        })
    }
}

fn weighted(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seen: &Seen,
    kernel: Kernel,
    order: usize,
) -> Result<(Tensor, Tensor)> {
    let zero = Tensor::zeros(&[], q.dtype(), &q.device());
    // [B, S, H, D] -> [B, H, S, D]
    let whole = |x: &Tensor| seen.keys.where_cond(x, &zero)?.permute(&[0, 2, 1, 3]);
    let (q, k, v) = (q.permute(&[0, 2, 1, 3])?, whole(k)?, whole(v)?);
    let relu = kernel == Kernel::ReluCapped;
    let (q, k) = if relu { (q.relu()?, k.relu()?) } else { (q, k) };
    let scale = 1.0 / (q.dim(-1)? as f64).sqrt();
    let s = q.matmul(&k.transpose(-1, -2)?)?.mul_scalar(scale)?;
    let w = match kernel {
        Kernel::Exp => s.clamp(f64::NEG_INFINITY, CLAMP)?.exp()?,
        Kernel::ReluCapped => s.clamp(f64::NEG_INFINITY, CLAMP)?,
        Kernel::Taylor => taylor(&s, order)?,
        // Linear attentions have no scores; they are left as they are.
        Kernel::Softmax | Kernel::Linear(_) => {
            let hidden = Tensor::full(&[], f64::NEG_INFINITY, s.dtype(), &s.device());
            seen.pairs.where_cond(&s, &hidden)?.softmax(-1)?
        }
    };
    let w = seen.pairs.where_cond(&w, &zero)?;
    let back = |x: &Tensor| x.permute(&[0, 2, 1, 3])?.contiguous();
    Ok((back(&w.matmul(&v)?)?, back(&w.sum(&[-1], true)?)?))
}

/// 1 + s (1 + s/2 (1 + s/3 (..))), P times.
fn taylor(s: &Tensor, order: usize) -> Result<Tensor> {
    let mut sum = s.ones_like();
    for p in (1..=order).rev() {
        sum = s.mul(&sum)?.affine(1.0 / p as f64, 1.0)?;
    }
    Ok(sum)
}

/// The dtype that weights are computed in: bf16 holds neither their exponentials nor their sums.
pub(super) fn wide(dtype: DType) -> DType {
    crate::state::state_dtype(dtype)
}
