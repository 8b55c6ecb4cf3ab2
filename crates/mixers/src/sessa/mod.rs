//! Sessa (Horbatko 2026, arXiv 2604.18580): attention inside a recurrent feedback path. Each position adds to what
//! attention reads from the input a gated read of the mixer's own past outputs.
//!
//! ```text
//! a, g = split(W_in x)        a <- GELU(a)                       x [B, T, D], H heads of d = D / H channels
//! f_t  = W_o sum_{j <= t} softmax_j( q_t . k_j / sqrt(d) ) v_j    q, k, v of a, rotated
//! A_tj = softmax_{j < t}( qb_t . kb_j / sqrt(D) )                 one head over the whole width, no positions
//! s_t  = f_t + gamma_t sum_{j < t} A_tj s_j                       gamma_t = gamma_max tanh(b + c . a_t)
//! y    = W_out (s g)
//! ```
//!
//! s is the solution of (I - B) s = f with B = gamma A strictly lower triangular ([`feedback`]). The norm in front and
//! the residual around it belong to the block, as for every mixer.

mod feedback;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{DType, Device, Tensor};

use crate::attention::cache;
use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Init, Linear, Param, Scope};
use crate::registry::{Entry, Options};
use crate::shared::MAX_CHANNELS;
use crate::shared::flash::op::{KeyPositions, Visibility, attend, plain};
use crate::shared::rope::{Layout, Rotary};
use crate::state::{State, state_dtype};
use feedback::Past;

const NAME: &str = "sessa";
const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "Sessa",
    paper: "Horbatko 2026, arXiv 2604.18580",
    page: "docs/mixers/sessa.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(Sessa::new(options, scope)?)),
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// H: query heads, a divisor of the width; default: one for every 64 channels.
    pub num_heads: Option<usize>,
    /// Key and value heads, a divisor of H; default: H.
    pub num_kv_heads: Option<usize>,
    /// Largest gain of the feedback, in (0, 1).
    pub gamma_max: f64,
    /// Rotary positions on q and k.
    pub rope: bool,
    /// Base of their frequencies.
    pub rope_theta: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            num_kv_heads: None,
            gamma_max: 0.999,
            rope: true,
            rope_theta: 10_000.0,
        }
    }
}

// Without rotary positions the bias of k has no gradient at all, and the laws would compare rounding with rounding.
fn samples() -> Vec<Options> {
    [
        json!({"num_heads": 1, "gamma_max": 0.7}),
        json!({"num_heads": 4, "num_kv_heads": 2}),
    ]
    .into_iter()
    .map(|table| Options::new(16, table))
    .collect()
}

/// The layer, with the parameter names of the authors' code.
pub struct Sessa {
    d_model: usize,
    heads: usize,
    kv_heads: usize,
    gamma_max: f64,
    rotary: Option<Rotary>,
    w_in: Linear,
    w_out: Linear,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    feedback: Linear,
    out_proj: Option<Linear>,
    gamma_bias: Param,
    gamma_ctx: Linear,
}

impl Sessa {
    /// Build it with its parameters.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<Sessa> {
        let (c, d): (Config, usize) = (options.parse(NAME)?, options.d_model);
        let heads = c.num_heads.unwrap_or((d / 64).max(1));
        let kv_heads = c.num_kv_heads.unwrap_or(heads);
        let refuse = |detail: String| Err(Error::config(NAME, detail));
        if d == 0 || d > MAX_CHANNELS || heads == 0 || kv_heads == 0 {
            return refuse(format!(
                "width {d}, {heads} heads, {kv_heads} key heads: all must be at least 1"
            ));
        }
        if !d.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) {
            return refuse(format!(
                "num_heads {heads} must divide the width {d}, num_kv_heads {kv_heads} must divide num_heads"
            ));
        }
        let head_dim = d / heads;
        if c.rope && (!head_dim.is_multiple_of(2) || c.rope_theta.is_nan() || c.rope_theta <= 0.0) {
            return refuse(format!(
                "rotary positions need heads of an even number of channels, not {head_dim}, and rope_theta above 0"
            ));
        }
        if !(c.gamma_max > 0.0 && c.gamma_max < 1.0) {
            return refuse(format!(
                "gamma_max {}: expected a number in (0, 1)",
                c.gamma_max
            ));
        }
        let init = || Init::FanIn { gain: 1.0 };
        let (w_in, w_out) = (
            scope.linear("W_in", d, 2 * d, true, init())?,
            scope.linear("W_out", d, d, true, init())?,
        );
        let mut m = scope.sub("mixer");
        let kv = kv_heads * head_dim;
        Ok(Sessa {
            d_model: d,
            heads,
            kv_heads,
            gamma_max: c.gamma_max,
            rotary: c
                .rope
                .then(|| Rotary::new(head_dim, c.rope_theta, Layout::Adjacent)),
            w_in,
            w_out,
            q_proj: m.linear("q_proj", d, d, true, init())?,
            k_proj: m.linear("k_proj", d, kv, true, init())?,
            v_proj: m.linear("v_proj", d, kv, true, init())?,
            feedback: m.linear("proj_fb", d, 2 * d, true, init())?,
            out_proj: (heads > 1)
                .then(|| m.linear("out_proj", d, d, false, init()))
                .transpose()?,
            gamma_bias: m.vector("gamma_bias", &[], Init::Const(1.0))?,
            gamma_ctx: m.linear("gamma_ctx", d, 1, false, init())?,
        })
    }

    fn head_dim(&self) -> usize {
        self.d_model / self.heads
    }

    fn device(&self) -> Device {
        self.w_in.weight.get().device()
    }

    /// What each token keeps: name, heads, channels, dtype.
    fn caches(&self, dtype: DType) -> [(&'static str, usize, usize, DType); 4] {
        let d = self.head_dim();
        [
            ("k", self.kv_heads, d, dtype),
            ("v", self.kv_heads, d, dtype),
            ("kb", 1, self.d_model, dtype),
            ("s", 1, self.d_model, state_dtype(dtype)),
        ]
    }

    /// f [B, T, D] of a [B, T, D]; moves the cache of keys and values on.
    fn attention(
        &self,
        a: &Tensor,
        state: &mut State,
        starts: &[usize],
        form: Form,
    ) -> Result<Tensor> {
        let ([b, t, _], d) = (a.dims()?, self.head_dim());
        let split = |y: Tensor, heads: usize| y.reshape(&[b, t, heads, d]);
        let mut q = split(self.q_proj.forward(a)?, self.heads)?;
        let mut k = split(self.k_proj.forward(a)?, self.kv_heads)?;
        let v = split(self.v_proj.forward(a)?, self.kv_heads)?;
        if let Some(rotary) = &self.rotary {
            let table = rotary.table(starts, None, t, &q)?;
            (q, k) = (table.rotate(&q)?, table.rotate(&k)?);
        }
        let k = cache::extend(state, "k", starts, &k)?;
        let v = cache::extend(state, "v", starts, &v)?;
        let sees = Visibility {
            query_start: starts.iter().map(|&s| s as i64).collect(),
            keys: KeyPositions::Range(vec![0; b]),
            window: None,
            sinks: 0,
        };
        let run = if form == Form::Reference {
            plain
        } else {
            attend
        };
        let (f, _) = run(&q, &k, &v, &sees, (d as f64).powf(-0.5))?;
        let f = f.reshape(&[b, t, self.d_model])?;
        match &self.out_proj {
            Some(out) => out.forward(&f),
            None => Ok(f),
        }
    }
}

