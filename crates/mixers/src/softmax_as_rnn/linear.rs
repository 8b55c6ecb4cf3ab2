//! Weights that are a dot product of features need no cache: a linear recurrence with a state H [d, d_v] and, for
//! the denominator, z [d].
//!
//! ```text
//! H_t = H_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)        num_t = H_t^T phi(q_t)    sum_t = z_t . phi(q_t)
//! ```

use weft_tensor::{Result, Tensor};

use super::variants::Feature;

/// Tokens of a chunk.
pub(super) const CHUNK: usize = 64;

impl Feature {
    /// phi(x) over the last axis.
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            // elu(x) + 1 is e^x below 0 and x + 1 above.
            Feature::Elu => x.relu()?.add(&x.clamp(f64::NEG_INFINITY, 0.0)?.exp()?),
            Feature::Relu => x.relu(),
            Feature::ReluScaled => x.relu()?.mul_scalar((x.dim(-1)? as f64).powf(-0.25)),
            Feature::Unit => super::unit(x),
        }
    }
}

/// The state: H [B, H, d, d_v] and z [B, H, d, 1].
pub(super) struct Memory {
    pub state: Tensor,
    pub sum: Tensor,
}

/// num [B, T, H, d_v] and sum [B, T, H, 1] of features q, k [B, T, H, d] and v [B, T, H, d_v], token by token.
pub(super) fn recurrence(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    m: &mut Memory,
) -> Result<(Tensor, Tensor)> {
    let (mut nums, mut sums) = (vec![], vec![]);
    for t in 0..q.dim(1)? {
        let column = |x: &Tensor| x.select(1, t)?.unsqueeze(-1);
        let (q, k) = (column(q)?, column(k)?);
        m.state = m.state.add(&k.mul(&v.select(1, t)?.unsqueeze(-2)?)?)?;
        m.sum = m.sum.add(&k)?;
        nums.push(m.state.mul(&q)?.sum(&[-2], false)?);
        sums.push(m.sum.mul(&q)?.sum(&[-2], false)?);
    }
    let join = |parts: &[Tensor]| Tensor::stack(&parts.iter().collect::<Vec<_>>(), 1);
    Ok((join(&nums)?, join(&sums)?))
}

/// The same in chunks: what is inside a chunk as a masked product, what is before it from the state.
pub(super) fn chunks(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    m: &mut Memory,
) -> Result<(Tensor, Tensor)> {
    let tokens = q.dim(1)?;
    let (mut nums, mut sums) = (vec![], vec![]);
    for from in (0..tokens).step_by(CHUNK) {
        let count = CHUNK.min(tokens - from);
        // [B, H, C, d]
        let part = |x: &Tensor| x.narrow(1, from, count)?.permute(&[0, 2, 1, 3]);
        let (q, k, v) = (part(q)?, part(k)?, part(v)?);
        let w = q.matmul(&k.transpose(-1, -2)?)?.tril(0)?;
        let num = w.matmul(&v)?.add(&q.matmul(&m.state)?)?;
        let sum = w.sum(&[-1], true)?.add(&q.matmul(&m.sum)?)?;
        nums.push(num.permute(&[0, 2, 1, 3])?);
        sums.push(sum.permute(&[0, 2, 1, 3])?);
        let turned = k.transpose(-1, -2)?;
        m.state = m.state.add(&turned.matmul(&v)?)?;
        m.sum = m.sum.add(&turned.sum(&[-1], true)?)?;
    }
    let join = |parts: &[Tensor]| Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1);
    Ok((join(&nums)?, join(&sums)?))
}
