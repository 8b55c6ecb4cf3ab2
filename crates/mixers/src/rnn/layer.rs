//! The layer around a cell:
//!
//! ```text
//! a = W_ih x + b       [B, T, N, X]      pre-activations, one product over all tokens
//! o = the cell's recurrence over a       [B, T, N, O]
//! y = W_out o + b_out  [B, T, D]
//! ```
//!
//! Parameters `weight_ih` [N X, D], `bias` [N X], `weight_hh` [N out, in] (rows head by head; with one head they
//! are those of `torch.nn.LSTM` and `torch.nn.GRU`, whose two biases are added up here), the cell's own ones,
//! `out_proj`.

use serde::Deserialize;
use weft_tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Init, Linear, Param, Scope};
use crate::shared::MAX_CHANNELS;
use crate::shared::recurrent::{Cell, How, Operands, recurrence, scan, step};
use crate::state::{State, state_dtype};

/// The forms of all of them. `Chunk` is the fused scan: many tokens in one call, one after the other.
pub(super) const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// How square recurrent weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecurrentInit {
    /// Orthogonal: no direction of the state grows or shrinks.
    Orthogonal,
    /// Uniform in +-1 / sqrt(units), as in the frameworks.
    Uniform,
    /// The identity (IRNN).
    Identity,
}

impl RecurrentInit {
    /// For blocks of `units` rows.
    pub(super) fn of(self, units: usize) -> Init {
        let bound = 1.0 / (units.max(1) as f64).sqrt();
        match self {
            RecurrentInit::Orthogonal => Init::Orthogonal,
            RecurrentInit::Uniform => Init::Uniform {
                lo: -bound,
                hi: bound,
            },
            RecurrentInit::Identity => Init::Identity,
        }
    }
}

/// Heads and the units of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Units {
    pub heads: usize,
    pub dim: usize,
}

impl Units {
    /// Fills in what a config leaves open, and refuses what cannot be; a unit has `gates` pre-activations.
    pub fn resolve(
        mixer: &str,
        d_model: usize,
        heads: usize,
        dim: Option<usize>,
        gates: usize,
    ) -> Result<Units> {
        let dim = dim.unwrap_or(d_model / heads.max(1));
        if d_model == 0 || heads == 0 || dim == 0 {
            let detail = format!(
                "width {d_model}, num_heads {heads}, {dim} units to a head: all must be at least 1"
            );
            return Err(Error::config(mixer, detail));
        }
        // The recurrent weights are the largest product of sizes.
        let weights = heads
            .saturating_mul(gates)
            .saturating_mul(dim)
            .saturating_mul(dim);
        let inputs = heads.saturating_mul(gates).saturating_mul(dim);
        if weights > MAX_CHANNELS || inputs > MAX_CHANNELS {
            let detail = format!(
                "{heads} heads of {dim} units: at most {MAX_CHANNELS} recurrent weights fit a layer"
            );
            return Err(Error::config(mixer, detail));
        }
        Ok(Units { heads, dim })
    }
}

/// A cell between its projections.
pub(super) struct Layer<C> {
    name: &'static str,
    d_model: usize,
    heads: usize,
    cell: C,
    clip: Option<f64>,
    /// `weight_ih` and `bias`.
    input: Linear,
    weights: Vec<Param>,
    params: Vec<Param>,
    fixed: Vec<f64>,
    out: Linear,
}

impl<C: Cell> Layer<C> {
    /// A layer without the cell's own parameters, which the caller adds; its biases start as `bias` says.
    pub fn new(
        name: &'static str,
        d_model: usize,
        units: Units,
        cell: C,
        clip: Option<f64>,
        bias: Init,
        scope: &mut Scope,
    ) -> Result<Self> {
        if clip.is_some_and(|c| c.is_nan() || c <= 0.0) {
            return Err(Error::config(
                name,
                "gradient_clipping: expected a positive number or nothing",
            ));
        }
        let sizes = cell.sizes();
        let rows = units.heads * sizes.input;
        // Glorot's bound for each gate by itself.
        let width = units.heads * units.dim;
        let gain = ((rows + d_model) as f64 / (width + d_model) as f64).sqrt();
        Ok(Layer {
            name,
            d_model,
            heads: units.heads,
            cell,
            clip,
            input: Linear {
                weight: scope.weight("weight_ih", &[rows, d_model], Init::Xavier { gain })?,
                bias: Some(scope.vector("bias", &[rows], bias)?),
            },
            weights: vec![],
            params: vec![],
            fixed: vec![],
            out: scope.linear(
                "out_proj",
                units.heads * sizes.output,
                d_model,
                true,
                Init::FanIn { gain: 1.0 },
            )?,
        })
    }

