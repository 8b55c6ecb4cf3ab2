//! The recurrence token by token in plain tensor operations. Automatic differentiation gives its gradients of
//! any order: this is the truth that the kernels are measured against.

use weft_tensor::{Result, Tensor};

use super::L2_EPS;
use super::op::Operands;

/// Outputs [B, T, HV, V] and final state [B, HV, K, V].
pub fn recurrence(x: &Operands) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let (keys, repeat) = (dims.heads * dims.key_dim, dims.repeat());
    let parts = x
        .qkv
        .split(-1, &[keys, keys, dims.value_heads * dims.value_dim])?;
    let rows = |x: &Tensor, heads, width| x.reshape(&[dims.batch, dims.tokens, heads, width]);
    let per_key_head =
        |x: &Tensor| unit(&rows(x, dims.heads, dims.key_dim)?)?.repeat_interleave(2, repeat);
    // A gate [B, T, H or HV, 1 or channels], for each value head.
    let gate = |x: &Tensor| -> Result<Tensor> {
        let x = if x.rank() == 3 {
            x.unsqueeze(-1)?
        } else {
            x.clone()
        };
        if x.dim(2)? == dims.value_heads {
            Ok(x)
        } else {
            x.repeat_interleave(2, repeat)
        }
    };
    let scale = (dims.key_dim as f64).powf(-0.5);
    let q = per_key_head(&parts[0])?.mul_scalar(scale)?;
    let k = per_key_head(&parts[1])?;
    let values = rows(&parts[2], dims.value_heads, dims.value_dim)?.mul(&gate(&x.write)?)?;
    let erased = k.mul(&gate(&x.erase)?)?;
    let decay = x.decay.as_ref().map(|g| gate(g)?.exp()).transpose()?;

    let mut state = x.state.clone();
    let mut outputs = Vec::with_capacity(dims.tokens);
    for t in 0..dims.tokens {
        // A row of keys as a column [B, HV, K, 1], a row of values as a row [B, HV, 1, V].
        let column = |x: &Tensor| x.select(1, t)?.unsqueeze(-1);
        let row = |x: &Tensor| x.select(1, t)?.unsqueeze(-2);
        if let Some(decay) = &decay {
            state = state.mul(&column(decay)?)?;
        }
        let read = state.mul(&column(&erased)?)?.sum(&[-2], true)?;
        state = state.add(&column(&k)?.mul(&row(&values)?.sub(&read)?)?)?;
        outputs.push(state.mul(&column(&q)?)?.sum(&[-2], false)?);
    }
    let outputs = Tensor::stack(&outputs.iter().collect::<Vec<_>>(), 1)?;
    Ok((outputs, state))
}

/// x / sqrt(sum x^2 + eps) over the last axis.
fn unit(x: &Tensor) -> Result<Tensor> {
    x.mul(&x.square()?.sum(&[-1], true)?.add_scalar(L2_EPS)?.rsqrt()?)
}
