//! LRPE-d, the linearised relative positions of TransNormerLLM (Qin et al. 2023, arXiv 2307.14995): x at position t
//! becomes [x cos(theta t), x sin(theta t)], so that products of queries and keys are
//! sum_c q_c k_c cos(theta_c (t - s)). theta is learnt.

use weft_tensor::{DType, Tensor};

use crate::error::Result;
use crate::params::{Init, Param, Scope};
use crate::state::state_dtype;

/// The angles per token, `lrpe.theta` [H, 1, d].
pub struct Lrpe {
    theta: Param,
}

impl Lrpe {
    /// theta starts at 10000^(-2 i / (H d)) for channel i of all heads.
    pub fn new(scope: &mut Scope, heads: usize, head_dim: usize) -> Result<Lrpe> {
        let init = Init::Frequencies { base: 10_000.0 };
        let theta = scope
            .sub("lrpe")
            .vector("theta", &[heads, 1, head_dim], init)?;
        Ok(Lrpe { theta })
    }

    /// Cosines and sines [B, T, H, d] for `tokens` tokens of rows that start at the given positions, in the dtype of
    /// the states of x.
    pub fn table(&self, starts: &[usize], tokens: usize, x: &Tensor) -> Result<[Tensor; 2]> {
        let (device, dtype) = (x.device(), state_dtype(x.dtype()));
        let starts: Vec<f64> = starts.iter().map(|&s| s as f64).collect();
        let starts = Tensor::from_slice(&starts, &[starts.len(), 1], &device)?;
        let positions = starts.add(&Tensor::arange(0, tokens as i64, DType::F64, &device)?)?;
        let positions = positions.to_dtype(dtype)?.unsqueeze(-1)?.unsqueeze(-1)?;
        let angles = positions.mul(&self.theta.cast(dtype)?.squeeze(1)?)?;
        Ok([angles.cos()?, angles.sin()?])
    }
}

/// x [B, T, H, d] -> [B, T, H, 2 d] in the dtype of the table.
pub fn turn(x: &Tensor, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
    let x = x.to_dtype(cos.dtype())?;
    Ok(Tensor::cat(&[&x.mul(cos)?, &x.mul(sin)?], -1)?)
}
