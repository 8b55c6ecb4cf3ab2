//! Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464): the delta rule with one decay for each head.
//!
//! Per value head, S [K, V], g and beta one number each, unit q, k:
//!
//! ```text
//! S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T      o_t = S_t^T q_t K^-1/2
//! ```
//!
//! Beta up to 2 lets the transition reflect (negative eigenvalues, as in Olmo Hybrid). The kernels and the layer
//! are the family's own: [`crate::shared::delta_rule`]. Released checkpoints lay the projections out in three
//! ways, see [`Layout`].

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::Result;
use crate::mixer::Mixer;
use crate::params::Scope;
use crate::registry::{Entry, Options};
use crate::shared::conv::ShortConv;
use crate::shared::delta_rule::layer::{
    Decay, DeltaLayer, FORMS, Heads, OutputGate, Projected, Projections, Rate, separate_qkv,
};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::{Projection, split_heads};

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "gdn",
    title: "Gated DeltaNet",
    paper: "Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464",
    page: "docs/mixers/gated-deltanet.md",
    forms: FORMS,
    build,
    samples,
};

/// How a checkpoint lays out the projections of x. K, V channels, H key heads, HV = r H value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Layout {
    /// `q_proj`, `k_proj`, `v_proj` with a `*_conv1d` each, `a_proj`, `b_proj`, `g_proj`, `o_norm`, `o_proj`
    /// (flash-linear-attention, Olmo Hybrid).
    #[serde(rename = "fla")]
    Fla,
    /// `in_proj_qkvz`, for each key head q (K), k (K), v (r V), z (r V); `in_proj_ba`, for each key head b (r),
    /// a (r); one `conv1d` over q, k, v; `norm`, `out_proj`.
    #[serde(rename = "qwen3_next")]
    Qwen3Next,
    /// `in_proj_qkv` (all q, all k, all v), `in_proj_z`, `in_proj_b`, `in_proj_a`; the rest as in Qwen3-Next.
    #[serde(rename = "qwen3_5")]
    Qwen35,
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
    /// Activation of the output gate.
    pub output_gate: OutputGate,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
    /// Names and order of the projections.
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
            output_gate: OutputGate::Silu,
            norm_eps: 1e-5,
            layout: Layout::Fla,
        }
    }
}

fn samples() -> Vec<Options> {
    let small = json!({"num_heads": 2, "head_dim": 8, "head_v_dim": 12, "allow_neg_eigval": true});
    let next = json!({"num_heads": 2, "num_v_heads": 4, "head_dim": 8, "conv_size": 3, "layout": "qwen3_next"});
    let later = json!({
        "num_heads": 2, "num_v_heads": 6, "head_dim": 8, "head_v_dim": 4, "output_gate": "sigmoid",
        "layout": "qwen3_5",
    });
    vec![
        Options::new(24, small),
        Options::new(24, next),
        Options::new(24, later),
    ]
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
    let (projections, conv): (Box<dyn Projections>, _) = match c.layout {
        Layout::Fla => {
            let (qkv, conv) = separate_qkv(scope, d, &h)?;
            (
                Box::new(Blocks::new(
                    scope,
                    d,
                    h,
                    qkv,
                    ["g_proj", "b_proj", "a_proj"],
                )?),
                conv,
            )
        }
        Layout::Qwen35 => {
            let qkv = Projection::full(scope, "in_proj_qkv", d, h.width())?;
            let names = ["in_proj_z", "in_proj_b", "in_proj_a"];
            (
                Box::new(Blocks::new(scope, d, h, qkv, names)?),
                one_conv(scope, &h)?,
            )
        }
        Layout::Qwen3Next => (
            Box::new(Interleaved::new(scope, d, h)?),
            one_conv(scope, &h)?,
        ),
    };
    let (norm, out) = match c.layout {
        Layout::Fla => ("o_norm", "o_proj"),
        Layout::Qwen3Next | Layout::Qwen35 => ("norm", "out_proj"),
    };
    Ok(Box::new(DeltaLayer {
        name: ENTRY.name,
        d_model: d,
        heads: h,
        projections,
        conv,
        decay: Some(Decay::new(
            scope,
            &[h.value_heads],
            h.value_heads,
            Rate::FromZero,
            None,
        )?),
        allow_neg_eigval: c.allow_neg_eigval,
        norm: RmsNorm::new(scope, norm, h.value_dim, c.norm_eps, false)?,
        output_gate: c.output_gate,
        out: Projection::full(scope, out, h.values(), d)?,
    }))
}

fn one_conv(scope: &mut Scope, h: &Heads) -> Result<ShortConv> {
    ShortConv::new(scope, &[("conv1d", h.width())], h.taps)
}

/// Each quantity in a block of its own.
struct Blocks {
    qkv: Projection,
    gate: Projection,
    beta: Projection,
    decay: Projection,
}

impl Blocks {
    fn new(
        scope: &mut Scope,
        d: usize,
        h: Heads,
        qkv: Projection,
        names: [&str; 3],
    ) -> Result<Blocks> {
        let [gate, beta, decay] = names;
        Ok(Blocks {
            qkv,
            gate: Projection::full(scope, gate, d, h.values())?,
            beta: Projection::full(scope, beta, d, h.value_heads)?,
            decay: Projection::full(scope, decay, d, h.value_heads)?,
        })
    }
}

impl Projections for Blocks {
    fn project(&self, x: &Tensor) -> Result<Projected> {
        Ok(Projected {
            qkv: self.qkv.forward(x)?,
            decay: Some(self.decay.forward(x)?),
            erase: self.beta.forward(x)?,
            write: None,
            gate: Some(self.gate.forward(x)?),
        })
    }

    fn cost(&self) -> usize {
        [&self.qkv, &self.gate, &self.beta, &self.decay]
            .into_iter()
            .map(Projection::cost)
            .sum()
    }
}

/// All quantities of a key head together, head by head.
struct Interleaved {
    heads: Heads,
    qkvz: Projection,
    ba: Projection,
}

impl Interleaved {
    fn new(scope: &mut Scope, d: usize, heads: Heads) -> Result<Interleaved> {
        Ok(Interleaved {
            heads,
            qkvz: Projection::full(scope, "in_proj_qkvz", d, heads.width() + heads.values())?,
            ba: Projection::full(scope, "in_proj_ba", d, 2 * heads.value_heads)?,
        })
    }
}

impl Projections for Interleaved {
    fn project(&self, x: &Tensor) -> Result<Projected> {
        let (h, [b, t, _]) = (&self.heads, x.dims()?);
        let repeat = h.value_heads / h.heads;
        let values = repeat * h.value_dim;
        let whole = |part: &Tensor, width| part.reshape(&[b, t, width]);
        let qkvz = split_heads(&self.qkvz.forward(x)?, h.heads)?
            .split(-1, &[h.key_dim, h.key_dim, values, values])?;
        let ba = split_heads(&self.ba.forward(x)?, h.heads)?.split(-1, &[repeat, repeat])?;
        let (q, k, v) = (
            whole(&qkvz[0], h.keys())?,
            whole(&qkvz[1], h.keys())?,
            whole(&qkvz[2], h.values())?,
        );
        Ok(Projected {
            qkv: Tensor::cat(&[&q, &k, &v], -1)?,
            decay: Some(whole(&ba[1], h.value_heads)?),
            erase: whole(&ba[0], h.value_heads)?,
            write: None,
            gate: Some(whole(&qkvz[3], h.values())?),
        })
    }

    fn cost(&self) -> usize {
        self.qkvz.cost() + self.ba.cost()
    }
}
