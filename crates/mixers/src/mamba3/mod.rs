//! Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569): Mamba-2 with a trapezoidal discretisation, a rotating state, biases
//! instead of the short convolution, and several keys and values at a time (MIMO).
//!
//! ```text
//! z | x | B | C | dt | A | trap | angles = in_proj u
//! dt  = softplus(dt + dt_bias)     A = min(-softplus(A), -floor)     lam = sigmoid(trap)
//! k   = Rot(theta)(RMSNorm(B) + B_bias)     q = Rot(theta)(RMSNorm(C) + C_bias)
//! y   = out_proj( (S q + D v) SiLU(z) )     v = x
//! ```
//!
//! The recurrence of S stands in [`op`], the angles in [`angles`]. With R > 1 ranks, v_r = x . mimo_x[r] and
//! z_r = z . mimo_z[r], and the outputs of the ranks are summed with weights mimo_o[r].

pub mod angles;
pub mod op;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Init, Linear, Param, Scope};
use crate::registry::{Entry, Options};
use crate::shared::decayed::CHUNK;
use crate::shared::decayed::layer::{FORMS, Heads};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::TIME_STEP;
use crate::state::{State, state_dtype};

const NAME: &str = "mamba3";
/// Ranks at most.
const MAX_RANK: usize = 64;

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "Mamba-3",
    paper: "Lahoti et al. 2026, arXiv 2603.15569",
    page: "docs/mixers/mamba3.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(Mamba3::new(options, scope)?)),
    samples,
};

/// From the projection to A < 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rate {
    /// -(1 + x) for x >= 0, else -1 / (1 - x): the authors' current code.
    Rational,
    /// -softplus(x): flash-linear-attention.
    Softplus,
}

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
    /// Groups that share B and C before their biases; they divide the heads.
    pub n_groups: usize,
    /// Keys and values of a token; above 1 the MIMO form.
    pub rank: usize,
    /// The share of N that rotates.
    pub rope_fraction: f64,
    /// From the projection to A.
    pub rate: Rate,
    /// -A is at least this.
    pub a_floor: f64,
    /// Added to the mean square in the norms of B and C.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            head_dim: 64,
            state_size: 128,
            n_groups: 1,
            rank: 1,
            rope_fraction: 0.5,
            rate: Rate::Rational,
            a_floor: 1e-4,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    let siso = json!({"num_heads": 3, "head_dim": 8, "state_size": 10});
    let mimo = json!({
        "num_heads": 4, "head_dim": 6, "state_size": 8, "n_groups": 2, "rank": 3,
        "rope_fraction": 1.0, "rate": "softplus",
    });
    vec![Options::new(24, siso), Options::new(24, mimo)]
}

/// The layer.
pub struct Mamba3 {
    d_model: usize,
    heads: Heads,
    rank: usize,
    /// S: pairs that rotate.
    pairs: usize,
    rate: Rate,
    a_floor: f64,
    in_proj: Linear,
    dt_bias: Param,
    b_norm: RmsNorm,
    c_norm: RmsNorm,
    b_bias: Param,
    c_bias: Param,
    skip: Param,
    mimo: Option<Mimo>,
    out_proj: Linear,
}

/// Weights [H, R, P] that expand x and z to ranks and sum the ranks of y.
struct Mimo {
    x: Param,
    z: Param,
    o: Param,
}

