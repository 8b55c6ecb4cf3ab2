//! DeltaNet (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484): a memory that is corrected
//! instead of added to, and forgets nothing by itself.
//!
//! Per head, S [K, V], beta one number, unit q, k:
//!
//! ```text
//! S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T      o_t = S_t^T q_t K^-1/2
//! y   = o_proj( RMSNorm_V(o) w )                                with `use_gate` times SiLU(g_proj x)
//! ```
//!
//! The kernels and the layer are the family's own: [`crate::shared::delta_rule`], without a decay. Names as in
//! flash-linear-attention.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::Result;
use crate::mixer::Mixer;
use crate::params::Scope;
use crate::registry::{Entry, Options};
use crate::shared::delta_rule::layer::{
    DeltaLayer, FORMS, Heads, OutputGate, Projected, Projections, separate_qkv,
};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::Projection;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "delta_net",
    title: "DeltaNet",
    paper: "Yang et al. 2024, arXiv 2406.06484",
    page: "docs/mixers/delta-net.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads; default: as many as fill the width.
    pub num_heads: Option<usize>,
    /// Channels of a query or key; default: 128, or 64 in layers narrower than 1024.
    pub head_dim: Option<usize>,
    /// Channels of a value; default: `head_dim`.
    pub head_v_dim: Option<usize>,
    /// Taps of the short convolution.
    pub conv_size: usize,
    /// beta in (0, 2) instead of (0, 1).
    pub allow_neg_eigval: bool,
    /// Whether the output is gated.
    pub use_gate: bool,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            head_dim: None,
            head_v_dim: None,
            conv_size: 4,
            allow_neg_eigval: false,
            use_gate: false,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    let small = json!({"num_heads": 2, "head_dim": 8, "head_v_dim": 12});
    let gated = json!({
        "num_heads": 2, "head_dim": 6, "conv_size": 3, "allow_neg_eigval": true, "use_gate": true,
    });
    vec![Options::new(24, small), Options::new(24, gated)]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let d = options.d_model;
    let h = Heads::resolve(
        ENTRY.name,
        d,
        c.num_heads,
        None,
        c.head_dim,
        c.head_v_dim,
        c.conv_size,
    )?;
    let (qkv, conv) = separate_qkv(scope, d, &h)?;
    let gate = c
        .use_gate
        .then(|| Projection::full(scope, "g_proj", d, h.values()));
    let projections = Parts {
        qkv,
        gate: gate.transpose()?,
        beta: Projection::full(scope, "b_proj", d, h.heads)?,
    };
    Ok(Box::new(DeltaLayer {
        name: ENTRY.name,
        d_model: d,
        heads: h,
        projections: Box::new(projections),
        conv,
        decay: None,
        allow_neg_eigval: c.allow_neg_eigval,
        norm: RmsNorm::new(scope, "o_norm", h.value_dim, c.norm_eps, false)?,
        output_gate: OutputGate::Silu,
        out: Projection::full(scope, "o_proj", h.values(), d)?,
    }))
}

struct Parts {
    qkv: Projection,
    beta: Projection,
    gate: Option<Projection>,
}

impl Projections for Parts {
    fn project(&self, x: &Tensor) -> Result<Projected> {
        Ok(Projected {
            qkv: self.qkv.forward(x)?,
            decay: None,
            erase: self.beta.forward(x)?,
            write: None,
            gate: self.gate.as_ref().map(|g| g.forward(x)).transpose()?,
        })
    }

    fn cost(&self) -> usize {
        let parts = [&self.qkv, &self.beta].into_iter().chain(&self.gate);
        parts.map(Projection::cost).sum()
    }
}
