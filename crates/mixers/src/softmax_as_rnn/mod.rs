//! Softmax attention seen as a recurrent network (Mongaras, Larson 2025, arXiv 2507.23632): exp(q . k) is a sum over
//! orders of linear recurrences ([`kronecker`]), the denominator a gate on their sum. What matters of that gate is
//! found by replacing it: by a count, a learned gate, a norm.
//!
//! ```text
//! s_tj = q_t . k_j / sqrt(d)        num_t = sum_{j <= t} w(s_tj) (ig_j v_j)
//! y_t  = o_proj( pg_t norm( og_t num_t / denominator_t ) )
//! ```
//!
//! w, denominator, gates (one number for each head and token) and norm are a line of the table in [`variants`];
//! q and k carry rotary positions. Variants whose weights are a product of features ([`variants::Feature`]) have a
//! state of constant size, all others the cache of attention.

mod kronecker;
mod linear;
#[cfg(test)]
mod tests;
pub mod variants;
mod weights;

pub use kronecker::{Terms, kronecker};

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{DType, Device, Tensor};

use crate::attention::cache;
use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Init, Linear, Param, Scope};
use crate::registry::{Entry, Options};
use crate::shared::flash::op::{KeyPositions, Visibility, attend};
use crate::shared::heads::{Heads, HeadsConfig, Rope};
use crate::shared::norm::RmsNorm;
use crate::state::{State, state_dtype};
use linear::Memory;
use variants::{Denominator, Feature, Kernel, Norm, Variant};
use weights::{Attended, wide};

const NAME: &str = "softmax_as_rnn";
const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "Softmax as a recurrent network",
    paper: "Mongaras, Larson 2025, arXiv 2507.23632",
    page: "docs/mixers/softmax-as-rnn.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(Layer::new(options, scope)?)),
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A name of [`variants::VARIANTS`].
    pub variant: String,
    /// Heads; default: one for every 64 channels.
    pub num_heads: Option<usize>,
    /// Channels of a head; default: width / heads.
    pub head_dim: Option<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// P: the last order of the Taylor polynomial.
    pub order: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            variant: "gated_softmax_no_gate_L2norm_nodivS_noclamp".into(),
            num_heads: None,
            head_dim: None,
            rope_theta: 10_000.0,
            order: 80,
        }
    }
}

// Every kernel, denominator, gate and norm at least once, but for two that laws rule out: s^P of a Taylor polynomial
// overflows under extreme gates, and a detached denominator has no gradient that finite differences could show.
// `tests.rs` covers both.
fn samples() -> Vec<Options> {
    [
        "softmax_clamp_denom",
        "gated_softmax",
        "softmax_divS_norm",
        "gated_softmax_post_out_gate_L2norm_nodivS_noclamp",
        "gated_relu_no_in_gate_no_norm",
        "gated_ReLU_no_gate_L2norm_nodivS_noclamp",
        "linear_elu",
        "linear_cosine",
    ]
    .into_iter()
    .map(|variant| {
        Options::new(
            12,
            json!({"variant": variant, "num_heads": 2, "head_dim": 6}),
        )
    })
    .collect()
}

/// The layer; parameters `q_proj`, `k_proj`, `v_proj`, `o_proj`, and as the variant needs them `in_gate_proj`,
/// `out_gate_proj`, `out_norm`, `norm_const`.
pub struct Layer {
    heads: Heads,
    variant: Variant,
    order: usize,
    in_gate: Option<Linear>,
    out_gate: Option<Linear>,
    norm_weight: Option<Param>,
    norm_bias: Option<Param>,
    power: Option<Param>,
}

