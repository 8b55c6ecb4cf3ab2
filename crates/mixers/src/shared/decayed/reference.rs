//! The recurrence token by token in plain tensor operations. Automatic differentiation gives its gradients of any
//! order: this is the truth that the kernels are measured against.

use weft_tensor::{Result, Tensor};

use super::op::Operands;

/// Outputs [B, T, HV, V] and final state [B, HV, K, V].
pub fn recurrence(x: &Operands) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let per_value_head = |x: &Tensor| x.repeat_interleave(2, dims.repeat());
    let q = per_value_head(&x.q)?.mul_scalar(x.scale)?;
    let k = per_value_head(&x.k)?;
    let decay = match x.decay.rank() {
        3 => x.decay.unsqueeze(-1)?,
        _ => per_value_head(&x.decay)?,
    };
    let decay = decay.exp()?;

    let mut state = x.state.clone();
    let mut outputs = Vec::with_capacity(dims.tokens);
    for t in 0..dims.tokens {
        // A row of keys as a column [B, HV, K, 1], a row of values as a row [B, HV, 1, V].
        let column = |x: &Tensor| x.select(1, t)?.unsqueeze(-1);
        let written = column(&k)?.mul(&x.v.select(1, t)?.unsqueeze(-2)?)?;
        state = state.mul(&column(&decay)?)?.add(&written)?;
        outputs.push(state.mul(&column(&q)?)?.sum(&[-2], false)?);
    }
    let outputs = Tensor::stack(&outputs.iter().collect::<Vec<_>>(), 1)?;
    Ok((outputs, state))
}
