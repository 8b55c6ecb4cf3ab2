//! The layer around the rule, the same in all mixers of the family:
//!
//! ```text
//! q | k | v = SiLU(short convolution(projections of x))             [B, T, 2 H K + HV V]
//! g  = -exp(A_log) softplus(f + dt_bias)   or   lower_bound sigmoid(exp(A_log) (f + dt_bias))
//! b, w = sigmoid(projections of x); b (and w, if it is the same gate) times 2 for negative eigenvalues
//! o  = the delta rule
//! y  = out_proj( RMSNorm_V(o) norm.weight act(gate) )
//! ```
//!
//! g, b, w and the state are f32 (f64 for f64 activations). A mixer brings its [`Projections`]: what they are
//! called, how they are laid out and how fine its gates are.

use weft_tensor::{DType, Device, Tensor};

use super::decay::{log_decay, spread};
use super::gpu::{self, layer_step};
use super::step_gpu;
use super::{CHUNK, Operands, delta_rule, delta_rule_step, recurrence};
use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Init, Param, Scope};
use crate::shared::MAX_CHANNELS;
use crate::shared::conv::ShortConv;
use crate::shared::norm::{RmsNorm, sigmoid_mul};
use crate::shared::projection::{Projection, TIME_STEP, split_heads};
use crate::state::{State, state_dtype};

/// The forms of every mixer of the family.
pub const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// Head counts and widths.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// H: query and key heads.
    pub heads: usize,
    /// HV: value heads, a multiple of H.
    pub value_heads: usize,
    /// K
    pub key_dim: usize,
    /// V
    pub value_dim: usize,
    /// Taps of the short convolution.
    pub taps: usize,
}

impl Heads {
    /// Fills in what a config leaves open: heads of 128 channels (64 in layers narrower than 1024), as many as
    /// fill the width; value heads like key heads.
    pub fn resolve(
        mixer: &str,
        d_model: usize,
        num_heads: Option<usize>,
        num_v_heads: Option<usize>,
        head_dim: Option<usize>,
        head_v_dim: Option<usize>,
        conv_size: usize,
    ) -> Result<Heads> {
        let key_dim = head_dim.unwrap_or(if d_model < 1024 { 64.min(d_model) } else { 128 });
        let heads = num_heads.unwrap_or_else(|| (d_model / key_dim.max(1)).max(1));
        let value_heads = num_v_heads.unwrap_or(heads);
        let value_dim = head_v_dim.unwrap_or(key_dim);
        let refuse = |detail: String| Err(Error::config(mixer, detail));
        if d_model == 0 || heads == 0 || value_heads == 0 || key_dim == 0 || value_dim == 0 {
            return refuse("the width, head counts and head widths must be at least 1".into());
        }
        if !value_heads.is_multiple_of(heads) {
            return refuse(format!(
                "num_v_heads {value_heads} is not a multiple of num_heads {heads}"
            ));
        }
        let channels = value_heads.saturating_mul(key_dim.max(value_dim));
        if channels > MAX_CHANNELS || conv_size > MAX_CHANNELS {
            return refuse(format!(
                "{value_heads} value heads of {key_dim} by {value_dim} channels, {conv_size} taps: \
                 at most {MAX_CHANNELS} channels fit a layer"
            ));
        }
        if conv_size < 2 {
            return refuse(format!(
                "conv_size {conv_size}: the short convolution needs at least 2 taps"
            ));
        }
        Ok(Heads {
            heads,
            value_heads,
            key_dim,
            value_dim,
            taps: conv_size,
        })
    }

    /// Channels of all queries, and of all keys.
    pub fn keys(&self) -> usize {
        self.heads * self.key_dim
    }

    /// Channels of all values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of q, k and v together.
    pub fn width(&self) -> usize {
        2 * self.keys() + self.values()
    }
}

/// What activates the output gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputGate {
    /// x sigmoid(x).
    Silu,
    /// sigmoid(x).
    Sigmoid,
}

/// All projections of x [B, T, D], before any activation.
pub struct Projected {
    /// q, k, v one after the other [B, T, 2 H K + HV V].
    pub qkv: Tensor,
    /// Decay logits f [B, T, heads] or [B, T, heads, K]; `None`: nothing decays.
    pub decay: Option<Tensor>,
    /// Erase gate logits [B, T, HV] or [B, T, H, K].
    pub erase: Tensor,
    /// Write gate logits [B, T, HV, V]; `None`: one gate does both.
    pub write: Option<Tensor>,
    /// Output gate [B, T, HV V]; `None`: the output is not gated.
    pub gate: Option<Tensor>,
}