impl Layer {
    /// Build it with its parameters.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<Layer> {
        let c: Config = options.parse(NAME)?;
        let (variant, d) = (variants::find(NAME, &c.variant)?, options.d_model);
        let shell = HeadsConfig {
            num_heads: c.num_heads,
            head_dim: c.head_dim,
            rope: Rope::Half,
            rope_theta: c.rope_theta,
            ..HeadsConfig::default()
        };
        if c.order > 512 {
            return Err(Error::config(
                NAME,
                format!("order {}: at most 512", c.order),
            ));
        }
        let heads = Heads::new(NAME, d, &shell, scope)?;
        let init = Init::FanIn { gain: 1.0 };
        let mut gate = |name: &str, on: bool| {
            on.then(|| scope.linear(name, d, heads.heads, true, init.clone()))
                .transpose()
        };
        let (in_gate, out_gate) = (
            gate("in_gate_proj", variant.in_gate)?,
            gate("out_gate_proj", variant.out_gates != [false; 2])?,
        );
        let mut norm = scope.sub("out_norm");
        let mut vector = |name: &str, on: bool, value: f64| {
            on.then(|| norm.vector(name, &[heads.head_dim], Init::Const(value)))
                .transpose()
        };
        let weighted = matches!(variant.norm, Norm::Rms | Norm::Layer);
        let (norm_weight, norm_bias) = (
            vector("weight", weighted, 1.0)?,
            vector("bias", variant.norm == Norm::Layer, 0.0)?,
        );
        let learned = variant.denominator == Denominator::LearnedCount;
        let power =
            learned.then(|| scope.vector("norm_const", &[1, heads.heads, 1, 1], Init::Const(0.5)));
        Ok(Layer {
            variant,
            order: c.order,
            in_gate,
            out_gate,
            norm_weight,
            norm_bias,
            power: power.transpose()?,
            heads,
        })
    }

    /// A gate [B, T, H, 1] in a dtype.
    fn gate(&self, proj: &Linear, x: &Tensor, dtype: DType) -> Result<Tensor> {
        Ok(proj.forward(x)?.to_dtype(dtype)?.sigmoid()?.unsqueeze(-1)?)
    }

    /// num [B, T, H, D] and sum [B, T, H, 1] over the cache; moves it on, but not the positions.
    fn over_cache(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        state: &mut State,
        form: Form,
    ) -> Result<(Tensor, Tensor)> {
        let starts = state.positions().to_vec();
        let (k, v) = cache::append(state, &starts, k, v)?;
        let dtype = wide(q.dtype());
        let (q, k, v) = (q.to_dtype(dtype)?, k.to_dtype(dtype)?, v.to_dtype(dtype)?);
        if self.variant.kernel == Kernel::Softmax && form != Form::Reference {
            let sees = Visibility {
                query_start: starts.iter().map(|&s| s as i64).collect(),
                keys: KeyPositions::Range(vec![0; starts.len()]),
                window: None,
                sinks: 0,
            };
            let (o, _) = attend(&q, &k, &v, &sees, self.heads.scale())?;
            let [b, t, h, _] = o.dims()?;
            return Ok((o, Tensor::ones(&[b, t, h, 1], dtype, &q.device())));
        }
        let (kernel, order) = (self.variant.kernel, self.order);
        let x = Attended {
            q: &q,
            k: &k,
            v: &v,
            starts: &starts,
            kernel,
            order,
        };
        Ok(match form {
            Form::Reference => weights::plain(&x)?,
            Form::Chunk | Form::Step => weights::blocks(&x)?,
        })
    }

    /// The same with a state of constant size.
    fn recurrent(
        &self,
        feature: Feature,
        [q, k, v]: [&Tensor; 3],
        state: &mut State,
        (call, form): (&Call, Form),
    ) -> Result<(Tensor, Tensor)> {
        let mut memory = Memory {
            state: state.get("state")?.clone(),
            sum: state.get("sum")?.clone(),
        };
        let dtype = memory.state.dtype();
        let q = feature.apply(&q.to_dtype(dtype)?)?;
        // Features of padding are not 0 by themselves.
        let k = call.zero_padding(&feature.apply(&k.to_dtype(dtype)?)?)?;
        let v = v.to_dtype(dtype)?;
        let (num, sum) = match form {
            Form::Reference => linear::recurrence(&q, &k, &v, &mut memory)?,
            Form::Chunk | Form::Step => linear::chunks(&q, &k, &v, &mut memory)?,
        };
        state.put("state", memory.state)?;
        state.put("sum", memory.sum)?;
        Ok((num, sum))
    }

    /// Values that bring their denominator along.
    fn weighed(&self, v: Tensor, starts: &[usize]) -> Result<Tensor> {
        let Some(m) = &self.power else {
            return Ok(v);
        };
        // n^a = exp(a ln n)
        let a = m
            .cast(v.dtype())?
            .sigmoid()?
            .reshape(&[1, 1, self.heads.heads, 1])?;
        Ok(v.div(&counts(&v, starts)?.ln()?.mul(&a)?.exp()?)?)
    }

    /// num / denominator for tokens at positions `starts[b] + t`.
    fn divided(&self, num: Tensor, sum: &Tensor, starts: &[usize]) -> Result<Tensor> {
        Ok(match self.variant.denominator {
            Denominator::None | Denominator::LearnedCount => num,
            Denominator::Count => num.div(&counts(&num, starts)?)?,
            Denominator::Sum {
                plus,
                least,
                detached,
            } => {
                let mut sum = sum.add_scalar(plus)?;
                if least > 0.0 {
                    sum = sum.clamp(least, f64::INFINITY)?;
                }
                num.div(&if detached { sum.detach() } else { sum })?
            }
        })
    }

    /// The norm over a head's channels.
    fn normed(&self, y: Tensor) -> Result<Tensor> {
        match (self.variant.norm, &self.norm_weight, &self.norm_bias) {
            (Norm::L2, ..) => Ok(unit(&y)?),
            (Norm::Rms, Some(weight), _) => {
                // The resolution of the dtype, as torch has it.
                let eps = if y.dtype() == DType::F64 {
                    f64::EPSILON
                } else {
                    f64::from(f32::EPSILON)
                };
                RmsNorm {
                    weight: weight.clone(),
                    eps,
                    plus_one: false,
                }
                .forward(&y)
            }
            (Norm::Layer, Some(weight), Some(bias)) => {
                let centred = y.sub(&y.mean(&[-1], true)?)?;
                let variance = centred.square()?.mean(&[-1], true)?;
                let y = centred.mul(&variance.add_scalar(1e-5)?.rsqrt()?)?;
                Ok(y.mul(&weight.cast(y.dtype())?)?
                    .add(&bias.cast(y.dtype())?)?)
            }
            _ => Ok(y),
        }
    }

    fn tensors(&self, batch: usize, dtype: DType) -> Vec<(&'static str, Vec<usize>, DType)> {
        let (h, d) = (self.heads.heads, self.heads.head_dim);
        match self.variant.kernel {
            Kernel::Linear(_) => {
                let dtype = state_dtype(dtype);
                vec![
                    ("state", vec![batch, h, d, d], dtype),
                    ("sum", vec![batch, h, d, 1], dtype),
                ]
            }
            _ => vec![
                ("k", vec![batch, 0, h, d], dtype),
                ("v", vec![batch, 0, h, d], dtype),
            ],
        }
    }

    /// Refuse a state of another variant before anything is changed.
    fn expect(&self, state: &State, batch: usize) -> Result<()> {
        state.expect(NAME, batch)?;
        for (name, shape, _) in self.tensors(batch, DType::F32) {
            let found = state.get(name)?.shape();
            // A cache is as long as it is; what it is filled with stands in the positions.
            let fixed = if matches!(self.variant.kernel, Kernel::Linear(_)) {
                1
            } else {
                2
            };
            let same = found.len() == 4 && found[fixed..] == shape[fixed..];
            if !same {
                let detail =
                    format!("its {name:?} has shape {found:?}, this layer needs {shape:?}");
                return Err(Error::state(NAME, detail));
            }
        }
        Ok(())
    }
}

