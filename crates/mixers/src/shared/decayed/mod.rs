//! Decayed linear attention: one engine for Lightning Attention, RetNet, GLA, HGRN-2, Mamba-2 and their kin.
//!
//! Per sequence and value head, with state S [K, V] and token rows q, k in R^K, v in R^V:
//!
//! ```text
//! S <- diag(exp g) S + k v^T        decay, g <= 0, and write
//! o  = scale S^T q                  read; token t sees itself
//! ```
//!
//! The log decay g is one number for each value head (fixed or from the input), or one for each channel of a key
//! head. Value heads HV = r H: key head h serves value heads h r .. h r + r - 1 (the groups of Mamba-2).
//!
//! | mixer | q, k, v | g |
//! |---|---|---|
//! | Lightning Attention, RetNet | from the input | a constant for each head |
//! | Mamba-2 | C, B, dt x | dt A, for each value head |
//! | GLA | from the input | for each key channel |
//! | HGRN-2 | k = 1 - exp g | for each key channel |
//!
//! Forms, on plain slices and generic over f32 and f64:
//! - [`forward`] and [`backward`]: chunkwise; the equations stand in `chunk` and `backward`,
//! - [`step`]: one token in place on the state.
//!
//! On tensors: [`decayed`], an operation with gradients over these kernels (on a GPU a composition of matrix
//! products); [`decayed_step`]; and [`recurrence`], token by token in plain operations.
//!
//! A decay between two tokens is multiplied out of factors exp(g) <= 1, never a quotient: it cannot overflow, and a
//! channel that was wiped costs its neighbours no digits.

mod backward;
mod chunk;
mod composed;
pub mod gated;
#[cfg(test)]
mod golden_tests;
pub mod layer;
mod op;
mod reference;
mod scores;
mod scores_backward;
mod states;
mod step;
#[cfg(test)]
mod tests;

use weft_tensor::Real;

pub use backward::{Gradients, backward};
pub use chunk::{Forward, Saved, forward};
pub use op::{Operands, decayed, decayed_step, recurrence};
pub use step::step;

use super::blocks::{LANES, padded};

/// Tokens in a chunk. The work inside a chunk grows with it, the traffic on the state shrinks.
pub const CHUNK: usize = 64;

/// Sizes of one call. Layouts are row-major: q, k [B, T, H, K], v and o [B, T, HV, V], state [B, HV, K, V].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B
    pub batch: usize,
    /// T
    pub tokens: usize,
    /// H
    pub heads: usize,
    /// HV, a multiple of H
    pub value_heads: usize,
    /// K
    pub key_dim: usize,
    /// V
    pub value_dim: usize,
}

impl Dims {
    /// Value heads of one key head.
    pub fn repeat(&self) -> usize {
        self.value_heads / self.heads
    }

    /// Elements of q, and of k.
    pub fn keys_len(&self) -> usize {
        self.batch * self.tokens * self.heads * self.key_dim
    }

    /// Elements of v, and of o.
    pub fn values_len(&self) -> usize {
        self.batch * self.tokens * self.value_heads * self.value_dim
    }

    /// Elements of the state.
    pub fn state_len(&self) -> usize {
        self.batch * self.value_heads * self.key_dim * self.value_dim
    }
}

/// Log decays g <= 0.
#[derive(Clone, Copy, Debug)]
pub enum Decay<'a, R> {
    /// One for each value head [B, T, HV].
    Heads(&'a [R]),
    /// One for each channel of a key head [B, T, H, K].
    Channels(&'a [R]),
}

impl<'a, R> Decay<'a, R> {
    /// All of them.
    pub fn values(&self) -> &'a [R] {
        match self {
            Decay::Heads(g) | Decay::Channels(g) => g,
        }
    }
}

/// What the recurrence reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, R> {
    /// Queries [B, T, H, K].
    pub q: &'a [R],
    /// Keys [B, T, H, K].
    pub k: &'a [R],
    /// Values [B, T, HV, V].
    pub v: &'a [R],
    /// Log decays.
    pub decay: Decay<'a, R>,
    /// Factor on the outputs.
    pub scale: R,
}

