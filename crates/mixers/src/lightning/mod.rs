//! Lightning Attention as the token mixer of TransNormerLLM (Qin et al. 2023, arXiv 2307.14995; 2024, arXiv
//! 2401.04658 and 2405.17381): linear attention whose heads forget at fixed rates, exact in tiles, without scale and
//! without normaliser.
//!
//! Per head h of layer l, S [K, V]:
//!
//! ```text
//! q | k | v | u = qkvu_proj x      q, k = SiLU, in the first layer with LRPE
//! S_t = exp(-s_hl) S_{t-1} + k_t v_t^T     o_t = S_t^T q_t
//! y   = out_proj( u . SRMS_D(o) )          the norm over all heads together, without weights
//! ```
//!
//! The slopes s stand in [`slopes`]; they fall to nearly 0 from the first layer to the last. The kernels and the
//! shell are the engine's: [`crate::shared::decayed`].

mod lrpe;
pub mod slopes;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::{Call, Mixer};
use crate::params::{Init, Linear, Scope};
use crate::registry::{Entry, Options};
use crate::shared::decayed::layer::{
    DecayedLayer, FORMS, Heads, Part, Projected, fixed_decay, head_width, most_heads,
};
use crate::shared::norm::simple_rms;
use crate::shared::projection::split_heads;
use crate::state::State;
use lrpe::Lrpe;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "lightning",
    title: "Lightning Attention",
    paper: "Qin et al. 2024, arXiv 2405.17381",
    page: "docs/mixers/lightning.md",
    forms: FORMS,
    build,
    samples,
};

/// Which layers have LRPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Layer 0.
    First,
    /// Every layer.
    All,
    /// None.
    None,
}

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads; by default of 128 channels, or of 64 in layers narrower than 1024.
    pub num_heads: Option<usize>,
    /// Layers with LRPE, whose keys and state are twice as wide.
    pub lrpe: Positions,
    /// Factor on the slopes; 0 forgets nothing.
    pub slope_scale: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            lrpe: Positions::First,
            slope_scale: 1.0,
            norm_eps: 1e-6,
        }
    }
}

fn samples() -> Vec<Options> {
    vec![
        Options::new(24, json!({"num_heads": 3})).at(0, 3),
        Options::new(24, json!({"num_heads": 2})).at(2, 3),
        Options::new(
            24,
            json!({"num_heads": 2, "lrpe": "all", "slope_scale": 0.0}),
        )
        .at(1, 3),
        Options::new(24, json!({"num_heads": 1, "lrpe": "none"})),
    ]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let (d, name) = (options.d_model, ENTRY.name);
    let most = (d / if d < 1024 { 64 } else { 128 }).max(1);
    let count = c
        .num_heads
        .unwrap_or_else(|| most_heads(most, |n| d.is_multiple_of(n)));
    let width = head_width(name, d, count)?;
    if !(c.slope_scale >= 0.0 && c.slope_scale.is_finite()) {
        let detail = "slope_scale must be a number of at least 0";
        return Err(Error::config(name, detail));
    }
    let lrpe = match c.lrpe {
        Positions::First => options.layer == 0,
        Positions::All => true,
        Positions::None => false,
    };
    let heads = Heads::new(name, count, if lrpe { 2 * width } else { width }, width)?;
    let device = scope.device();
    let factor = -c.slope_scale * slopes::layer_factor(options.layer, options.layers);
    let decay = slopes::slopes(count)
        .into_iter()
        .map(|s| factor * s)
        .collect();
    let init = Init::Normal { std: 0.02 };
    let part = Lightning {
        count,
        eps: c.norm_eps,
        qkvu_proj: scope.linear("qkvu_proj", d, 4 * d, false, init.clone())?,
        out_proj: scope.linear("out_proj", d, d, false, init)?,
        lrpe: lrpe.then(|| Lrpe::new(scope, count, width)).transpose()?,
        decay: Tensor::from_vec(decay, &[count], &device)?,
    };
    Ok(Box::new(DecayedLayer {
        name,
        d_model: d,
        heads,
        device,
        part: Box::new(part),
    }))
}

struct Lightning {
    count: usize,
    eps: f64,
    qkvu_proj: Linear,
    out_proj: Linear,
    lrpe: Option<Lrpe>,
    /// -slopes [H].
    decay: Tensor,
}

impl Part for Lightning {
    fn project(&self, x: &Tensor, state: &State, _: &Call) -> Result<Projected> {
        let [_, t, d] = x.dims()?;
        let parts = self.qkvu_proj.forward(x)?.split(-1, &[d; 4])?;
        let mut q = split_heads(&parts[0].silu()?, self.count)?;
        let mut k = split_heads(&parts[1].silu()?, self.count)?;
        if let Some(lrpe) = &self.lrpe {
            let table = lrpe.table(state.positions(), t, x)?;
            (q, k) = (lrpe::turn(&q, &table)?, lrpe::turn(&k, &table)?);
        }
        Ok(Projected {
            q,
            k,
            v: split_heads(&parts[2], self.count)?,
            decay: fixed_decay(&self.decay, x)?,
            rest: vec![parts[3].clone()],
            state: vec![],
        })
    }

    fn output(&self, o: &Tensor, rest: &[Tensor]) -> Result<Tensor> {
        let o = simple_rms(&o.flatten(2, 3)?, self.eps)?;
        self.out_proj.forward(&rest[0].mul(&o)?)
    }

    fn scale(&self) -> f64 {
        1.0
    }

    fn cost(&self) -> usize {
        self.qkvu_proj.cost() + self.out_proj.cost()
    }
}
