//! Gated linear attention (Yang et al. 2024, arXiv 2312.06635): every key channel forgets at a rate that the token
//! sets.
//!
//! Per head, S [K, V], g in R^K:
//!
//! ```text
//! S_t = diag(exp g_t) S_{t-1} + k_t v_t^T     o_t = S_t^T q_t K^-1/2
//! g   = logsigmoid(gk_proj x) / 16            through a middle of 16 channels
//! y   = o_proj( RMSNorm_V(o) w SiLU(g_proj x) )
//! ```
//!
//! The kernels and the shell are the engine's: [`crate::shared::decayed`]. Names as in flash-linear-attention.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::{Call, Mixer};
use crate::params::Scope;
use crate::registry::{Entry, Options};
use crate::shared::MAX_CHANNELS;
use crate::shared::decayed::gated::GatedHeads;
use crate::shared::decayed::layer::{
    DecayedLayer, FORMS, Heads, Part, Projected, head_width, most_heads,
};
use crate::shared::projection::Projection;
use crate::state::{State, state_dtype};

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "gla",
    title: "Gated linear attention",
    paper: "Yang et al. 2024, arXiv 2312.06635",
    page: "docs/mixers/gla.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads; by default 4, or as many as the width allows.
    pub num_heads: Option<usize>,
    /// Channels of all keys, as a multiple of the width.
    pub expand_k: f64,
    /// Channels of all values, as a multiple of the width.
    pub expand_v: f64,
    /// The middle of the decay's projection.
    pub gate_low_rank_dim: usize,
    /// What log decays are divided by: with 16, a gate of 0 halves a channel in 16 tokens.
    pub gate_logit_normalizer: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            expand_k: 0.5,
            expand_v: 1.0,
            gate_low_rank_dim: 16,
            gate_logit_normalizer: 16.0,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    let fast = json!({
        "num_heads": 3, "expand_k": 1.0, "gate_low_rank_dim": 4, "gate_logit_normalizer": 1.0,
    });
    vec![
        Options::new(24, json!({"num_heads": 2})),
        Options::new(24, fast),
    ]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let (d, name) = (options.d_model, ENTRY.name);
    let width = |factor: f64| (d as f64 * factor) as usize;
    let (keys, values) = (width(c.expand_k), width(c.expand_v));
    let suits = |n: usize| keys.is_multiple_of(n) && values.is_multiple_of(n);
    let count = c.num_heads.unwrap_or_else(|| most_heads(4, suits));
    let widths = [
        head_width(name, keys, count)?,
        head_width(name, values, count)?,
    ];
    let heads = Heads::new(name, count, widths[0], widths[1])?;
    let rank = c.gate_low_rank_dim;
    if rank == 0 || rank > MAX_CHANNELS {
        let detail = format!("gate_low_rank_dim {rank}: use between 1 and {MAX_CHANNELS}");
        return Err(Error::config(name, detail));
    }
    if !(c.gate_logit_normalizer > 0.0 && c.gate_logit_normalizer.is_finite()) {
        let detail = "gate_logit_normalizer must be a positive number";
        return Err(Error::config(name, detail));
    }
    let gate = ["gk_proj.0", "gk_proj.1"];
    let decay = Projection::low_rank(scope, gate, [d, rank, heads.keys()], true)?;
    let part = Gated {
        gated: GatedHeads::new(scope, d, heads, c.norm_eps)?,
        normalizer: c.gate_logit_normalizer,
        decay,
    };
    Ok(Box::new(DecayedLayer {
        name,
        d_model: d,
        heads,
        device: scope.device(),
        part: Box::new(part),
    }))
}

struct Gated {
    gated: GatedHeads,
    normalizer: f64,
    decay: Projection,
}

impl Part for Gated {
    fn project(&self, x: &Tensor, _: &State, _: &Call) -> Result<Projected> {
        let logits = self.decay.heads(x, self.gated.heads.heads)?;
        let logits = logits.to_dtype(state_dtype(x.dtype()))?;
        let [q, k, v] = self.gated.qkv(x)?;
        Ok(Projected {
            q,
            k,
            v,
            decay: logits.log_sigmoid()?.mul_scalar(1.0 / self.normalizer)?,
            rest: vec![self.gated.gate(x)?],
            state: vec![],
        })
    }

    fn output(&self, o: &Tensor, rest: &[Tensor]) -> Result<Tensor> {
        self.gated.output(o, &rest[0])
    }

    fn scale(&self) -> f64 {
        self.gated.scale()
    }

    fn cost(&self) -> usize {
        self.decay.cost() + self.gated.cost()
    }
}