/// A mixer's own part of the layer.
pub trait Projections: Send + Sync {
    /// Project x [B, T, D].
    fn project(&self, x: &Tensor) -> Result<Projected>;

    /// Multiply-adds for one token.
    fn cost(&self) -> usize;
}

/// Where the decay rates exp(A_log) start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Uniform in (0, 16).
    FromZero,
    /// Uniform in (1, 16).
    FromOne,
}

/// From decay logits to log decays g <= 0, in the state's dtype.
pub struct Decay {
    pub(super) a_log: Param,
    pub(super) dt_bias: Param,
    /// `Some(l)`: l sigmoid(exp(A_log) (f + dt_bias)), which never goes below l.
    pub(super) lower_bound: Option<f64>,
}

impl Decay {
    /// `A_log` of shape `a_log` (one number for each head) from `rate`, `dt_bias` [heads * width] the
    /// inverse softplus of a time step that is log-uniform in [1e-3, 0.1].
    pub fn new(
        scope: &mut Scope,
        a_log: &[usize],
        dt_bias: usize,
        rate: Rate,
        lower_bound: Option<f64>,
    ) -> Result<Decay> {
        let rate: fn(f64) -> f64 = match rate {
            Rate::FromZero => |u| (16.0 * u).max(1e-4).ln(),
            Rate::FromOne => |u| (1.0 + 15.0 * u).ln(),
        };
        Ok(Decay {
            a_log: scope.vector("A_log", a_log, Init::Map(rate))?,
            dt_bias: scope.vector("dt_bias", &[dt_bias], TIME_STEP)?,
            lower_bound,
        })
    }

    /// Log decays of logits f [B, T, heads] or [B, T, heads, width].
    pub fn forward(&self, f: &Tensor, dtype: DType) -> Result<Tensor> {
        let f = match f.device() {
            Device::Cpu => f.to_dtype(dtype)?,
            _ => f.clone(),
        };
        // One bias for each logit, one rate for each head.
        let bias = self.dt_bias.cast(dtype)?.reshape(&f.shape()[2..])?;
        let a_log = self.a_log.cast(dtype)?.reshape(&f.shape()[2..3])?;
        let Some(bound) = self.lower_bound else {
            return Ok(log_decay(&f, &bias, &a_log)?);
        };
        let rate = spread(&a_log.exp()?, &f)?;
        let gate = Tensor::fused("log_decay", &[&f, &bias, &rate], dtype, |v| {
            ((v[0].clone() + v[1].clone()) * v[2].clone()).sigmoid() * bound
        });
        Ok(gate?)
    }
}

/// Separate projections `q_proj`, `k_proj`, `v_proj`, each with its own `*_conv1d`: what most checkpoints have.
pub fn separate_qkv(
    scope: &mut Scope,
    d_model: usize,
    h: &Heads,
) -> Result<(Projection, ShortConv)> {
    let parts = |names: [&'static str; 3]| {
        [
            (names[0], h.keys()),
            (names[1], h.keys()),
            (names[2], h.values()),
        ]
    };
    let qkv = Projection::stacked(scope, d_model, &parts(["q_proj", "k_proj", "v_proj"]))?;
    let conv = ShortConv::new(scope, &parts(["q_conv1d", "k_conv1d", "v_conv1d"]), h.taps)?;
    Ok((qkv, conv))
}

/// The layer. See the head of this file.
pub struct DeltaLayer {
    /// The registry name.
    pub name: &'static str,
    /// D.
    pub d_model: usize,
    /// Head counts and widths.
    pub heads: Heads,
    /// The mixer's own part.
    pub projections: Box<dyn Projections>,
    /// Over q, k and v.
    pub conv: ShortConv,
    /// From logits to decays; `None`: nothing decays.
    pub decay: Option<Decay>,
    /// Erase gate in (0, 2).
    pub allow_neg_eigval: bool,
    /// Over the columns of each value head.
    pub norm: RmsNorm,
    /// Activation of the output gate.
    pub output_gate: OutputGate,
    /// [D, HV V].
    pub out: Projection,
}