    /// Add the weights of the next product, [N out, in].
    pub fn recurrent(&mut self, name: &str, init: Init, scope: &mut Scope) -> Result<()> {
        let sizes = self.cell.sizes();
        let next = if self.weights.is_empty() {
            Some(sizes.first)
        } else {
            sizes.second
        };
        let Some([n_in, n_out]) = next else {
            return Err(Error::config(
                self.name,
                format!("{name}: the cell has no such product"),
            ));
        };
        self.weights
            .push(scope.weight(name, &[self.heads * n_out, n_in], init)?);
        Ok(())
    }

    /// Add parameters of the cell, `width` for each head; they start at 0.
    pub fn param(&mut self, name: &str, width: usize, scope: &mut Scope) -> Result<()> {
        self.params
            .push(scope.vector(name, &[self.heads * width], Init::Const(0.0))?);
        Ok(())
    }

    /// Add a parameter of the cell that is a setting.
    pub fn fixed(&mut self, value: f64) {
        self.fixed.push(value);
    }

    /// The operands of the scan for x [B, T, D] and a state.
    fn operands(&self, x: &Tensor, state: Tensor) -> Result<Operands> {
        let ([b, t, _], sizes, dtype) = (x.dims()?, self.cell.sizes(), state.dtype());
        let a = self.input.forward(x)?.to_dtype(dtype)?;
        let sizes_of = [Some(sizes.first), sizes.second];
        let weights = self.weights.iter().zip(sizes_of.into_iter().flatten());
        let weights = weights
            .map(|(w, [n_in, n_out])| Ok(w.cast(dtype)?.reshape(&[self.heads, n_out, n_in])?));
        Ok(Operands {
            x: a.reshape(&[b, t, self.heads, sizes.input])?,
            weights: weights.collect::<Result<_>>()?,
            params: self.params(dtype)?,
            state,
        })
    }

    /// [N, P]
    fn params(&self, dtype: DType) -> Result<Option<Tensor>> {
        let mut parts = vec![];
        for p in &self.params {
            let width = p.shape()[0] / self.heads;
            parts.push(p.cast(dtype)?.reshape(&[self.heads, width])?);
        }
        for &value in &self.fixed {
            parts.push(Tensor::full(&[self.heads, 1], value, dtype, &self.device()));
        }
        if parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Tensor::cat(&parts.iter().collect::<Vec<_>>(), -1)?))
    }

    fn device(&self) -> Device {
        self.input.weight.get().device()
    }

    fn shape(&self, batch: usize) -> [usize; 3] {
        [batch, self.heads, self.cell.sizes().state]
    }
}

impl<C: Cell> Mixer for Layer<C> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(self.name, x, self.d_model)?;
        state.expect_shapes(self.name, b, [("state", self.shape(b).to_vec())])?;
        let form = call.form_of(self, t)?;
        let how = How {
            clip: self.clip,
            lengths: call.lengths,
        };
        // The only owner of a state may change it in place.
        let before = match form {
            Form::Step => state.take("state")?,
            Form::Chunk | Form::Reference => state.get("state")?.clone(),
        };
        let operands = self.operands(&x, before)?;
        let (o, after) = match form {
            Form::Reference => recurrence(&self.cell, &operands, &how)?,
            Form::Chunk => scan(&self.cell, &operands, &how)?,
            Form::Step => step(&self.cell, operands, &how)?,
        };
        state.put("state", after)?;
        state.advance(&call.tokens(b, t));
        let o = o
            .reshape(&[b, t, self.heads * self.cell.sizes().output])?
            .to_dtype(x.dtype())?;
        call.zero_padding(&self.out.forward(&o)?)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(self.name, batch);
        state.put(
            "state",
            Tensor::zeros(&self.shape(batch), state_dtype(dtype), &self.device()),
        )?;
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
        self.heads * self.cell.sizes().state * state_dtype(dtype).size()
    }

    fn cost_per_token(&self, _context: usize) -> usize {
        let sizes = self.cell.sizes();
        self.heads * (sizes.work() + self.d_model * (sizes.input + sizes.output))
    }
}
