//! Sequential non-linear recurrences: what cannot be written as a scan of an associative operation, because the
//! state passes through a non-linearity at every token. Each of N heads and each row of the batch has a state
//! s in R^S and a cell
//!
//! ```text
//! (o_t, s_t) = cell(x_t, U s_{t-1}, s_{t-1})      x [B, T, N, X]   s [B, N, S]   o [B, T, N, O]
//! ```
//!
//! with recurrent weights U [N, out, in]. Some cells take a second product inside a token (the reset gate in
//! front of the weights of a GRU, the outputs that a Jordan network feeds back).
//!
//! What depends on x alone is one matrix product over all tokens, made by the layer; left is, at every token, a
//! product with a few rows and elementwise work. The kernel runs both for all tokens of four rows of one head
//! before it goes on: the weights are packed once, no operation is started per token, and nothing is kept but
//! the state at every [`SEGMENT`]-th token. The way back runs each segment again, from the last to the first,
//! and then walks it backwards; gradients of the weights are one product for a segment.
//!
//! Gradients of the state may be clamped to [-c, c] where they pass from a token to the one before
//! ([`clip_gradient`], M2RNN's rule *carry*).
//!
//! [`scan`] is the operation, [`recurrence`] the same token by token in tensor operations: the truth, and what
//! runs on a GPU.

mod backward;
mod cell;
mod clip;
mod forward;
mod op;
pub(crate) mod product;
mod reference;
mod trace;

pub use cell::{Backward, Cell, Forward, Sizes};
pub use clip::clip_gradient;
pub use op::{How, Operands, scan, step};
pub use reference::{product_of_heads, recurrence};

/// Tokens between two states that are kept for the way back.
pub const SEGMENT: usize = 64;

/// Rows of the batch that are computed together: the weights are read once for them.
const ROWS: usize = 4;

/// Sizes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B
    pub batch: usize,
    /// T
    pub tokens: usize,
    /// N
    pub heads: usize,
}

/// What a scan reads, on slices.
#[derive(Clone, Copy, Debug)]
struct Inputs<'a, R> {
    /// [B, T, N, X]
    x: &'a [R],
    /// [N, out, in] of the first product and of the second; the latter empty if there is none.
    weights: [&'a [R]; 2],
    /// [N, P]
    params: &'a [R],
    /// Valid tokens of each row of the batch; `None`: all.
    lengths: Option<&'a [usize]>,
}

/// What is computed together: some rows of the batch in one head.
#[derive(Clone, Copy, Debug)]
struct Unit {
    head: usize,
    first: usize,
    rows: usize,
}

/// All units, head by head. They depend on the sizes alone, and so do the results.
fn units(dims: Dims) -> Vec<Unit> {
    let blocks = |head| {
        (0..dims.batch).step_by(ROWS).map(move |first| Unit {
            head,
            first,
            rows: ROWS.min(dims.batch - first),
        })
    };
    (0..dims.heads).flat_map(blocks).collect()
}

/// The rows of `data` [B, T, N, width] that each unit writes: for each row of the unit, its T rows.
fn rows_of_units<'a, R>(
    data: &'a mut [R],
    dims: Dims,
    width: usize,
    units: &[Unit],
) -> Vec<Vec<Vec<&'a mut [R]>>> {
    let mut lists = super::rows::rows_by_unit(data, dims.tokens, dims.heads, width);
    let mut of_unit = |u: &Unit| {
        (u.first..u.first + u.rows)
            .map(|b| std::mem::take(&mut lists[b * dims.heads + u.head]))
            .collect()
    };
    units.iter().map(&mut of_unit).collect()
}
