//! Mamba-2 (Dao, Gu 2024, arXiv 2405.21060): a state space whose transition is one number for each head, which makes
//! it linear attention with a decay for each head.
//!
//! Heads h of P channels; G groups share B and C in R^N; dt > 0 one number for each head:
//!
//! ```text
//! z | x B C | dt = in_proj u     x, B, C = SiLU(short convolution with bias)     dt = softplus(dt + dt_bias)
//! S <- exp(-dt exp(A_log)) S + B (dt x)^T     y = S^T C + D x                    S [N, P]
//! out_proj( RMSNorm(y SiLU(z)) w )            the gate before the norm, which is over the channels of a group
//! ```
//!
//! The kernels and the shell are the engine's, [`crate::shared::decayed`]: k = B, q = C, v = dt x, g = dt A. Names as
//! in Hugging Face's and the authors' checkpoints.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::{Call, Mixer};
use crate::params::{Init, Linear, Param, Scope};
use crate::registry::{Entry, Options};
use crate::shared::MAX_CHANNELS;
use crate::shared::conv::ShortConv;
use crate::shared::decayed::layer::{DecayedLayer, FORMS, Heads, Part, Projected};
use crate::shared::norm::simple_rms;
use crate::shared::projection::TIME_STEP;
use crate::state::{State, state_dtype};

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "mamba2",
    title: "Mamba-2",
    paper: "Dao, Gu 2024, arXiv 2405.21060",
    page: "docs/mixers/mamba2.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads; by default twice the width, cut into heads.
    pub num_heads: Option<usize>,
    /// Channels P of a head.
    pub head_dim: usize,
    /// Channels N of B and C.
    pub state_size: usize,
    /// Groups that share B and C; they divide the heads.
    pub n_groups: usize,
    /// Taps of the short convolution.
    pub conv_size: usize,
    /// Limits of dt after its softplus.
    pub dt_limit: Option<[f64; 2]>,
    /// Groups of channels that the output norm is over; by default `n_groups`.
    pub norm_groups: Option<usize>,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            head_dim: 64,
            state_size: 128,
            n_groups: 1,
            conv_size: 4,
            dt_limit: None,
            norm_groups: None,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    let one = json!({"num_heads": 3, "head_dim": 8, "state_size": 10});
    let grouped = json!({
        "num_heads": 4, "head_dim": 6, "state_size": 5, "n_groups": 2, "conv_size": 3,
        "dt_limit": [0.01, 0.5],
    });
    vec![Options::new(24, one), Options::new(24, grouped)]
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let (d, name) = (options.d_model, ENTRY.name);
    let heads = Heads {
        heads: c.n_groups,
        value_heads: c.num_heads.unwrap_or((2 * d / c.head_dim.max(1)).max(1)),
        key_dim: c.state_size,
        value_dim: c.head_dim,
    }
    .checked(name)?;
    let refuse = |detail: String| Err(Error::config(name, detail));
    if c.conv_size < 2 || c.conv_size > MAX_CHANNELS {
        return refuse(format!(
            "conv_size {}: the short convolution needs at least 2 taps",
            c.conv_size
        ));
    }
    if c.dt_limit.is_some_and(|[lo, hi]| !(0.0 <= lo && lo < hi)) {
        return refuse("dt_limit must be two numbers, 0 <= low < high".into());
    }
    let groups = c.norm_groups.unwrap_or(c.n_groups);
    if groups == 0 || !heads.values().is_multiple_of(groups) {
        return refuse(format!(
            "{} channels do not divide into {groups} groups",
            heads.values()
        ));
    }
    let (inner, mixed) = (heads.values(), heads.values() + 2 * heads.keys());
    let init = Init::FanIn { gain: 1.0 };
    let count = [heads.value_heads];
    let part = Mamba2 {
        heads,
        groups,
        dt_limit: c.dt_limit,
        eps: c.norm_eps,
        in_proj: scope.linear("in_proj", d, inner + mixed + count[0], false, init.clone())?,
        conv: ShortConv::with_bias(scope, "conv1d", mixed, c.conv_size)?,
        dt_bias: scope.vector("dt_bias", &count, TIME_STEP)?,
        a_log: scope.vector("A_log", &count, Init::Map(|u| (1.0 + 15.0 * u).ln()))?,
        skip: scope.vector("D", &count, Init::Const(1.0))?,
        norm: scope
            .sub("norm")
            .vector("weight", &[inner], Init::Const(1.0))?,
        out_proj: scope.linear("out_proj", inner, d, false, init)?,
    };
    Ok(Box::new(DecayedLayer {
        name,
        d_model: d,
        heads,
        device: scope.device(),
        part: Box::new(part),
    }))
}