impl<R: Real> Inputs<'_, R> {
    /// # Panics
    /// If a slice does not have the size that `dims` says: an error of the calling operation, which has checked
    /// the shapes of its user.
    fn check(&self, dims: &Dims) {
        assert!(
            dims.heads > 0 && dims.value_heads.is_multiple_of(dims.heads),
            "decayed: {dims:?}"
        );
        let decays = match self.decay {
            Decay::Heads(_) => dims.batch * dims.tokens * dims.value_heads,
            Decay::Channels(_) => dims.keys_len(),
        };
        for (name, found, expected) in [
            ("q", self.q.len(), dims.keys_len()),
            ("k", self.k.len(), dims.keys_len()),
            ("v", self.v.len(), dims.values_len()),
            ("decay", self.decay.values().len(), decays),
        ] {
            assert_eq!(found, expected, "decayed: {name} of {dims:?}");
        }
    }
}

/// How a call is cut up: into units (a value head of a sequence) for the passes over the state, into blocks (a chunk
/// of a key head) for everything else. Value columns come in panels of 16.
#[derive(Clone, Copy, Debug)]
struct Layout {
    dims: Dims,
    /// Whether each key channel decays for itself.
    by_channel: bool,
    /// Tokens in a chunk, and chunks.
    chunk: usize,
    chunks: usize,
    /// Lanes in a row of key channels, of value channels, and of a chunk's positions.
    key_lanes: usize,
    panels: usize,
    row_lanes: usize,
}

impl Layout {
    fn new<R: Real>(dims: Dims, x: &Inputs<R>, chunk: usize) -> Layout {
        let chunk = chunk.clamp(1, dims.tokens.max(1));
        Layout {
            dims,
            by_channel: matches!(x.decay, Decay::Channels(_)),
            chunk,
            chunks: dims.tokens.div_ceil(chunk),
            key_lanes: padded(dims.key_dim) / LANES,
            panels: padded(dims.value_dim) / LANES,
            row_lanes: padded(chunk) / LANES,
        }
    }

    /// Value heads of all sequences.
    fn units(&self) -> usize {
        self.dims.batch * self.dims.value_heads
    }

    /// Padded key channels, value channels and positions of a chunk.
    fn channels(&self) -> usize {
        self.key_lanes * LANES
    }

    fn columns(&self) -> usize {
        self.panels * LANES
    }

    fn rows(&self) -> usize {
        self.row_lanes * LANES
    }

    /// The positions of chunk `c` in sequence `batch`.
    fn span(&self, batch: usize, c: usize) -> Span {
        let start = c * self.chunk;
        let tokens = self.chunk.min(self.dims.tokens - start);
        Span {
            first: batch * self.dims.tokens + start,
            tokens,
            rows: padded(tokens),
        }
    }

    /// Chunks that a call holds in memory at a time, given that the backward pass needs all or none.
    fn at_once(&self, keep: bool) -> usize {
        if keep {
            self.chunks
        } else {
            self.chunks.min(SEGMENT)
        }
        .max(1)
    }

    /// Splits rows [B, T, H, width] into one list for each chunk of each key head, chunks outermost, so that they
    /// can be written in parallel.
    fn blocks<'a, R>(&self, data: &'a mut [R], width: usize) -> Vec<Vec<&'a mut [R]>> {
        let d = &self.dims;
        let heads = d.batch * d.heads;
        let mut blocks: Vec<Vec<&mut [R]>> = (0..self.chunks * heads)
            .map(|_| Vec::with_capacity(self.chunk))
            .collect();
        for (i, row) in data.chunks_exact_mut(width.max(1)).enumerate() {
            let (position, head) = (i / d.heads, i % d.heads);
            let (batch, token) = (position / d.tokens, position % d.tokens);
            blocks[token / self.chunk * heads + batch * d.heads + head].push(row);
        }
        blocks
    }
}

/// Chunks whose states are held at a time where nothing is kept for a backward pass: enough to keep the cores busy,
/// and memory does not grow with the text.
const SEGMENT: usize = 16;

/// The tokens of one chunk: first row in [B, T], number, and that padded to whole lanes.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: usize,
    tokens: usize,
    rows: usize,
}
