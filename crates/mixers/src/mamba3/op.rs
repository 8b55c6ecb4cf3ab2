//! The recurrence of Mamba-3 on tensors, token by token and as decayed linear attention.
//!
//! Per head, with the state S [N, P] and, for each token, R keys k, queries q in R^N and values v in R^P (R = 1 but for
//! the MIMO form), already biased and rotated, dt > 0, lam in (0, 1) and alpha = exp(g):
//!
//! ```text
//! S_t = alpha_t (S_{t-1} + (1 - lam_t) dt_t sum_r k_{t-1,r} v_{t-1,r}^T) + lam_t dt_t sum_r k_{t,r} v_{t,r}^T
//! o_{t,r} = S_t^T q_{t,r}
//! ```
//!
//! A key is written twice: at its own token, and once more before the next one decays. Both at once, with weight
//! w_t = lam_t dt_t + (1 - lam_{t+1}) dt_{t+1} (the last token only the first half), is decayed linear attention over
//! T R tokens, the R of one token without decay between them; what a token has then seen of itself is corrected:
//!
//! ```text
//! o_{t,r} += sum_r' c_{r r'} (q_{t,r} . k_{t,r'}) v_{t,r'}        c_{r r'} = lam_t dt_t - w_t [r' <= r]
//! ```

use weft_tensor::{Result, Tensor};

use crate::shared::decayed::{self, CHUNK, decayed};

/// What the recurrence reads, all in the state's dtype.
pub struct Operands {
    /// Queries and keys [B, T, R, H, N].
    pub q: Tensor,
    /// See `q`.
    pub k: Tensor,
    /// Values [B, T, R, H, P].
    pub v: Tensor,
    /// Log decays g = A dt [B, T, H].
    pub decay: Tensor,
    /// lam dt [B, T, H]: the weight of a token's own key.
    pub own: Tensor,
    /// (1 - lam) dt [B, T, H]: the weight of the key before.
    pub before: Tensor,
    /// S [B, H, N, P].
    pub state: Tensor,
    /// The keys of the token before the first [B, R, H, N], and its values [B, R, H, P].
    pub last: [Tensor; 2],
}

/// sum_r k_r v_r^T of keys [B, R, H, N] and values [B, R, H, P], times weights [B, H]: [B, H, N, P].
fn outer(k: &Tensor, v: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let heads = |x: &Tensor| x.transpose(1, 2);
    let v = heads(v)?.mul(&weight.unsqueeze(-1)?.unsqueeze(-1)?)?;
    heads(k)?.transpose(-1, -2)?.matmul(&v)
}

/// Token by token: outputs [B, T, R, H, P] and the final state.
pub fn recurrence(x: &Operands) -> Result<(Tensor, Tensor)> {
    let mut state = x.state.clone();
    let mut last = x.last.clone();
    let mut outputs = vec![];
    for t in 0..x.q.dim(1)? {
        let at = |x: &Tensor| x.select(1, t);
        let decay = at(&x.decay)?.exp()?.unsqueeze(-1)?.unsqueeze(-1)?;
        let found = state.add(&outer(&last[0], &last[1], &at(&x.before)?)?)?;
        last = [at(&x.k)?, at(&x.v)?];
        let written = outer(&last[0], &last[1], &at(&x.own)?)?;
        state = found.mul(&decay)?.add(&written)?;
        // [B, H, R, P] -> [B, R, H, P]
        outputs.push(at(&x.q)?.transpose(1, 2)?.matmul(&state)?.transpose(1, 2)?);
    }
    Ok((
        Tensor::stack(&outputs.iter().collect::<Vec<_>>(), 1)?,
        state,
    ))
}

/// The same in chunks.
pub fn chunks(x: &Operands, chunk: Option<usize>) -> Result<(Tensor, Tensor)> {
    let ([b, t, r, h, n], p) = (x.q.dims()?, x.v.dim(-1)?);
    let next = x.before.narrow(1, 1, t - 1)?.pad(1, 0, 1, 0.0)?;
    let weight = x.own.add(&next)?;
    let first = outer(&x.last[0], &x.last[1], &x.before.select(1, 0)?)?;
    // Ranks follow one another in time; only the first one of a token decays.
    let decay = x.decay.unsqueeze(2)?.pad(2, 0, r - 1, 0.0)?;
    let per_rank = |w: &Tensor| w.unsqueeze(2)?.unsqueeze(-1);
    let operands = decayed::Operands {
        q: x.q.reshape(&[b, t * r, h, n])?,
        k: x.k.reshape(&[b, t * r, h, n])?,
        v: x.v.mul(&per_rank(&weight)?)?.reshape(&[b, t * r, h, p])?,
        decay: decay.reshape(&[b, t * r, h])?,
        scale: 1.0,
        state: x.state.add(&first)?,
    };
    let (o, state) = decayed(&operands, chunk.map_or(CHUNK, |c| c * r))?;
    let o = o.reshape(&[b, t, r, h, p])?;
    // [B, T, H, R, R]: rows are queries, columns keys.
    let heads = |x: &Tensor| x.transpose(2, 3);
    let scores = heads(&x.q)?.matmul(&heads(&x.k)?.transpose(-1, -2)?)?;
    let cast = |w: &Tensor| w.unsqueeze(-1)?.unsqueeze(-1);
    let seen = scores.tril(0)?.mul(&cast(&weight)?)?;
    let missing = scores.mul(&cast(&x.own)?)?.sub(&seen)?;
    let correction = heads(&missing.matmul(&heads(&x.v)?)?)?;
    Ok((o.add(&correction)?, state))
}
