//! The layer around the recurrence (see the head of [`super`]); parameter names are those of lm-engine, so that its
//! checkpoints load as they are.

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{DType, Device, Tensor};

use super::op::{Clip, Operands, m2rnn, m2rnn_step, recurrence};
use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Init, Linear, Param, Scope};
use crate::registry::{Entry, Options};
use crate::shared::MAX_CHANNELS;
use crate::shared::conv::ShortConv;
use crate::shared::delta_rule::layer::{Decay, Rate};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::{LINEAR_INIT, split_heads};
use crate::state::{State, state_dtype};

const NAME: &str = "m2rnn";

/// `Chunk` is the fused scan: many tokens in one call, one after the other.
const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "M2RNN",
    paper: "Mishra, Tan, Stoica, Gonzalez, Dao 2026, arXiv 2603.14360",
    page: "docs/mixers/m2rnn.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(M2Rnn::new(options, scope)?)),
    samples,
};

/// Where the gradient of the state is clamped: see [`Clip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipRule {
    /// [`Clip::Carry`]
    Carry,
    /// [`Clip::Total`]
    Total,
}

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// N: heads of values, gates and state weights; default: as many as fill the width.
    pub num_heads: Option<usize>,
    /// Nq: heads of queries, a divisor of N.
    pub num_q_heads: usize,
    /// Nk: heads of keys, a divisor of N.
    pub num_k_heads: usize,
    /// K: channels of a query or key.
    pub head_dim: usize,
    /// V: channels of a value.
    pub head_v_dim: usize,
    /// Taps of the short convolution; 0: none, q, k and v pass SiLU alone.
    pub conv_size: usize,
    /// Standard deviation of the state weights W at the start; nothing: the identity, as published. On word problems
    /// the identity stalls.
    pub state_weight_std: Option<f64>,
    /// Add D v to what is read.
    pub residual: bool,
    /// Clamp the gradient of the state to [-c, c] from token to token.
    pub gradient_clipping: Option<f64>,
    /// Where it is clamped.
    pub clip_rule: ClipRule,
    /// Without tanh: a linear recurrence to compare with. Nothing bounds its state.
    pub linear: bool,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: None,
            num_q_heads: 1,
            num_k_heads: 1,
            head_dim: 64,
            head_v_dim: 16,
            conv_size: 4,
            state_weight_std: None,
            residual: true,
            gradient_clipping: Some(1.0),
            clip_rule: ClipRule::Carry,
            linear: false,
            norm_eps: 1e-5,
        }
    }
}

// The laws hold gradients against finite differences: the clips of the samples are beyond reach. The linear form is
// not among them, as its state overflows under the law of extreme gates; `tests.rs` holds it against the plain form.
fn samples() -> Vec<Options> {
    let shared = json!({"num_heads": 6, "head_dim": 5, "head_v_dim": 4, "gradient_clipping": 1e9});
    let split = json!({
        "num_heads": 6, "num_q_heads": 2, "num_k_heads": 3, "head_dim": 8, "head_v_dim": 3, "conv_size": 0,
        "state_weight_std": 0.4, "residual": false, "gradient_clipping": 1e9, "clip_rule": "total",
    });
    let wide = json!({"num_heads": 1, "head_dim": 9, "head_v_dim": 18, "conv_size": 2, "gradient_clipping": null});
    [shared, split, wide]
        .into_iter()
        .map(|table| Options::new(12, table))
        .collect()
}