impl Mixer for Sessa {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(NAME, x, self.d_model)?;
        state.expect(NAME, b)?;
        for (name, heads, channels, _) in self.caches(x.dtype()) {
            let found = state.get(name)?.shape();
            if found.len() != 4 || found[2..] != [heads, channels] {
                let detail = format!(
                    "its {name:?} has shape {found:?}, this layer needs [{b}, .., {heads}, {channels}]"
                );
                return Err(Error::state(NAME, detail));
            }
        }
        let (d, dtype) = (self.d_model, state_dtype(x.dtype()));
        let form = call
            .form
            .unwrap_or_else(|| self.plan(t, weft_tensor::grad_enabled()).0);
        let starts = state.positions().to_vec();
        let parts = self.w_in.forward(&x)?.split(-1, &[d, d])?;
        let a = parts[0].gelu()?;
        let f = self.attention(&a, state, &starts, form)?.to_dtype(dtype)?;
        let keys = self.feedback.forward(&a)?.split(-1, &[d, d])?;
        let gamma = self.gamma_ctx.forward(&a)?.to_dtype(dtype)?;
        let gamma = gamma
            .add(&self.gamma_bias.cast(dtype)?)?
            .tanh()?
            .mul_scalar(self.gamma_max)?;
        let past = Past::new(
            &state.get("kb")?.squeeze(2)?,
            &state.get("s")?.squeeze(2)?,
            &starts,
        )?;
        let (q, k) = (keys[0].to_dtype(dtype)?, keys[1].to_dtype(dtype)?);
        let run = match form {
            Form::Reference => feedback::recurrence,
            Form::Chunk | Form::Step => feedback::blocks,
        };
        let s = run(&f, &gamma, (&q, &k), &past)?;
        cache::extend(state, "kb", &starts, &keys[1].unsqueeze(2)?)?;
        cache::extend(state, "s", &starts, &s.unsqueeze(2)?)?;
        state.advance(&call.tokens(b, t));
        let y = s.to_dtype(x.dtype())?.mul(&parts[1])?;
        call.zero_padding(&self.w_out.forward(&y)?)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(NAME, batch);
        for (name, heads, channels, dtype) in self.caches(dtype) {
            let shape = [batch, 0, heads, channels];
            state.put(name, Tensor::zeros(&shape, dtype, &self.device()))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        if tokens == 1 && !training {
            return (
                Form::Step,
                "one token: appended to the caches in place, each read once".into(),
            );
        }
        let why =
            "attention in tiles; the feedback in blocks of 64 tokens, one triangular system each";
        (Form::Chunk, why.into())
    }

    fn state_bytes(&self, tokens: usize, dtype: DType) -> usize {
        let token = self
            .caches(dtype)
            .map(|(_, heads, channels, dtype)| heads * channels * dtype.size());
        cache::capacity(tokens) * token.into_iter().sum::<usize>()
    }

    fn cost_per_token(&self, context: usize) -> usize {
        let (d, kv) = (self.d_model, self.kv_heads * self.head_dim());
        let out = if self.heads > 1 { d * d } else { 0 };
        d * (6 * d + 2 * kv + 1) + out + 4 * d * context
    }
}
