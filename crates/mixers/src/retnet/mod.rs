//! Retention (Sun et al. 2023, arXiv 2307.08621): linear attention whose heads forget at fixed rates, with rotary
//! positions.
//!
//! Per head h, S [K, V], q and k rotated by their positions:
//!
//! ```text
//! S_t = gamma_h S_{t-1} + k_t v_t^T     o_t = S_t^T q_t K^-1/2     gamma_h = 1 - 2^(-5-h)
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
use crate::shared::decayed::gated::GatedHeads;
use crate::shared::decayed::layer::{
    DecayedLayer, FORMS, Heads, Part, Projected, fixed_decay, head_width, most_heads,
};
use crate::shared::rope::{Layout, Rotary};
use crate::state::State;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "retnet",
    title: "Retention",
    paper: "Sun et al. 2023, arXiv 2307.08621",
    page: "docs/mixers/retnet.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads, whose rates of forgetting run from 1/32 down by halves; by default 8, or as many as the width allows.
    pub num_heads: Option<usize>,
    /// Channels of all keys, as a multiple of the width.
    pub expand_k: f64,
    /// Channels of all values, as a multiple of the width.
    pub expand_v: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            expand_k: 1.0,
            expand_v: 2.0,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    vec![
        Options::new(24, json!({"num_heads": 2})),
        Options::new(
            24,
            json!({"num_heads": 3, "expand_k": 0.5, "expand_v": 1.0, "rope_theta": 100.0}),
        ),
    ]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let (d, name) = (options.d_model, ENTRY.name);
    let width = |factor: f64| (d as f64 * factor) as usize;
    let (keys, values) = (width(c.expand_k), width(c.expand_v));
    let suits = |n: usize| keys.is_multiple_of(2 * n) && values.is_multiple_of(n);
    let count = c.num_heads.unwrap_or_else(|| most_heads(8, suits));
    let widths = [
        head_width(name, keys, count)?,
        head_width(name, values, count)?,
    ];
    let heads = Heads::new(name, count, widths[0], widths[1])?;
    if !heads.key_dim.is_multiple_of(2) {
        let detail = format!(
            "heads of {} key channels: rotary positions need an even number",
            heads.key_dim
        );
        return Err(Error::config(name, detail));
    }
    let device = scope.device();
    let rates: Vec<f64> = (0..count)
        .map(|h| (-(-5.0 - h as f64).exp2()).ln_1p())
        .collect();
    let part = Retention {
        gated: GatedHeads::new(scope, d, heads, c.norm_eps)?,
        rotary: Rotary::new(heads.key_dim, c.rope_theta, Layout::Half),
        decay: Tensor::from_vec(rates, &[count], &device)?,
    };
    Ok(Box::new(DecayedLayer {
        name,
        d_model: d,
        heads,
        device,
        part: Box::new(part),
    }))
}

struct Retention {
    gated: GatedHeads,
    rotary: Rotary,
    /// ln gamma [H].
    decay: Tensor,
}

impl Part for Retention {
    fn project(&self, x: &Tensor, state: &State, _: &Call) -> Result<Projected> {
        let [q, k, v] = self.gated.qkv(x)?;
        let (positions, clock) = (state.positions(), state.clock());
        let table = self.rotary.table(positions, clock, x.dim(1)?, &q)?;
        Ok(Projected {
            q: table.rotate(&q)?,
            k: table.rotate(&k)?,
            v,
            decay: fixed_decay(&self.decay, x)?,
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
        self.gated.cost()
    }
}
