//! The projections around retention and gated linear attention, under the names of flash-linear-attention:
//!
//! ```text
//! q, k, v = q_proj x, k_proj x, v_proj x     y = o_proj( RMSNorm_V(o) w SiLU(g_proj x) )
//! ```

use weft_tensor::Tensor;

use super::layer::Heads;
use crate::error::Result;
use crate::params::{Linear, Scope};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::{LINEAR_INIT, split_heads};

/// The projections, the norm over the values of a head and the output gate.
pub struct GatedHeads {
    /// Head counts and widths.
    pub heads: Heads,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    g_proj: Linear,
    o_proj: Linear,
    norm: RmsNorm,
}

impl GatedHeads {
    /// For x of width `d`; `eps` is added to the mean square of the norm.
    pub fn new(scope: &mut Scope, d: usize, heads: Heads, eps: f64) -> Result<GatedHeads> {
        let mut linear =
            |name, input, output| scope.linear(name, input, output, false, LINEAR_INIT);
        Ok(GatedHeads {
            heads,
            q_proj: linear("q_proj", d, heads.keys())?,
            k_proj: linear("k_proj", d, heads.keys())?,
            v_proj: linear("v_proj", d, heads.values())?,
            g_proj: linear("g_proj", d, heads.values())?,
            o_proj: linear("o_proj", heads.values(), d)?,
            norm: RmsNorm::new(scope, "g_norm_swish_gate", heads.value_dim, eps, false)?,
        })
    }

    /// q and k [B, T, H, K] and v [B, T, H, V] of x [B, T, D].
    pub fn qkv(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let split = |map: &Linear| split_heads(&map.forward(x)?, self.heads.heads);
        Ok([
            split(&self.q_proj)?,
            split(&self.k_proj)?,
            split(&self.v_proj)?,
        ])
    }

    /// The output gate before its activation [B, T, H V].
    pub fn gate(&self, x: &Tensor) -> Result<Tensor> {
        self.g_proj.forward(x)
    }

    /// y [B, T, D] of outputs o [B, T, H, V] and their gate.
    pub fn output(&self, o: &Tensor, gate: &Tensor) -> Result<Tensor> {
        let gate = gate.reshape(o.shape())?;
        let y = gate.silu_mul(&self.norm.forward(o)?)?;
        self.o_proj.forward(&y.flatten(2, 3)?)
    }

    /// K^-1/2
    pub fn scale(&self) -> f64 {
        (self.heads.key_dim as f64).powf(-0.5)
    }

    /// Multiply-adds of one token.
    pub fn cost(&self) -> usize {
        let parts = [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.g_proj,
            &self.o_proj,
        ];
        parts.into_iter().map(Linear::cost).sum()
    }
}