impl Mamba3 {
    /// Build it with its parameters, named as in the authors' code.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<Mamba3> {
        let c: Config = options.parse(NAME)?;
        let d = options.d_model;
        let heads = Heads {
            heads: c.n_groups,
            value_heads: c.num_heads.unwrap_or((2 * d / c.head_dim.max(1)).max(1)),
            key_dim: c.state_size,
            value_dim: c.head_dim,
        }
        .checked(NAME)?;
        if c.rank == 0 || c.rank > MAX_RANK {
            let detail = format!("rank {}: use between 1 and {MAX_RANK}", c.rank);
            return Err(Error::config(NAME, detail));
        }
        if !(0.0..=1.0).contains(&c.rope_fraction) {
            return Err(Error::config(NAME, "rope_fraction must be between 0 and 1"));
        }
        let (h, n, p, r) = (heads.value_heads, heads.key_dim, heads.value_dim, c.rank);
        let pairs = (c.rope_fraction * n as f64) as usize / 2;
        let width = 2 * heads.values() + 2 * r * heads.keys() + 3 * h + pairs;
        let init = Init::FanIn { gain: 1.0 };
        let mut bias = |name| scope.vector(name, &[h, r, n], Init::Const(1.0));
        let (b_bias, c_bias) = (bias("B_bias")?, bias("C_bias")?);
        let mimo = (r > 1).then(|| -> Result<Mimo> {
            let share = 1.0 / r as f64;
            let mut rank = |name, value| scope.weight(name, &[h, r, p], Init::Const(value));
            Ok(Mimo {
                x: rank("mimo_x", share)?,
                z: rank("mimo_z", 1.0)?,
                o: rank("mimo_o", share)?,
            })
        });
        Ok(Mamba3 {
            d_model: d,
            heads,
            rank: r,
            pairs,
            rate: c.rate,
            a_floor: c.a_floor,
            b_bias,
            c_bias,
            mimo: mimo.transpose()?,
            in_proj: scope.linear("in_proj", d, width, false, init.clone())?,
            dt_bias: scope.vector("dt_bias", &[h], TIME_STEP)?,
            b_norm: RmsNorm::new(scope, "B_norm", n, c.norm_eps, false)?,
            c_norm: RmsNorm::new(scope, "C_norm", n, c.norm_eps, false)?,
            skip: scope.vector("D", &[h], Init::Const(1.0))?,
            out_proj: scope.linear("out_proj", heads.values(), d, false, init)?,
        })
    }

    /// Names, shapes and dtypes of the state's tensors, for activations of a dtype.
    fn state_parts(&self, batch: usize, dtype: DType) -> [(&'static str, Vec<usize>, DType); 4] {
        let (h, r, dtype) = (&self.heads, self.rank, state_dtype(dtype));
        let (heads, n, p) = (h.value_heads, h.key_dim, h.value_dim);
        [
            ("state", vec![batch, heads, n, p], dtype),
            ("angle", vec![batch, heads, self.pairs], DType::F64),
            ("k", vec![batch, r, heads, n], dtype),
            ("v", vec![batch, r, heads, p], dtype),
        ]
    }

    /// B or C [B, T, R G N] normalised, for each head, biased: [B, T, R, H, N].
    fn keys(&self, x: &Tensor, norm: &RmsNorm, bias: &Param, dtype: DType) -> Result<Tensor> {
        let (h, [b, t, _]) = (&self.heads, x.dims()?);
        let x = x
            .to_dtype(dtype)?
            .reshape(&[b, t, self.rank, h.heads, h.key_dim])?;
        let x = norm.forward(&x)?;
        Ok(add_bias(&x, &bias.cast(dtype)?)?)
    }

    /// x [B, T, H P] for each rank: [B, T, R, H, P].
    fn ranks(&self, x: &Tensor, weights: Option<&Param>, dtype: DType) -> Result<Tensor> {
        let (h, [b, t, _]) = (&self.heads, x.dims()?);
        let x = x
            .to_dtype(dtype)?
            .reshape(&[b, t, 1, h.value_heads, h.value_dim])?;
        match weights {
            Some(w) => Ok(x.mul(&w.cast(dtype)?.transpose(0, 1)?)?),
            None => Ok(x),
        }
    }

    fn rate(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rate(x, self.rate)?.clamp(f64::NEG_INFINITY, -self.a_floor)?)
    }
}

/// x [B, T, R, G, N] repeated for the heads of each group, plus biases [H, R, N]: [B, T, R, H, N].
fn add_bias(x: &Tensor, bias: &Tensor) -> weft_tensor::Result<Tensor> {
    let repeat = bias.dim(0)? / x.dim(3)?;
    x.repeat_interleave(3, repeat)?.add(&bias.transpose(0, 1)?)
}

/// A before its floor.
fn rate(x: &Tensor, map: Rate) -> weft_tensor::Result<Tensor> {
    match map {
        Rate::Softplus => x.softplus()?.neg(),
        // The two branches are 1 + max(x, 0) and 1 / (1 + max(-x, 0)); the other one is 1.
        Rate::Rational => {
            let above = x.relu()?.add_scalar(1.0)?;
            let below = x.neg()?.relu()?.add_scalar(1.0)?;
            above.div(&below)?.neg()
        }
    }
}

/// (o + D v) SiLU(z), all [B, T, R, H, P], D [H].
fn gated(o: &Tensor, v: &Tensor, skip: &Tensor, z: &Tensor) -> weft_tensor::Result<Tensor> {
    let y = o.add(&v.mul(&skip.unsqueeze(-1)?)?)?;
    z.silu()?.mul(&y)
}

