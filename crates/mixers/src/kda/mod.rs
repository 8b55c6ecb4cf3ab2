//! Kimi Delta Attention (Kimi Linear, 2025, arXiv 2510.26692): the delta rule with a decay for every key channel.
//!
//! Per value head, S [K, V], g in R^K, beta one number, unit q, k:
//!
//! ```text
//! S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T      o_t = S_t^T q_t K^-1/2
//! ```
//!
//! The kernels and the layer are the family's own: [`crate::shared::delta_rule`]. Two namings are in use, see
//! [`Layout`]. With more value heads than key heads, decays and beta are per value head.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::Mixer;
use crate::params::Scope;
use crate::registry::{Entry, Options};
use crate::shared::delta_rule::layer::{
    Decay, DeltaLayer, FORMS, Heads, OutputGate, Projected, Projections, Rate, separate_qkv,
};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::Projection;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "kda",
    title: "Kimi Delta Attention",
    paper: "Kimi Team 2025, arXiv 2510.26692",
    page: "docs/mixers/kda.md",
    forms: FORMS,
    build,
    samples,
};

/// How a checkpoint names the two low-rank gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// flash-linear-attention: `f_proj.0`, `f_proj.1`, `g_proj.0`, `g_proj.1` with a bias, `A_log [HV]`.
    Fla,
    /// Kimi Linear: `f_a_proj`, `f_b_proj`, `g_a_proj`, `g_b_proj`, no bias, `A_log [1, 1, HV, 1]`.
    Kimi,
}

/// What a layout calls its parts.
struct Names {
    decay: [&'static str; 2],
    gate: [&'static str; 2],
    gate_bias: bool,
}

impl Layout {
    fn names(self) -> Names {
        match self {
            Layout::Fla => Names {
                decay: ["f_proj.0", "f_proj.1"],
                gate: ["g_proj.0", "g_proj.1"],
                gate_bias: true,
            },
            Layout::Kimi => Names {
                decay: ["f_a_proj", "f_b_proj"],
                gate: ["g_a_proj", "g_b_proj"],
                gate_bias: false,
            },
        }
    }
}

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Query and key heads; default: as many as fill the width.
    pub num_heads: Option<usize>,
    /// Value heads, a multiple of `num_heads`; default: as many.
    pub num_v_heads: Option<usize>,
    /// Channels of a query or key head; default: 128, or 64 in layers narrower than 1024.
    pub head_dim: Option<usize>,
    /// Channels of a value head; default: `head_dim`.
    pub head_v_dim: Option<usize>,
    /// Taps of the short convolution.
    pub conv_size: usize,
    /// beta in (0, 2) instead of (0, 1).
    pub allow_neg_eigval: bool,
    /// The "safe gate": log decays between this number (below 0, such as -5) and 0 through a sigmoid, instead of
    /// unbounded ones through a softplus.
    pub lower_bound: Option<f64>,
    /// Activation of the output gate.
    pub output_gate: OutputGate,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
    /// Names of the parameters.
    pub layout: Layout,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            num_v_heads: None,
            head_dim: None,
            head_v_dim: None,
            conv_size: 4,
            allow_neg_eigval: false,
            lower_bound: None,
            output_gate: OutputGate::Sigmoid,
            norm_eps: 1e-5,
            layout: Layout::Fla,
        }
    }
}

fn samples() -> Vec<Options> {
    let small = json!({"num_heads": 2, "head_dim": 8, "head_v_dim": 12});
    let other = json!({
        "num_heads": 2, "num_v_heads": 4, "head_dim": 8, "conv_size": 3, "allow_neg_eigval": true,
        "lower_bound": -5.0, "output_gate": "silu", "layout": "kimi",
    });
    vec![Options::new(24, small), Options::new(24, other)]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let d = options.d_model;
    let h = Heads::resolve(
        ENTRY.name,
        d,
        c.num_heads,
        c.num_v_heads,
        c.head_dim,
        c.head_v_dim,
        c.conv_size,
    )?;
    if c.lower_bound
        .is_some_and(|bound| bound >= 0.0 || !bound.is_finite())
    {
        return Err(Error::config(
            ENTRY.name,
            "lower_bound must be a finite number below 0",
        ));
    }
    let names = c.layout.names();
    let decays = h.value_heads * h.key_dim;
    let (qkv, conv) = separate_qkv(scope, d, &h)?;
    let projections = Gates {
        qkv,
        decay: Projection::low_rank(scope, names.decay, [d, h.value_dim, decays], false)?,
        beta: Projection::full(scope, "b_proj", d, h.value_heads)?,
        gate: Projection::low_rank(
            scope,
            names.gate,
            [d, h.value_dim, h.values()],
            names.gate_bias,
        )?,
        heads: h,
    };
    let a_log = match c.layout {
        Layout::Fla => vec![h.value_heads],
        Layout::Kimi => vec![1, 1, h.value_heads, 1],
    };
    Ok(Box::new(DeltaLayer {
        name: ENTRY.name,
        d_model: d,
        heads: h,
        projections: Box::new(projections),
        conv,
        decay: Some(Decay::new(
            scope,
            &a_log,
            decays,
            Rate::FromOne,
            c.lower_bound,
        )?),
        allow_neg_eigval: c.allow_neg_eigval,
        norm: RmsNorm::new(scope, "o_norm", h.value_dim, c.norm_eps, false)?,
        output_gate: c.output_gate,
        out: Projection::full(scope, "o_proj", h.values(), d)?,
    }))
}

struct Gates {
    heads: Heads,
    qkv: Projection,
    decay: Projection,
    beta: Projection,
    gate: Projection,
}

impl Projections for Gates {
    fn project(&self, x: &Tensor) -> Result<Projected> {
        Ok(Projected {
            qkv: self.qkv.forward(x)?,
            decay: Some(self.decay.heads(x, self.heads.value_heads)?),
            erase: self.beta.forward(x)?,
            write: None,
            gate: Some(self.gate.forward(x)?),
        })
    }

    fn cost(&self) -> usize {
        let parts = [&self.qkv, &self.decay, &self.beta, &self.gate];
        parts.into_iter().map(Projection::cost).sum()
    }
}
