//! The contract of a sequence mixer: a causal map x [B, T, D] -> y [B, T, D] with a [`State`]. Training,
//! prefill and decoding are the same call with different T; a mixer picks the form that is fastest for it.

use weft_tensor::{DType, Tensor, grad_enabled};

use crate::error::{Error, Result};
use crate::padding;
use crate::state::State;

/// A way to compute a mixer. All give the same numbers; the laws check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Token by token, in plain tensor operations: the truth.
    Reference,
    /// Many tokens at once (chunks, tiles): training and prefill.
    Chunk,
    /// One token, in place on the state: decoding.
    Step,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Form::Reference => "reference",
            Form::Chunk => "chunk",
            Form::Step => "step",
        })
    }
}

/// How one forward is to be run. The default is: the fastest form, all tokens valid.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call<'a> {
    /// Force a form (tests, benchmarks); `None` lets the mixer choose.
    pub form: Option<Form>,
    /// Force a chunk length where the form has one.
    pub chunk: Option<usize>,
    /// Valid tokens of each row, counted from the left; what follows is padding and must have no influence,
    /// whatever it holds. `None`: all. For padding on the left see [`padding::forward`].
    pub lengths: Option<&'a [usize]>,
}

impl Call<'_> {
    /// The default call in a given form.
    pub fn with_form(form: Form) -> Call<'static> {
        Call {
            form: Some(form),
            ..Call::default()
        }
    }

    /// Check x [B, T, D] (and the lengths) and replace padding by zeros; returns the input and [B, T].
    pub fn open(&self, mixer: &str, x: &Tensor, d_model: usize) -> Result<(Tensor, usize, usize)> {
        let &[b, t, d] = x.shape() else {
            return Err(Error::config(
                mixer,
                format!("input {:?}: expected [batch, tokens, width]", x.shape()),
            ));
        };
        if d != d_model || t == 0 || b == 0 {
            let detail = format!(
                "input {:?}: expected [batch, tokens, {d_model}] with at least one token",
                x.shape()
            );
            return Err(Error::config(mixer, detail));
        }
        let Some(lengths) = self.lengths else {
            return Ok((x.clone(), b, t));
        };
        if lengths.len() != b || lengths.iter().any(|&n| n > t) {
            return Err(Error::config(
                mixer,
                format!("lengths {lengths:?} do not fit {b} rows of {t} tokens"),
            ));
        }
        Ok((self.zero_padding(x)?, b, t))
    }

    /// [B, T] u8: 1 where a token is valid. `None` when all are.
    pub fn valid(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(lengths) = self.lengths else {
            return Ok(None);
        };
        let t = x.dim(1)?;
        let mask: Vec<u8> = lengths
            .iter()
            .flat_map(|&n| (0..t).map(move |i| u8::from(i < n)))
            .collect();
        Ok(Some(Tensor::from_vec(
            mask,
            &[lengths.len(), t],
            &x.device(),
        )?))
    }

    /// x [B, T, ..] with 0 (never NaN) at invalid tokens: for inputs, gates and outputs.
    pub fn zero_padding(&self, x: &Tensor) -> Result<Tensor> {
        let Some(mut mask) = self.valid(x)? else {
            return Ok(x.clone());
        };
        while mask.rank() < x.rank() {
            mask = mask.unsqueeze(-1)?;
        }
        Ok(mask.where_cond(x, &Tensor::zeros(&[], x.dtype(), &x.device()))?)
    }

    /// The form to take for a number of tokens: the one that is forced, else what the mixer plans.
    ///
    /// # Errors
    /// For a step of several tokens or under gradients, and for chunks of 0 tokens.
    pub fn form_of(&self, mixer: &dyn Mixer, tokens: usize) -> Result<Form> {
        let training = grad_enabled();
        let form = self.form.unwrap_or_else(|| mixer.plan(tokens, training).0);
        if form == Form::Step && (tokens != 1 || training) {
            let detail = format!(
                "the step form takes one token and gives no gradients; {tokens} tokens given"
            );
            return Err(Error::config(mixer.name(), detail));
        }
        if self.chunk == Some(0) {
            return Err(Error::config(mixer.name(), "a chunk of 0 tokens"));
        }
        Ok(form)
    }

    /// Tokens to count as seen in each row.
    pub fn tokens(&self, batch: usize, tokens: usize) -> Vec<usize> {
        self.lengths
            .map_or_else(|| vec![tokens; batch], <[usize]>::to_vec)
    }
}

/// A sequence mixer with its parameters.
pub trait Mixer: Send + Sync {
    /// The registry name.
    fn name(&self) -> &'static str;

    /// Mix x [B, T, D] and move the state on by the (valid) tokens. Outputs at padding are 0. Errors if the
    /// state is another mixer's or has another batch; then the state is unchanged.
    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor>;

    /// The state before the first token, for activations of a dtype.
    fn init_state(&self, batch: usize, dtype: DType) -> Result<State>;

    /// The forms this mixer has, the reference first.
    fn forms(&self) -> &'static [Form];

    /// The kinds of device that it runs on.
    fn devices(&self) -> &'static [&'static str] {
        &["cpu", "cuda"]
    }

    /// The form that [`Mixer::forward`] takes for a number of tokens, and why, in one short sentence.
    fn plan(&self, tokens: usize, training: bool) -> (Form, String);

    /// Whether one token on a GPU can be recorded and run again, reading positions from [`State::clock`] and writing the
    /// state's tensors where they are: the position that this state has room for, exclusively. `None`: it cannot.
    ///
    /// # Errors
    /// When the state is another mixer's.
    fn room(&self, _state: &State) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Bytes of the state of one sequence after `tokens` tokens, for activations of a dtype: equal to
    /// [`State::bytes`] of a state that was filled without gradients.
    fn state_bytes(&self, tokens: usize, dtype: DType) -> usize;

    /// Multiply-adds of one token at a context of `context` tokens, projections included.
    fn cost_per_token(&self, context: usize) -> usize;

    /// Mix rows whose valid tokens are `spans[b].0 .. spans[b].1`: padding on either side.
    fn forward_padded(
        &self,
        x: &Tensor,
        state: &mut State,
        spans: &[(usize, usize)],
    ) -> Result<Tensor> {
        padding::forward(
            |x, state, call| self.forward(x, state, call),
            x,
            state,
            spans,
        )
    }
}
