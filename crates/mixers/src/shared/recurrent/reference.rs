//! The recurrence token by token in tensor operations. Automatic differentiation gives its gradients of any order:
//! this is the truth that the kernel is measured against.

use weft_tensor::{Result, Tensor};

use super::{Cell, How, Operands, clip_gradient};

/// Outputs [B, T, N, O] and the last state [B, N, S]. Outputs at padding are 0.
pub fn recurrence<C: Cell>(cell: &C, x: &Operands, how: &How) -> Result<(Tensor, Tensor)> {
    let dims = x.dims(&cell.sizes())?;
    let valid = how.lengths.map(|n| mask(n, dims.tokens, x)).transpose()?;
    let mut state = x.state.clone();
    let mut outputs = Vec::with_capacity(dims.tokens);
    for t in 0..dims.tokens {
        let (o, after) = cell.plain(&x.x.select(1, t)?, &state, x)?;
        let after = clip_gradient(&after, how.clip);
        let Some(valid) = &valid else {
            outputs.push(o);
            state = after;
            continue;
        };
        let valid = valid.select(1, t)?;
        outputs.push(valid.where_cond(&o, &o.zeros_like())?);
        state = valid.where_cond(&after, &state)?;
    }
    let outputs = Tensor::stack(&outputs.iter().collect::<Vec<_>>(), 1)?;
    Ok((outputs, state))
}

/// [B, T, 1, 1] u8: 1 where a token is valid.
fn mask(lengths: &[usize], tokens: usize, x: &Operands) -> Result<Tensor> {
    let valid = lengths.iter();
    let valid: Vec<u8> = valid
        .flat_map(|&n| (0..tokens).map(move |t| u8::from(t < n)))
        .collect();
    Tensor::from_vec(valid, &[lengths.len(), tokens, 1, 1], &x.state.device())
}

/// h [B, N, in] times w [N, out, in] transposed, head by head: [B, N, out].
pub fn product_of_heads(h: &Tensor, w: &Tensor) -> Result<Tensor> {
    let y = h.transpose(0, 1)?.matmul(&w.transpose(-1, -2)?)?;
    y.transpose(0, 1)
}
