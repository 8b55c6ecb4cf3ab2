//! What a cell brings to the scan: its sizes, and its elementwise work on one row of one token, ahead and back.

use weft_tensor::{Real, Result, Tensor};

use super::Operands;

/// Sizes of a cell, for one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// X: pre-activations that come from the input, biases included.
    pub input: usize,
    /// S: numbers that pass from token to token.
    pub state: usize,
    /// O: outputs.
    pub output: usize,
    /// P: parameters beside the weights (peepholes, biases inside the recurrence).
    pub params: usize,
    /// Numbers of a token that the way back needs.
    pub kept: usize,
    /// [in, out] of the first product; it is fed the first `in` numbers of the state.
    pub first: [usize; 2],
    /// [in, out] of the second product, fed the first `in` of the kept numbers.
    pub second: Option<[usize; 2]>,
}

/// One row of one token, ahead.
pub struct Forward<'a, R> {
    /// [X]
    pub x: &'a [R],
    /// The product [out].
    pub u: &'a [R],
    /// [P]
    pub params: &'a [R],
    /// The state before the token [S].
    pub before: &'a [R],
    /// To be written, all of it by the end of the last part.
    pub kept: &'a mut [R],
    /// The state after the token, to be written [S].
    pub after: &'a mut [R],
    /// Outputs, to be written [O].
    pub o: &'a mut [R],
}

/// One row of one token, back. Gradients that are written anew: `d_x`, `d_u`; added to: `d_before`, `d_params`.
pub struct Backward<'a, R> {
    /// [P]
    pub params: &'a [R],
    /// The state before the token [S].
    pub before: &'a [R],
    /// The state after the token [S].
    pub after: &'a [R],
    /// What the way ahead kept.
    pub kept: &'a [R],
    /// Of the outputs [O].
    pub d_o: &'a [R],
    /// Of the state after the token [S], as later tokens see it.
    pub d_after: &'a [R],
    /// Of what the second product was fed; 0 if there is none.
    pub d_fed: &'a [R],
    /// Of x [X].
    pub d_x: &'a mut [R],
    /// Of the product [out].
    pub d_u: &'a mut [R],
    /// Of the state before the token [S].
    pub d_before: &'a mut [R],
    /// Of the parameters [P].
    pub d_params: &'a mut [R],
}

/// A cell. Its methods run inside vector code: each must be `#[inline(always)]`.
pub trait Cell: Clone + Send + Sync + 'static {
    /// The sizes.
    fn sizes(&self) -> Sizes;

    /// One token in tensor operations, x [B, N, X] and state [B, N, S]: outputs [B, N, O] and the state after it.
    /// Weights and parameters are those of `all`.
    fn plain(&self, x: &Tensor, state: &Tensor, all: &Operands) -> Result<(Tensor, Tensor)>;

    /// What follows the first product.
    fn first<R: Real>(&self, row: Forward<R>);

    /// What follows the second product.
    #[inline(always)]
    fn second<R: Real>(&self, _row: Forward<R>) {}

    /// The way back of [`Cell::first`].
    fn first_back<R: Real>(&self, row: Backward<R>);

    /// The way back of [`Cell::second`], which comes before that of the first.
    #[inline(always)]
    fn second_back<R: Real>(&self, _row: Backward<R>) {}
}
