//! HGRN-2 (Qin et al. 2024, arXiv 2404.07904): gated linear attention whose key is what the forget gate lets go, so
//! that it needs no key projection; the gate has a lower bound that grows with depth.
//!
//! Per head, S [K, V], g in R^K:
//!
//! ```text
//! S_t = diag(exp g_t) S_{t-1} + (1 - exp g_t) v_t^T     o_t = S_t^T q_t K^-1/2
//! q   = SiLU(q_proj x)     v = i_proj x     exp g = lb + (1 - lb) sigmoid(f_proj x)
//! y   = o_proj( RMSNorm_D(o) w )            the norm over all heads together, no output gate
//! ```
//!
//! The kernels and the shell are the engine's: [`crate::shared::decayed`]; the bound is
//! [`crate::shared::lower_bound`]. Names as in flash-linear-attention.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::Result;
use crate::mixer::{Call, Mixer};
use crate::params::{Linear, Scope};
use crate::registry::{Entry, Options};
use crate::shared::decayed::layer::{DecayedLayer, FORMS, Heads, Part, Projected, head_width};
use crate::shared::lower_bound::{Bound, ForgetGate};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::{LINEAR_INIT, split_heads};
use crate::state::State;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "hgrn2",
    title: "HGRN-2",
    paper: "Qin et al. 2024, arXiv 2404.07904",
    page: "docs/mixers/hgrn2.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads; by default the width by `expand_ratio`.
    pub num_heads: Option<usize>,
    /// Key channels of a head; by default 128, or the width if that is smaller.
    pub expand_ratio: Option<usize>,
    /// The forget gate's lower bound.
    pub lower_bound: Bound,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            expand_ratio: None,
            lower_bound: Bound::Shared,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    vec![
        Options::new(24, json!({"num_heads": 2})),
        Options::new(24, json!({"num_heads": 3, "expand_ratio": 4})).at(2, 3),
        Options::new(24, json!({"expand_ratio": 6, "lower_bound": "own"})).at(1, 2),
        Options::new(24, json!({"num_heads": 1, "lower_bound": "none"})).at(1, 2),
    ]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let (d, name) = (options.d_model, ENTRY.name);
    let (count, key_dim) = match (c.num_heads, c.expand_ratio) {
        (Some(heads), Some(k)) => (heads, k),
        (Some(heads), None) => (heads, head_width(name, d, heads)?),
        (None, k) => {
            let k = k.unwrap_or(128).clamp(1, d.max(1));
            (d / k, k)
        }
    };
    let heads = Heads::new(name, count, key_dim, head_width(name, d, count)?)?;
    let mut linear = |name, input, output| scope.linear(name, input, output, false, LINEAR_INIT);
    let part = Hgrn2 {
        heads,
        q_proj: linear("q_proj", d, heads.keys())?,
        f_proj: linear("f_proj", d, heads.keys())?,
        i_proj: linear("i_proj", d, d)?,
        o_proj: linear("o_proj", d, d)?,
        gate: ForgetGate::new(scope, c.lower_bound, options, heads.keys())?,
        norm: RmsNorm::new(scope, "g_norm", d, c.norm_eps, false)?,
    };
    Ok(Box::new(DecayedLayer {
        name,
        d_model: d,
        heads,
        device: scope.device(),
        part: Box::new(part),
    }))
}

struct Hgrn2 {
    heads: Heads,
    q_proj: Linear,
    f_proj: Linear,
    i_proj: Linear,
    o_proj: Linear,
    gate: ForgetGate,
    norm: RmsNorm,
}

impl Part for Hgrn2 {
    fn project(&self, x: &Tensor, _: &State, _: &Call) -> Result<Projected> {
        let h = self.heads.heads;
        let (decay, k) = self.gate.forward(&self.f_proj.forward(x)?)?;
        Ok(Projected {
            q: split_heads(&self.q_proj.forward(x)?.silu()?, h)?,
            k: split_heads(&k, h)?,
            v: split_heads(&self.i_proj.forward(x)?, h)?,
            decay: split_heads(&decay, h)?,
            rest: vec![],
            state: vec![],
        })
    }

    fn output(&self, o: &Tensor, _: &[Tensor]) -> Result<Tensor> {
        self.o_proj.forward(&self.norm.forward(&o.flatten(2, 3)?)?)
    }

    fn scale(&self) -> f64 {
        (self.heads.key_dim as f64).powf(-0.5)
    }

    fn cost(&self) -> usize {
        let parts = [&self.q_proj, &self.f_proj, &self.i_proj, &self.o_proj];
        parts.into_iter().map(Linear::cost).sum()
    }
}