struct Mamba2 {
    heads: Heads,
    groups: usize,
    dt_limit: Option<[f64; 2]>,
    eps: f64,
    in_proj: Linear,
    conv: ShortConv,
    dt_bias: Param,
    a_log: Param,
    skip: Param,
    norm: Param,
    out_proj: Linear,
}

impl Part for Mamba2 {
    fn project(&self, u: &Tensor, state: &State, call: &Call) -> Result<Projected> {
        let (h, [b, t, _]) = (&self.heads, u.dims()?);
        let dtype = state_dtype(u.dtype());
        let widths = [h.values(), h.values() + 2 * h.keys(), h.value_heads];
        let [z, mixed, dt] = three(self.in_proj.forward(u)?.split(-1, &widths)?)?;
        let (mixed, inputs) = self.conv.forward(&mixed, state.get("conv")?, call)?;
        let [x, k, q] = three(mixed.split(-1, &[h.values(), h.keys(), h.keys()])?)?;
        let mut dt = dt
            .to_dtype(dtype)?
            .add(&self.dt_bias.cast(dtype)?)?
            .softplus()?;
        if let Some([lo, hi]) = self.dt_limit {
            dt = dt.clamp(lo, hi)?;
        }
        let x = x.reshape(&[b, t, h.value_heads, h.value_dim])?;
        let keys = |x: &Tensor| x.reshape(&[b, t, h.heads, h.key_dim]);
        Ok(Projected {
            q: keys(&q)?,
            k: keys(&k)?,
            v: x.to_dtype(dtype)?.mul(&dt.unsqueeze(-1)?)?,
            decay: dt.mul(&self.a_log.cast(dtype)?.exp()?.neg()?)?,
            rest: vec![x, z],
            state: vec![("conv", inputs)],
        })
    }

    fn output(&self, o: &Tensor, rest: &[Tensor]) -> Result<Tensor> {
        let [x, z] = rest else {
            return Err(Error::config(ENTRY.name, "lost the skip or the gate"));
        };
        let skip = self.skip.cast(o.dtype())?.unsqueeze(-1)?;
        let y = o.add(&x.to_dtype(o.dtype())?.mul(&skip)?)?;
        let y = z.silu_mul(&y.to_dtype(z.dtype())?.reshape(z.shape())?)?;
        let [b, t, inner] = y.dims()?;
        let y = simple_rms(
            &y.reshape(&[b, t, self.groups, inner / self.groups])?,
            self.eps,
        )?;
        let y = y
            .reshape(&[b, t, inner])?
            .mul(&self.norm.cast(z.dtype())?)?;
        self.out_proj.forward(&y)
    }

    fn scale(&self) -> f64 {
        1.0
    }

    fn cost(&self) -> usize {
        self.in_proj.cost() + self.conv.channels * self.conv.taps + self.out_proj.cost()
    }

    fn more_state(&self) -> Vec<(&'static str, Vec<usize>)> {
        vec![("conv", vec![self.conv.taps - 1, self.conv.channels])]
    }
}

fn three(parts: Vec<Tensor>) -> Result<[Tensor; 3]> {
    parts
        .try_into()
        .map_err(|_| Error::config(ENTRY.name, "lost a projection"))
}