impl Mixer for Mamba3 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, u: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (u, b, t) = call.open(NAME, u, self.d_model)?;
        let parts = self.state_parts(b, DType::F32).into_iter();
        state.expect_shapes(NAME, b, parts.map(|(name, shape, _)| (name, shape)))?;
        let form = call.form_of(self, t)?;
        let (h, dtype) = (&self.heads, state_dtype(u.dtype()));
        let (inner, keys, heads) = (h.values(), self.rank * h.keys(), h.value_heads);
        let widths = [inner, inner, keys, keys, heads, heads, heads, self.pairs];
        let parts = self.in_proj.forward(&u)?.split(-1, &widths)?;
        let [z, x, k, q, dt, a, trap, raw] = &parts[..] else {
            return Err(Error::config(NAME, "lost a projection"));
        };
        let wide = |x: &Tensor| x.to_dtype(dtype);
        // A time step of 0 neither decays, turns nor writes.
        let dt = wide(dt)?.add(&self.dt_bias.cast(dtype)?)?.softplus()?;
        let dt = call.zero_padding(&dt)?;
        let own = wide(trap)?.sigmoid()?.mul(&dt)?;
        let theta = angles::accumulate(&raw.unsqueeze(2)?, &dt, state.get("angle")?)?;
        let k = angles::turn(&self.keys(k, &self.b_norm, &self.b_bias, dtype)?, &theta)?;
        let q = angles::turn(&self.keys(q, &self.c_norm, &self.c_bias, dtype)?, &theta)?;
        let v = self.ranks(x, self.mimo.as_ref().map(|m| &m.x), dtype)?;
        let operands = op::Operands {
            decay: self.rate(&wide(a)?)?.mul(&dt)?,
            before: dt.sub(&own)?,
            own,
            state: state.get("state")?.clone(),
            last: [state.get("k")?.clone(), state.get("v")?.clone()],
            q,
            k,
            v,
        };
        let (o, after) = match form {
            Form::Reference => op::recurrence(&operands)?,
            Form::Chunk | Form::Step => op::chunks(&operands, call.chunk)?,
        };
        let lengths = call.tokens(b, t);
        let [last_k, last_v] = &operands.last;
        state.put("k", at_end(last_k, &operands.k, &lengths)?)?;
        state.put("v", at_end(last_v, &operands.v, &lengths)?)?;
        state.put("angle", theta.select(1, t - 1)?.contiguous()?)?;
        state.put("state", after)?;

        let z = self.ranks(z, self.mimo.as_ref().map(|m| &m.z), dtype)?;
        let y = gated(&o, &operands.v, &self.skip.cast(dtype)?, &z)?;
        let y = match &self.mimo {
            Some(m) => y
                .mul(&m.o.cast(dtype)?.transpose(0, 1)?)?
                .sum(&[2], false)?,
            None => y.select(2, 0)?,
        };
        let y = self
            .out_proj
            .forward(&y.flatten(2, 3)?.to_dtype(u.dtype())?)?;
        state.advance(&lengths);
        call.zero_padding(&y)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let device = self.skip.get().device();
        let mut state = State::new(NAME, batch);
        for (name, shape, dtype) in self.state_parts(batch, dtype) {
            state.put(name, Tensor::zeros(&shape, dtype, &device))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        let gpu = match self.skip.get().device() {
            Device::Cpu => "",
            _ => ", as matrix products: this GPU kernel is yet to be written",
        };
        if tokens == 1 && !training {
            return (Form::Step, format!("one token, as a chunk of its own{gpu}"));
        }
        (Form::Chunk, format!("chunks of {CHUNK} keys{gpu}"))
    }

    fn state_bytes(&self, _tokens: usize, dtype: DType) -> usize {
        let parts = self.state_parts(1, dtype).into_iter();
        parts
            .map(|(_, shape, dtype)| shape.iter().product::<usize>() * dtype.size())
            .sum()
    }

    fn cost_per_token(&self, _context: usize) -> usize {
        let h = &self.heads;
        let state = 2 * self.rank * h.value_heads * h.key_dim * h.value_dim;
        self.in_proj.cost() + self.out_proj.cost() + state
    }
}

/// The last valid row of x [B, T, ..] in each sequence, or the one before all of them.
fn at_end(before: &Tensor, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let t = x.dim(1)?;
    if lengths.iter().all(|&n| n == t) {
        return Ok(x.select(1, t - 1)?.contiguous()?);
    }
    let rows = Tensor::cat(&[&before.unsqueeze(1)?, x], 1)?.flatten(0, 1)?;
    let index = lengths
        .iter()
        .enumerate()
        .map(|(row, n)| (row * (t + 1) + n) as i64)
        .collect();
    let index = Tensor::from_vec(index, &[lengths.len()], &x.device())?;
    Ok(rows.index_select(0, &index)?)
}