/// n_t [B, T, 1, 1], the tokens seen by those of x [B, T, ..].
fn counts(x: &Tensor, starts: &[usize]) -> Result<Tensor> {
    let t = x.dim(1)?;
    let n = starts
        .iter()
        .flat_map(|s| (1..=t).map(move |i| (s + i) as f64));
    let n = Tensor::from_vec(n.collect(), &[starts.len(), t, 1, 1], &x.device())?;
    Ok(n.to_dtype(x.dtype())?)
}

/// x / |x| over the last axis, 0 where x is 0.
fn unit(x: &Tensor) -> weft_tensor::Result<Tensor> {
    let squares = x.square()?.sum(&[-1], true)?;
    // The square of 1e-12, where the clamp also ends the gradient.
    x.mul(&squares.clamp(1e-24, f64::INFINITY)?.rsqrt()?)
}

impl Mixer for Layer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(NAME, x, self.heads.d_model)?;
        self.expect(state, b)?;
        let form = call.form.unwrap_or(Form::Chunk);
        let starts = state.positions().to_vec();
        let p = self.heads.project(&x, state)?;
        let dtype = wide(x.dtype());
        let v = match &self.in_gate {
            Some(proj) => p.v.mul(&self.gate(proj, &x, p.v.dtype())?)?,
            None => p.v,
        };
        let v = self.weighed(v, &starts)?;
        let (num, sum) = match self.variant.kernel {
            Kernel::Linear(feature) => {
                self.recurrent(feature, [&p.q, &p.k, &v], state, (call, form))?
            }
            _ => self.over_cache(&p.q, &p.k, &v, state, form)?,
        };
        let mut y = self.divided(num, &sum, &starts)?;
        let gate = self
            .out_gate
            .as_ref()
            .map(|proj| self.gate(proj, &x, dtype))
            .transpose()?;
        let [before, after] = self
            .variant
            .out_gates
            .map(|on| gate.as_ref().filter(|_| on));
        if let Some(gate) = before {
            y = y.mul(gate)?;
        }
        y = self.normed(y)?;
        if let Some(gate) = after {
            y = y.mul(gate)?;
        }
        state.advance(&call.tokens(b, t));
        call.zero_padding(&self.heads.output(&y.to_dtype(x.dtype())?, None)?)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(NAME, batch);
        for (name, shape, dtype) in self.tensors(batch, dtype) {
            state.put(name, Tensor::zeros(&shape, dtype, &self.heads.device()))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        let form = if tokens == 1 && !training {
            Form::Step
        } else {
            Form::Chunk
        };
        let why = match (self.variant.kernel, self.heads.device()) {
            (Kernel::Linear(_), _) => "a linear recurrence: chunks of 64 tokens as matrix products",
            (Kernel::Softmax, Device::Cpu) => {
                "softmax under a norm or alone: the tiled attention kernel"
            }
            (Kernel::Softmax, _) => "softmax by whole matrices of scores",
            _ => "blocks of 64 queries over the keys that they see, as matrix products",
        };
        (form, why.into())
    }

    fn state_bytes(&self, tokens: usize, dtype: DType) -> usize {
        let (h, d) = (self.heads.heads, self.heads.head_dim);
        match self.variant.kernel {
            Kernel::Linear(_) => h * d * (d + 1) * state_dtype(dtype).size(),
            _ => 2 * cache::capacity(tokens) * h * d * dtype.size(),
        }
    }

    fn cost_per_token(&self, context: usize) -> usize {
        let gates = [&self.in_gate, &self.out_gate]
            .into_iter()
            .flatten()
            .count();
        let seen = match self.variant.kernel {
            // What is written and read of H is what attention does with d keys.
            Kernel::Linear(_) => self.heads.head_dim,
            _ => context,
        };
        self.heads.cost_per_token(seen) + gates * self.heads.d_model * self.heads.heads
    }
}