/// Sizes of the layer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    d_model: usize,
    heads: usize,
    q_heads: usize,
    k_heads: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Sizes {
    fn resolve(d_model: usize, c: &Config) -> Result<Sizes> {
        let heads = c.num_heads.unwrap_or(d_model / c.head_v_dim.max(1));
        let s = Sizes {
            d_model,
            heads,
            q_heads: c.num_q_heads,
            k_heads: c.num_k_heads,
            key_dim: c.head_dim,
            value_dim: c.head_v_dim,
        };
        let refuse = |detail: String| Err(Error::config(NAME, detail));
        if [d_model, heads, s.q_heads, s.k_heads, s.key_dim, s.value_dim].contains(&0) {
            return refuse("the width, head counts and head widths must be at least 1".into());
        }
        if !heads.is_multiple_of(s.q_heads) || !heads.is_multiple_of(s.k_heads) {
            let detail = format!(
                "num_heads {heads} must be a multiple of num_q_heads {} and of num_k_heads {}",
                s.q_heads, s.k_heads
            );
            return refuse(detail);
        }
        let state = heads.saturating_mul(s.key_dim).saturating_mul(s.value_dim);
        let weights = heads
            .saturating_mul(s.value_dim)
            .saturating_mul(s.value_dim);
        if state > MAX_CHANNELS || weights > MAX_CHANNELS || c.conv_size > MAX_CHANNELS {
            return refuse(format!(
                "{heads} heads of {} by {} channels, {} taps: at most {MAX_CHANNELS} numbers of state fit a layer",
                s.key_dim, s.value_dim, c.conv_size
            ));
        }
        if c.conv_size == 1 {
            return refuse(
                "conv_size 1: the short convolution needs at least 2 taps, 0 leaves it out".into(),
            );
        }
        Ok(s)
    }

    fn values(&self) -> usize {
        self.heads * self.value_dim
    }

    /// Channels of q, k and v.
    fn width(&self) -> usize {
        (self.q_heads + self.k_heads) * self.key_dim + self.values()
    }

    fn inputs(&self) -> usize {
        self.width() + self.heads + self.values()
    }
}

/// The layer.
pub struct M2Rnn {
    s: Sizes,
    input: Linear,
    conv: Option<ShortConv>,
    decay: Decay,
    state_weight: Param,
    residual: Option<Param>,
    norm: RmsNorm,
    out: Linear,
    clip: Clip,
    linear: bool,
}

impl M2Rnn {
    /// Build it with its parameters.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<M2Rnn> {
        let c: Config = options.parse(NAME)?;
        let s = Sizes::resolve(options.d_model, &c)?;
        if c.gradient_clipping.is_some_and(|c| c.is_nan() || c <= 0.0) {
            return Err(Error::config(
                NAME,
                "gradient_clipping: expected a positive number or nothing",
            ));
        }
        let clip = match (c.gradient_clipping, c.clip_rule) {
            (None, _) => Clip::None,
            (Some(c), ClipRule::Carry) => Clip::Carry(c),
            (Some(c), ClipRule::Total) => Clip::Total(c),
        };
        let start = c
            .state_weight_std
            .map_or(Init::Identity, |std| Init::Normal { std });
        let conv =
            (c.conv_size > 0).then(|| ShortConv::new(scope, &[("conv1d", s.width())], c.conv_size));
        let shape = [s.heads, s.value_dim, s.value_dim];
        Ok(M2Rnn {
            s,
            input: scope.linear(
                "input_projection",
                s.d_model,
                s.inputs(),
                false,
                LINEAR_INIT,
            )?,
            conv: conv.transpose()?,
            decay: Decay::new(
                &mut scope.sub("decay_gate"),
                &[s.heads],
                s.heads,
                Rate::FromZero,
                None,
            )?,
            state_weight: scope.weight("state_weight", &shape, start)?,
            residual: c
                .residual
                .then(|| scope.vector("D", &[s.heads, s.value_dim], Init::Const(1.0)))
                .transpose()?,
            norm: RmsNorm::new(scope, "g_norm", s.values(), c.norm_eps, false)?,
            out: scope.linear(
                "output_projection",
                s.values(),
                s.d_model,
                false,
                LINEAR_INIT,
            )?,
            clip,
            linear: c.linear,
        })
    }

    fn device(&self) -> Device {
        self.state_weight.get().device()
    }

    fn state_shapes(&self, batch: usize) -> Vec<(&'static str, Vec<usize>)> {
        let s = &self.s;
        let state = ("state", vec![batch, s.heads, s.key_dim, s.value_dim]);
        let conv = self
            .conv
            .iter()
            .map(|c| ("conv", vec![batch, c.taps - 1, s.width()]));
        std::iter::once(state).chain(conv).collect()
    }

    /// o + D v [B, T, N, V] of projected q, k, v [B, T, width] and gate logits [B, T, N]; moves the state on.
    fn mix(
        &self,
        qkv: &Tensor,
        f: &Tensor,
        state: &mut State,
        call: &Call,
        form: Form,
    ) -> Result<Tensor> {
        let s = &self.s;
        let qkv = match &self.conv {
            Some(conv) => {
                let (y, inputs) = conv.forward(qkv, state.get("conv")?, call)?;
                state.put("conv", inputs)?;
                y
            }
            None => qkv.silu()?,
        };
        let parts = qkv.split(
            -1,
            &[s.q_heads * s.key_dim, s.k_heads * s.key_dim, s.values()],
        )?;
        let v = split_heads(&parts[2], s.heads)?;
        // The only owner of a state may change it in place.
        let before = match form {
            Form::Step => state.take("state")?,
            Form::Chunk | Form::Reference => state.get("state")?.clone(),
        };
        // At padding the log of the gate is 0: the state is kept as it is.
        let log_f = call.zero_padding(&self.decay.forward(f, before.dtype())?)?;
        let x = Operands {
            q: split_heads(&parts[0], s.q_heads)?,
            k: split_heads(&parts[1], s.k_heads)?,
            v: v.clone(),
            f: log_f.exp()?,
            w: self.state_weight.cast(before.dtype())?,
            state: before,
            linear: self.linear,
        };
        let (o, after) = match form {
            Form::Reference => recurrence(&x, self.clip)?,
            Form::Chunk => m2rnn(&x, self.clip)?,
            Form::Step => m2rnn_step(x)?,
        };
        state.put("state", after)?;
        let o = o.to_dtype(v.dtype())?;
        match &self.residual {
            Some(d) => Ok(o.add(&v.mul(&d.cast(v.dtype())?)?)?),
            None => Ok(o),
        }
    }
}

