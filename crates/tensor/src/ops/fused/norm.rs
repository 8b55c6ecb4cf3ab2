//! RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight over the last axis, the statistics
//! in f32 (f64 for f64 inputs).

use crate::error::Result;
use crate::tensor::Tensor;

impl Tensor {
    /// RMSNorm over the last axis: x [.., d], weight [d] of the same dtype.
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Tensor> {
        plain(self, weight, eps)
    }
}

fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = x.square()?.mean(&[-1], true)?.add_scalar(eps)?.rsqrt()?;
    x.mul(&scale)?.mul(weight)
}
