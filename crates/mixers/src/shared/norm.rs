//! RMSNorm as a layer, in the variants that checkpoints use, and the gate that often follows it.

use weft_tensor::{DType, Tensor};

use crate::error::Result;
use crate::params::{Init, Param, Scope};

/// y = x / sqrt(mean(x^2) + eps) * w over the last axis; with `plus_one` the weight is stored as w - 1 (Gemma,
/// Qwen3-Next). Statistics in f32.
#[derive(Clone)]
pub struct RmsNorm {
    /// [width]
    pub weight: Param,
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the stored weight is an offset from 1.
    pub plus_one: bool,
}

impl RmsNorm {
    /// A norm `name.weight` that starts as the identity.
    pub fn new(
        scope: &mut Scope,
        name: &str,
        width: usize,
        eps: f64,
        plus_one: bool,
    ) -> Result<RmsNorm> {
        let start = Init::Const(if plus_one { 0.0 } else { 1.0 });
        let weight = scope.sub(name).vector("weight", &[width], start)?;
        Ok(RmsNorm {
            weight,
            eps,
            plus_one,
        })
    }

    /// The factor on the normalised values, in a dtype.
    pub fn gain(&self, dtype: DType) -> Result<Tensor> {
        let w = self.weight.cast(dtype)?;
        Ok(if self.plus_one { w.add_scalar(1.0)? } else { w })
    }

    /// x [.., width] -> the same shape and dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.rms_norm(&self.gain(x.dtype())?, self.eps)?)
    }

    /// x + branch, and the norm of that: both [.., width], in one pass on a GPU.
    pub fn after_adding(&self, x: &Tensor, branch: &Tensor) -> Result<[Tensor; 2]> {
        Ok(x.add_rms_norm(branch, &self.gain(x.dtype())?, self.eps)?)
    }
}

/// x sigmoid(gate), an output gate: both of one shape, in the dtype of x.
pub fn sigmoid_mul(gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::fused("gate", &[gate, x], x.dtype(), |v| {
        v[0].sigmoid() * v[1].clone()
    })?)
}

/// x / sqrt(mean(x^2) + eps) over the last axis, without weights (SimpleRMSNorm of TransNormerLLM).
pub fn simple_rms(x: &Tensor, eps: f64) -> Result<Tensor> {
    let ones = Tensor::ones(&[x.dim(-1)?], x.dtype(), &x.device());
    Ok(x.rms_norm(&ones, eps)?)
}
