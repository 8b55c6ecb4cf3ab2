//! The chunkwise form as matrix products of tensors, for devices without a kernel: differentiable, and fast where
//! products are. Per value head and chunk, with G_i the sum of g up to token i:
//!
//! ```text
//! O = (e^G q) S + P V          P_ij = q_i . e^(G_i - G_j) k_j    for j <= i
//! S <- e^(G_C) S + (e^(G_C - G) k)^T V
//! ```
//!
//! No exponent is positive; how they are cut into sums of blocks stands at the delta rule's composition.

use weft_tensor::{Result, Tensor};

use super::super::delta_rule::composed::{BLOCK, Cut, Decay};
use super::op::Operands;

/// Outputs [B, T, HV, V] and final state [B, HV, K, V]; all operands in the state's dtype.
pub fn chunks(x: &Operands, chunk: usize) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let blocks = chunk.min(dims.tokens).div_ceil(BLOCK).max(1);
    let count = dims.tokens.div_ceil(blocks * BLOCK);
    let cut = Cut {
        shape: [dims.batch, dims.value_heads, count, blocks],
        repeat: dims.repeat(),
        padding: count * blocks * BLOCK - dims.tokens,
    };
    let q = cut.blocks(&x.q)?.mul_scalar(x.scale)?;
    let k = cut.blocks(&x.k)?;
    let sums = Decay::new(&cut.gate(&x.decay)?)?;
    let reads = sums.scores(&[&q], &k)?.remove(0);
    let flat = |x: &Tensor| x.flatten(3, 4);
    let v = flat(&cut.blocks(&x.v)?)?;
    let (q, keys) = (flat(&sums.since_start(&q)?)?, flat(&sums.until_end(&k)?)?);
    let (own, written) = (reads.matmul(&v)?, keys.transpose(-1, -2)?.matmul(&v)?);
    let keep = sums.whole()?;

    let mut state = x.state.clone();
    let mut outputs = Vec::with_capacity(count);
    for c in 0..count {
        let at = |x: &Tensor| x.select(2, c);
        outputs.push(at(&q)?.matmul(&state)?.add(&at(&own)?)?);
        state = state.mul(&at(&keep)?)?.add(&at(&written)?)?;
    }
    // [B, HV, T, V]
    let o = Tensor::cat(&outputs.iter().collect::<Vec<_>>(), 2)?;
    Ok((o.narrow(2, 0, dims.tokens)?.transpose(1, 2)?, state))
}
