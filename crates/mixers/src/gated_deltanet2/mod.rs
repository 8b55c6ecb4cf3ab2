//! Gated DeltaNet-2 (Hatamizadeh, Choi, Kautz 2026, arXiv 2605.22791): the delta rule with separate gates for
//! what is erased and what is written.
//!
//! Per value head, S [K, V], g, b in R^K, w in R^V, unit q, k:
//!
//! ```text
//! S_t = (I - k_t (b_t . k_t)^T) diag(exp g_t) S_{t-1} + k_t (w_t . v_t)^T      o_t = S_t^T q_t K^-1/2
//! ```
//!
//! b = w = beta is KDA; a decay that is equal over channels too is Gated DeltaNet; no decay is DeltaNet. The
//! kernels and the layer are the family's own: [`crate::shared::delta_rule`]. Here are the projections, named as
//! in the authors' code: all gates from x, the decay and the output gate through a middle of width V.

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
    Decay, DeltaLayer, FORMS, Heads, OutputGate, Projected, Projections, Rate, separate_qkv,
};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::Projection;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "gdn2",
    title: "Gated DeltaNet-2",
    paper: "Hatamizadeh, Choi, Kautz 2026, arXiv 2605.22791",
    page: "docs/mixers/gated-deltanet-2.md",
    forms: FORMS,
    build,
    samples,
};

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
    /// Erase gate in (0, 2) instead of (0, 1); the write gate stays.
    pub allow_neg_eigval: bool,
    /// Activation of the output gate: `silu` (paper and authors' code) or `sigmoid` (flash-linear-attention).
    pub output_gate: OutputGate,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
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
            output_gate: OutputGate::Silu,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    let small = json!({"num_heads": 2, "head_dim": 8, "head_v_dim": 12});
    let grouped = json!({
        "num_heads": 2, "num_v_heads": 4, "head_dim": 8, "conv_size": 3, "allow_neg_eigval": true,
        "output_gate": "sigmoid",
    });
    vec![Options::new(24, small), Options::new(24, grouped)]
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
    let (qkv, conv) = separate_qkv(scope, d, &h)?;
    let projections = Gates {
        qkv,
        decay: Projection::low_rank(
            scope,
            ["f_proj.0", "f_proj.1"],
            [d, h.value_dim, h.keys()],
            false,
        )?,
        erase: Projection::full(scope, "b_proj", d, h.keys())?,
        write: Projection::full(scope, "w_proj", d, h.values())?,
        gate: Projection::low_rank(
            scope,
            ["g_proj.0", "g_proj.1"],
            [d, h.value_dim, h.values()],
            true,
        )?,
        heads: h,
    };
    Ok(Box::new(DeltaLayer {
        name: ENTRY.name,
        d_model: d,
        heads: h,
        projections: Box::new(projections),
        conv,
        decay: Some(Decay::new(
            scope,
            &[h.heads],
            h.keys(),
            Rate::FromOne,
            None,
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
    erase: Projection,
    write: Projection,
    gate: Projection,
}

impl Projections for Gates {
    fn project(&self, x: &Tensor) -> Result<Projected> {
        Ok(Projected {
            qkv: self.qkv.forward(x)?,
            decay: Some(self.decay.heads(x, self.heads.heads)?),
            erase: self.erase.heads(x, self.heads.heads)?,
            write: Some(self.write.heads(x, self.heads.value_heads)?),
            gate: Some(self.gate.forward(x)?),
        })
    }

    fn cost(&self) -> usize {
        let parts = [&self.qkv, &self.decay, &self.erase, &self.write, &self.gate];
        parts.into_iter().map(Projection::cost).sum()
    }
}