impl DeltaLayer {
    fn state_shapes(&self, batch: usize) -> [(&'static str, Vec<usize>); 2] {
        let h = &self.heads;
        [
            ("state", vec![batch, h.value_heads, h.key_dim, h.value_dim]),
            ("conv", vec![batch, h.taps - 1, h.width()]),
        ]
    }

    /// o [B, T, HV, V] normalised and gated [B, T, HV V].
    fn gated(&self, o: &Tensor, p: &Projected) -> Result<Tensor> {
        let o = self.norm.forward(o)?;
        let gate = p.gate.as_ref();
        let gate = gate.map(|g| split_heads(g, self.heads.value_heads));
        let y = match (gate.transpose()?, self.output_gate) {
            (None, _) => o,
            (Some(gate), OutputGate::Silu) => gate.silu_mul(&o)?,
            (Some(gate), OutputGate::Sigmoid) => sigmoid_mul(&gate, &o)?,
        };
        let [b, t, ..] = *y.shape() else {
            return Ok(y);
        };
        Ok(y.reshape(&[b, t, self.heads.values()])?)
    }

    /// The rule on projected x; moves the state on.
    fn mix(&self, p: &Projected, state: &mut State, call: &Call, form: Form) -> Result<Tensor> {
        let (qkv, inputs) = self.conv.forward(&p.qkv, state.get("conv")?, call)?;
        let dtype = state.get("state")?.dtype();
        let gate =
            |x: &Tensor, most: f64| Tensor::fused("gate", &[x], dtype, |v| v[0].sigmoid() * most);
        let erase = gate(&p.erase, if self.allow_neg_eigval { 2.0 } else { 1.0 })?;
        let write = match &p.write {
            Some(write) => gate(write, 1.0)?,
            None => erase.clone(),
        };
        let decay = match (&self.decay, &p.decay) {
            (Some(decay), Some(f)) => Some(call.zero_padding(&decay.forward(f, dtype)?)?),
            _ => None,
        };
        // The only owner of a state may change it in place.
        let before = match form {
            Form::Step => state.take("state")?,
            Form::Chunk | Form::Reference => state.get("state")?.clone(),
        };
        // A key of 0 neither erases nor writes; a log decay of 0 keeps everything.
        let x = Operands {
            qkv: call.zero_padding(&qkv)?,
            decay,
            erase,
            write,
            state: before,
        };
        let (o, after) = match form {
            Form::Reference => recurrence(&x)?,
            Form::Chunk => delta_rule(&x, call.chunk.unwrap_or(CHUNK))?,
            Form::Step => delta_rule_step(x)?,
        };
        state.put("state", after)?;
        state.put("conv", inputs)?;
        Ok(o)
    }
}

impl Mixer for DeltaLayer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(self.name, x, self.d_model)?;
        state.expect_shapes(self.name, b, self.state_shapes(b))?;
        let form = call.form_of(self, t)?;
        let p = self.projections.project(&x)?;
        let y = match form == Form::Step && call.lengths.is_none() {
            true if layer_step::takes(self, &p, state)? => layer_step::step(self, &p, state)?,
            _ => self.gated(&self.mix(&p, state, call, form)?, &p)?,
        };
        let y = self.out.forward(&y)?;
        state.advance(&call.tokens(b, t));
        call.zero_padding(&y)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let device = self.norm.weight.get().device();
        let mut state = State::new(self.name, batch);
        for ((name, shape), dtype) in self
            .state_shapes(batch)
            .into_iter()
            .zip([state_dtype(dtype), dtype])
        {
            state.put(name, Tensor::zeros(&shape, dtype, &device))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        let (h, device) = (&self.heads, self.norm.weight.get().device());
        let on_gpu = device != Device::Cpu;
        if tokens == 1 && !training {
            let why = if self.decay.is_some() && layer_step::fits(h, device) {
                "one token of the layer in one launch, in place on the state".into()
            } else if !on_gpu || step_gpu::fits(h.key_dim, h.value_dim, DType::F32) {
                "one token, in place on the state".into()
            } else {
                format!(
                    "one token in tensor operations: the kernel takes f32 states with 64, 128 or 256 key channels \
                     and a multiple of 32 value channels, not {} by {}",
                    h.key_dim, h.value_dim
                )
            };
            return (Form::Step, why);
        }
        let why = gpu::plan(h.key_dim, h.value_dim, device);
        (Form::Chunk, format!("chunks of {CHUNK} tokens{why}"))
    }

    fn room(&self, _: &State) -> Result<Option<usize>> {
        let h = &self.heads;
        let fits = step_gpu::fits(h.key_dim, h.value_dim, DType::F32);
        Ok(fits.then_some(usize::MAX))
    }

    fn state_bytes(&self, _tokens: usize, dtype: DType) -> usize {
        let h = &self.heads;
        h.value_heads * h.key_dim * h.value_dim * state_dtype(dtype).size()
            + (h.taps - 1) * h.width() * dtype.size()
    }

    fn cost_per_token(&self, _context: usize) -> usize {
        let h = &self.heads;
        // The rule reads, writes and reads each element of the state.
        let rule = 3 * h.value_heads * h.key_dim * h.value_dim;
        self.projections.cost() + self.out.cost() + h.taps * h.width() + rule
    }
}
