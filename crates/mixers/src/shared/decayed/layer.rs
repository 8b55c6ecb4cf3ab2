//! The layer around the recurrence, the same in all mixers that it serves. A mixer brings its [`Part`]: what makes
//! q, k, v and the decays of x, and what makes y of the outputs.

use weft_tensor::{DType, Device, Tensor};

use super::{CHUNK, Operands, decayed, decayed_step, recurrence};
use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::shared::MAX_CHANNELS;
use crate::state::{State, state_dtype};

/// The forms of every mixer on this engine.
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
}

impl Heads {
    /// As many value heads as key heads. Errors if anything is 0 or more than a layer can hold; `mixer` is named.
    pub fn new(mixer: &str, heads: usize, key_dim: usize, value_dim: usize) -> Result<Heads> {
        let h = Heads {
            heads,
            value_heads: heads,
            key_dim,
            value_dim,
        };
        h.checked(mixer)
    }

    /// These sizes, if a layer can have them.
    pub fn checked(self, mixer: &str) -> Result<Heads> {
        let Heads {
            heads,
            value_heads,
            key_dim,
            value_dim,
        } = self;
        if heads == 0 || value_heads == 0 || key_dim == 0 || value_dim == 0 {
            let detail = "the width, head counts and head widths must be at least 1";
            return Err(Error::config(mixer, detail));
        }
        if !value_heads.is_multiple_of(heads) {
            let detail =
                format!("{value_heads} value heads are not a multiple of {heads} key heads");
            return Err(Error::config(mixer, detail));
        }
        let channels = value_heads.saturating_mul(key_dim.max(value_dim));
        if channels > MAX_CHANNELS {
            let detail = format!(
                "{value_heads} heads of {key_dim} by {value_dim} channels: at most {MAX_CHANNELS} channels fit a layer"
            );
            return Err(Error::config(mixer, detail));
        }
        Ok(self)
    }

    /// Channels of all queries, and of all keys.
    pub fn keys(&self) -> usize {
        self.heads * self.key_dim
    }

    /// Channels of all values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
}

/// The largest number of heads up to `most` that suits: the default where a width has no say in its heads.
pub fn most_heads(most: usize, suits: impl Fn(usize) -> bool) -> usize {
    (1..=most).rev().find(|&n| suits(n)).unwrap_or(1)
}

/// Channels of one of `heads` heads of a width.
pub fn head_width(mixer: &str, width: usize, heads: usize) -> Result<usize> {
    if heads == 0 || !width.is_multiple_of(heads) {
        let detail = format!("{width} channels do not divide into {heads} heads: change num_heads");
        return Err(Error::config(mixer, detail));
    }
    Ok(width / heads)
}

/// What a mixer makes of x [B, T, D].
pub struct Projected {
    /// Queries [B, T, H, K].
    pub q: Tensor,
    /// Keys [B, T, H, K].
    pub k: Tensor,
    /// Values [B, T, HV, V].
    pub v: Tensor,
    /// Log decays [B, T, HV] or [B, T, H, K], in the state's dtype.
    pub decay: Tensor,
    /// What [`Part::output`] needs besides.
    pub rest: Vec<Tensor>,
    /// New values of the tensors in [`Part::more_state`].
    pub state: Vec<(&'static str, Tensor)>,
}

/// A mixer's own part of the layer.
pub trait Part: Send + Sync {
    /// From x [B, T, D] (padding is 0) to the operands of the recurrence.
    fn project(&self, x: &Tensor, state: &State, call: &Call) -> Result<Projected>;

    /// From outputs o [B, T, HV, V] and the rest of [`Projected`] to y [B, T, D].
    fn output(&self, o: &Tensor, rest: &[Tensor]) -> Result<Tensor>;

    /// Factor on the outputs.
    fn scale(&self) -> f64;

    /// Multiply-adds of the projections for one token.
    fn cost(&self) -> usize;

