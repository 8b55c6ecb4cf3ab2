//! The channel mixers of a block, without biases:
//!
//! ```text
//! swiglu:           y = W_down (silu(W_gate x) * W_up x)     (Shazeer 2020)
//! gelu, gelu_tanh:  y = W_down gelu(W_up x)                  (Hendrycks & Gimpel 2016)
//! ```

use serde::{Deserialize, Serialize};
use weft_mixers::{Init, Linear, Scope};
use weft_tensor::Tensor;

use crate::config::Config;
use crate::error::Result;

/// Which MLP the blocks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// Gated by silu: three matrices.
    Swiglu,
    /// Exact GELU: two matrices.
    Gelu,
    /// GELU in its tanh form: two matrices.
    GeluTanh,
}

/// An MLP with its parameters.
pub struct Mlp {
    kind: MlpKind,
    /// [intermediate, D], for [`MlpKind::Swiglu`].
    gate: Option<Linear>,
    /// [intermediate, D]
    up: Linear,
    /// [D, intermediate]
    down: Linear,
}

impl Mlp {
    /// Build `gate_proj` (if gated), `up_proj` and `down_proj`; uniform in +-1/sqrt(input width).
    pub fn new(config: &Config, scope: &mut Scope) -> Result<Mlp> {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let init = || Init::FanIn { gain: 1.0 };
        let gate = (config.mlp == MlpKind::Swiglu)
            .then(|| scope.linear("gate_proj", d, inner, false, init()))
            .transpose()?;
        Ok(Mlp {
            kind: config.mlp,
            gate,
            up: scope.linear("up_proj", d, inner, false, init())?,
            down: scope.linear("down_proj", inner, d, false, init())?,
        })
    }

    /// x [.., D] -> [.., D]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let up = self.up.forward(x)?;
        let inner = match (&self.gate, self.kind) {
            (Some(gate), _) => gate.forward(x)?.silu_mul(&up)?,
            (None, MlpKind::GeluTanh) => up.gelu_tanh()?,
            (None, _) => up.gelu()?,
        };
        Ok(self.down.forward(&inner)?)
    }

    /// Multiply-adds of one token.
    pub fn cost_per_token(&self) -> usize {
        let matrices = self.gate.iter().chain([&self.up, &self.down]);
        matrices
            .map(|l| l.weight.shape().iter().product::<usize>())
            .sum()
    }
}