impl Mixer for M2Rnn {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(NAME, x, self.s.d_model)?;
        state.expect_shapes(NAME, b, self.state_shapes(b))?;
        let form = call.form_of(self, t)?;
        let s = &self.s;
        let parts = self
            .input
            .forward(&x)?
            .split(-1, &[s.width(), s.heads, s.values()])?;
        let o = self.mix(&parts[0].contiguous()?, &parts[1], state, call, form)?;
        let y = parts[2]
            .contiguous()?
            .silu_mul(&o.reshape(&[b, t, s.values()])?)?;
        let y = self.out.forward(&self.norm.forward(&y)?)?;
        state.advance(&call.tokens(b, t));
        call.zero_padding(&y)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(NAME, batch);
        for ((name, shape), dtype) in self
            .state_shapes(batch)
            .into_iter()
            .zip([state_dtype(dtype), dtype])
        {
            state.put(name, Tensor::zeros(&shape, dtype, &self.device()))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        if tokens == 1 && !training {
            return (Form::Step, "one token, in place on the state".into());
        }
        let why = match self.device() {
            Device::Cpu => {
                "all tokens in one fused scan, one after the other: the recurrence is not associative"
            }
            _ => "token by token in tensor operations: this GPU kernel is yet to be written",
        };
        (Form::Chunk, why.into())
    }

    fn state_bytes(&self, _tokens: usize, dtype: DType) -> usize {
        let s = &self.s;
        let taps = self.conv.as_ref().map_or(0, |c| c.taps - 1);
        s.values() * s.key_dim * state_dtype(dtype).size() + taps * s.width() * dtype.size()
    }

    fn cost_per_token(&self, _context: usize) -> usize {
        let s = &self.s;
        let taps = self.conv.as_ref().map_or(0, |c| c.taps);
        // A row of the state: its product with W, the write, the blend and the read.
        let recurrence = s.heads * s.key_dim * s.value_dim * (s.value_dim + 4);
        s.d_model * (s.inputs() + s.values()) + taps * s.width() + recurrence
    }
}