    /// Tensors of the state beside the matrix, in the activations' dtype: names, and shapes without the batch.
    fn more_state(&self) -> Vec<(&'static str, Vec<usize>)> {
        vec![]
    }
}

/// The layer. Its state is `state` [B, HV, K, V], and what its part adds.
pub struct DecayedLayer {
    /// The registry name.
    pub name: &'static str,
    /// D.
    pub d_model: usize,
    /// Head counts and widths.
    pub heads: Heads,
    /// Where its parameters live.
    pub device: Device,
    /// The mixer's own part.
    pub part: Box<dyn Part>,
}

impl DecayedLayer {
    fn state_shapes(&self, batch: usize) -> Vec<(&'static str, Vec<usize>)> {
        let h = &self.heads;
        let matrix = vec![batch, h.value_heads, h.key_dim, h.value_dim];
        let more = self.part.more_state().into_iter();
        let more = more.map(|(name, shape)| (name, [&[batch][..], &shape].concat()));
        [("state", matrix)].into_iter().chain(more).collect()
    }
}

impl Mixer for DecayedLayer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(self.name, x, self.d_model)?;
        state.expect_shapes(self.name, b, self.state_shapes(b))?;
        let form = call.form_of(self, t)?;
        let p = self.part.project(&x, state, call)?;
        // The only owner of a state may change it in place.
        let before = match form {
            Form::Step => state.take("state")?,
            Form::Chunk | Form::Reference => state.get("state")?.clone(),
        };
        // A key of 0 writes nothing; a log decay of 0 keeps everything.
        let operands = Operands {
            q: p.q,
            k: call.zero_padding(&p.k)?,
            v: p.v,
            decay: call.zero_padding(&p.decay)?,
            scale: self.part.scale(),
            state: before,
        };
        let (o, after) = match form {
            Form::Reference => recurrence(&operands)?,
            Form::Chunk => decayed(&operands, call.chunk.unwrap_or(CHUNK))?,
            Form::Step => decayed_step(operands)?,
        };
        state.put("state", after)?;
        for (name, tensor) in p.state {
            state.put(name, tensor)?;
        }
        let y = self.part.output(&o, &p.rest)?;
        state.advance(&call.tokens(b, t));
        call.zero_padding(&y)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(self.name, batch);
        for (name, shape) in self.state_shapes(batch) {
            let dtype = if name == "state" {
                state_dtype(dtype)
            } else {
                dtype
            };
            state.put(name, Tensor::zeros(&shape, dtype, &self.device))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        let gpu = self.device != Device::Cpu;
        match (tokens == 1 && !training, gpu) {
            (true, false) => (Form::Step, "one token, in place on the state".into()),
            (true, true) => {
                let why = "one token in tensor operations: this GPU kernel is yet to be written";
                (Form::Step, why.into())
            }
            (false, false) => (Form::Chunk, format!("chunks of {CHUNK} tokens")),
            (false, true) => {
                let why = "as matrix products: this GPU kernel is yet to be written";
                (Form::Chunk, format!("chunks of {CHUNK} tokens, {why}"))
            }
        }
    }

    fn state_bytes(&self, _tokens: usize, dtype: DType) -> usize {
        let h = &self.heads;
        let more = self.part.more_state().into_iter();
        let more: usize = more.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        h.value_heads * h.key_dim * h.value_dim * state_dtype(dtype).size() + more * dtype.size()
    }

    fn cost_per_token(&self, _context: usize) -> usize {
        let h = &self.heads;
        // Each element of the state is written to and read.
        self.part.cost() + 2 * h.value_heads * h.key_dim * h.value_dim
    }
}

/// A constant log decay [HV] for each token [B, T, HV], in the state's dtype.
pub fn fixed_decay(g: &Tensor, x: &Tensor) -> Result<Tensor> {
    let [b, t, _] = x.dims()?;
    let g = g.to_dtype(state_dtype(x.dtype()))?;
    Ok(g.broadcast_to(&[b, t, g.count()])?)
}
