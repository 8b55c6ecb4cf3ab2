//! The recurrence token by token in tensor operations: the truth, and what runs on a GPU.

use weft_tensor::{Result, Tensor};

use super::op::{Clip, Operands};
use crate::shared::recurrent::clip_gradient;

/// Outputs [B, T, N, V] and the last state [B, N, K, V].
pub(super) fn recurrence(x: &Operands, clip: Clip) -> Result<(Tensor, Tensor)> {
    let d = x.dims()?;
    let (q, k) = (
        x.q.repeat_interleave(2, d.heads / d.q_heads)?,
        x.k.repeat_interleave(2, d.heads / d.k_heads)?,
    );
    let mut h = x.state.clone();
    let mut outputs = Vec::with_capacity(d.tokens);
    for t in 0..d.tokens {
        // A row of keys as a column [B, N, K, 1], a row of values as a row [B, N, 1, V], a gate [B, N, 1, 1].
        let column = |x: &Tensor| x.select(1, t)?.unsqueeze(-1);
        let row = |x: &Tensor| x.select(1, t)?.unsqueeze(-2);
        let f = column(&x.f)?.unsqueeze(-1)?;
        let a = h.matmul(&x.w)?.add(&column(&k)?.mul(&row(&x.v)?)?)?;
        let z = if x.linear { a } else { a.tanh()? };
        let new = f.mul(&h)?.add(&f.affine(-1.0, 1.0)?.mul(&z)?)?;
        let new = clip_gradient(&new, clip.total());
        outputs.push(new.mul(&column(&q)?)?.sum(&[-2], false)?);
        h = clip_gradient(&new, clip.carry());
    }
    let outputs = Tensor::stack(&outputs.iter().collect::<Vec<_>>(), 1)?;
    Ok((outputs, h))
}
