//! HGRN (Qin et al. 2023, arXiv 2311.04823): a gated recurrence of single numbers, whose forget gates have lower bounds
//! that grow with depth.
//!
//! ```text
//! h_t = f_t . h_{t-1} + SiLU(i_proj x_t) . (1 - f_t)     f = lb + (1 - lb) sigmoid(f_proj x)        h in R^D
//! y   = o_proj( RMSNorm_D(h) w SiLU(g_proj x) )          the norm over the full width
//! ```
//!
//! The recurrence is an elementwise scan, [`crate::shared::scan`]; the bound is [`crate::shared::lower_bound`]. Names
//! as in flash-linear-attention.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Linear, Scope};
use crate::registry::{Entry, Options};
use crate::shared::MAX_CHANNELS;
use crate::shared::lower_bound::{Bound, ForgetGate};
use crate::shared::norm::RmsNorm;
use crate::shared::projection::LINEAR_INIT;
use crate::shared::scan::{self, Gated, fold, gated};
use crate::state::{State, state_dtype};

const NAME: &str = "hgrn";
const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "HGRN",
    paper: "Qin et al. 2023, arXiv 2311.04823",
    page: "docs/mixers/hgrn.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(Hgrn::new(options, scope)?)),
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of the recurrence, as a multiple of the width.
    pub expand_ratio: usize,
    /// The forget gate's lower bound.
    pub lower_bound: Bound,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            expand_ratio: 1,
            lower_bound: Bound::Shared,
            norm_eps: 1e-5,
        }
    }
}

fn samples() -> Vec<Options> {
    vec![
        Options::new(24, json!({})),
        Options::new(24, json!({"expand_ratio": 2})).at(2, 3),
        Options::new(24, json!({"lower_bound": "own"})).at(1, 2),
        Options::new(24, json!({"lower_bound": "none"})).at(1, 2),
    ]
}

/// The layer.
pub struct Hgrn {
    d_model: usize,
    channels: usize,
    i_proj: Linear,
    f_proj: Linear,
    g_proj: Linear,
    o_proj: Linear,
    gate: ForgetGate,
    norm: RmsNorm,
}

impl Hgrn {
    /// Build it with its parameters.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<Hgrn> {
        let c: Config = options.parse(NAME)?;
        let d = options.d_model;
        let channels = d.saturating_mul(c.expand_ratio);
        if channels == 0 || channels > MAX_CHANNELS {
            let detail = format!("{channels} channels: use between 1 and {MAX_CHANNELS}");
            return Err(Error::config(NAME, detail));
        }
        let mut linear =
            |name, input, output| scope.linear(name, input, output, false, LINEAR_INIT);
        Ok(Hgrn {
            d_model: d,
            channels,
            i_proj: linear("i_proj", d, channels)?,
            f_proj: linear("f_proj", d, channels)?,
            g_proj: linear("g_proj", d, channels)?,
            o_proj: linear("o_proj", channels, d)?,
            gate: ForgetGate::new(scope, c.lower_bound, options, channels)?,
            norm: RmsNorm::new(scope, "g_norm", channels, c.norm_eps, false)?,
        })
    }
}

impl Mixer for Hgrn {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(NAME, x, self.d_model)?;
        state.expect_shapes(NAME, b, [("state", vec![b, self.channels])])?;
        let form = call.form_of(self, t)?;
        let (g, open) = self.gate.forward(&self.f_proj.forward(&x)?)?;
        let input = self
            .i_proj
            .forward(&x)?
            .to_dtype(g.dtype())?
            .silu_mul(&open)?;
        // An input of 0 adds nothing; a log decay of 0 keeps everything.
        let (g, input) = (call.zero_padding(&g)?, call.zero_padding(&input)?);
        let before = state.get("state")?;
        let h = match form {
            Form::Reference => {
                let initial = [before.zeros_like(), before.clone()];
                let options = scan::Options {
                    initial: Some(&initial),
                    ..Default::default()
                };
                fold(&Gated, &[g, input], &options)?.swap_remove(1)
            }
            Form::Chunk | Form::Step => gated(&g, &input, before, None, false)?,
        };
        state.put("state", h.select(1, t - 1)?.contiguous()?)?;
        let gate = self.g_proj.forward(&x)?;
        let y = gate.silu_mul(&self.norm.forward(&h.to_dtype(x.dtype())?)?)?;
        let y = self.o_proj.forward(&y)?;
        state.advance(&call.tokens(b, t));
        call.zero_padding(&y)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let device = self.norm.weight.get().device();
        let mut state = State::new(NAME, batch);
        let zeros = Tensor::zeros(&[batch, self.channels], state_dtype(dtype), &device);
        state.put("state", zeros)?;
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        if tokens == 1 && !training {
            return (
                Form::Step,
                "one token: each channel decayed and added to".into(),
            );
        }
        let why = match self.norm.weight.get().device() {
            Device::Cpu => "a scan in order, sequences and channels in parallel",
            _ => "a scan in rounds of doubling reach: this GPU kernel is yet to be written",
        };
        (Form::Chunk, why.into())
    }

    fn state_bytes(&self, _tokens: usize, dtype: DType) -> usize {
        self.channels * state_dtype(dtype).size()
    }

    fn cost_per_token(&self, _context: usize) -> usize {
        let parts = [&self.i_proj, &self.f_proj, &self.g_proj, &self.o_proj];
        parts.into_iter().map(Linear::cost).sum::<usize>() + self.channels
    }
}
