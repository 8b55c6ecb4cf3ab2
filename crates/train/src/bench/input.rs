//! Operands. Numbers are drawn on the host one by one, so a block is drawn and repeated where many are needed: how
//! long a kernel takes does not depend on them.

use weft_tensor::{DType, Device, Rng, Tensor};

use crate::error::Result;

/// Numbers that are drawn at most; a prime, so that equal rows of a matrix are rare.
const BLOCK: usize = 65_521;

/// Uniform numbers in [lo, hi).
pub(super) fn uniform(
    seed: u64,
    shape: &[usize],
    [lo, hi]: [f64; 2],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let block = count.min(BLOCK);
    let drawn = Rng::new(seed).uniform(&[block], lo, hi, dtype, device)?;
    if block == count {
        return Ok(drawn.reshape(shape)?);
    }
    let whole = drawn.repeat(&[count.div_ceil(block)])?;
    Ok(whole.narrow(0, 0, count)?.contiguous()?.reshape(shape)?)
}

/// Numbers of both signs, as activations are.
pub(super) fn activations(
    seed: u64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    uniform(seed, shape, [-1.0, 0.9], dtype, device)
}
