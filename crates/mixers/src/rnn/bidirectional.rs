//! Two mixers, one reading forwards and one backwards (Schuster & Paliwal 1997):
//!
//! ```text
//! y = f(x) + reverse(b(reverse(x)))                             x, y [B, T, D]
//! ```
//!
//! Each direction has an output projection of its own, so the sum is a linear map of both concatenated, as in the
//! paper. Rows of different lengths are reversed within their own length.
//!
//! This is not causal: an output depends on the whole sequence. There is no state that a next token could follow,
//! so the type does not implement [`Mixer`] and is not in the registry; nothing that generates text can be given
//! one by mistake.

use weft_tensor::Tensor;

use crate::error::{Error, Result};
use crate::mixer::{Call, Mixer};
use crate::params::Scope;
use crate::registry::{Entry, Options};

/// Two mixers over one sequence, in opposite directions.
pub struct Bidirectional {
    forwards: Box<dyn Mixer>,
    backwards: Box<dyn Mixer>,
}

impl Bidirectional {
    /// Two mixers of one kind with parameters of their own, `forward.` and `backward.`.
    pub fn new(entry: &Entry, options: &Options, scope: &mut Scope) -> Result<Bidirectional> {
        Ok(Bidirectional {
            forwards: (entry.build)(options, &mut scope.sub("forward"))?,
            backwards: (entry.build)(options, &mut scope.sub("backward"))?,
        })
    }

    /// y [B, T, D] of x [B, T, D]; `lengths` are the valid tokens of each row, counted from the left. Both
    /// directions start from their initial state. Outputs at padding are 0, whatever the padding holds.
    pub fn forward(&self, x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let [b, t, _] = x.dims()?;
        if lengths.is_some_and(|n| n.len() != b || n.iter().any(|&n| n > t)) {
            let detail = format!("lengths {lengths:?} do not fit {b} rows of {t} tokens");
            return Err(Error::config(self.forwards.name(), detail));
        }
        let call = Call {
            lengths,
            ..Call::default()
        };
        let run = |mixer: &dyn Mixer, x: &Tensor| {
            mixer.forward(x, &mut mixer.init_state(b, x.dtype())?, &call)
        };
        let ahead = run(&*self.forwards, x)?;
        let back = run(&*self.backwards, &reversed(x, lengths)?)?;
        Ok(ahead.add(&reversed(&back, lengths)?)?)
    }
}

/// The valid tokens of each row in the opposite order; padding stays where it is.
fn reversed(x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
    let Some(lengths) = lengths else {
        return Ok(x.flip(1)?);
    };
    let [b, t, d] = x.dims()?;
    let token = |n: usize, i: usize| if i < n { n - 1 - i } else { i };
    let rows = lengths.iter().enumerate();
    let index: Vec<i64> = rows
        .flat_map(|(row, &n)| (0..t).map(move |i| (row * t + token(n, i)) as i64))
        .collect();
    let index = Tensor::from_vec(index, &[b * t], &x.device())?;
    Ok(x.reshape(&[b * t, d])?
        .index_select(0, &index)?
        .reshape(&[b, t, d])?)
}
