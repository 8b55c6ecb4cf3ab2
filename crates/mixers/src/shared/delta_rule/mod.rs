//! The gated delta rule: one engine for DeltaNet, Gated DeltaNet, Kimi Delta Attention and Gated DeltaNet-2.
//!
//! Per sequence and value head, with state S [K, V], token rows q, k, g, b in R^K and v, w in R^V:
//!
//! ```text
//! S <- diag(exp g) S                    decay,  g <= 0
//! r  = S^T (b . k)                      what is stored under the gated key
//! S <- S + k (w . v - r)^T              erase and write
//! o  = S^T q                            read; token t sees itself
//! ```
//!
//! q and k are L2-normalised here, x / sqrt(sum x^2 + 1e-6), and q is scaled by K^-1/2. What differs between
//! the mixers is how finely the three gates are applied:
//!
//! | mixer | decay g | erase b | write w |
//! |---|---|---|---|
//! | DeltaNet | none | beta, per value head | the same beta |
//! | Gated DeltaNet | per value head | beta, per value head | the same beta |
//! | KDA | per key channel | beta, per value head | the same beta |
//! | Gated DeltaNet-2 | per key channel | per key channel | per value channel |
//!
//! Value heads HV = r H: key head h serves value heads h r .. h r + r - 1. When decay and erase gate belong to
//! the key head too, those r heads differ in their value columns only and are computed as one wide head.
//!
//! Forms, all on plain slices and generic over f32 and f64:
//! - [`forward`] and [`backward`]: chunkwise (the WY form of Gated DeltaNet-2, section 3; derivation in `chunk`),
//! - [`step`]: one token in place on the state.
//!
//! On tensors: [`delta_rule`], an operation with gradients over these kernels or those of a GPU, and
//! [`delta_rule_packed`] for sequences one behind the other; [`delta_rule_step`]; and
//! [`recurrence`], token by token in plain operations.
//!
//! Decays never appear as a quotient and never as exp of a difference of long sums: every ratio
//! exp(G_r - G_s), r >= s, is multiplied out of factors exp(g) <= 1. So it cannot overflow, and a channel that
//! was wiped by g = -50 does not cost its neighbours' digits by cancellation.

mod backward;
mod chunk;
pub(super) mod composed;
pub mod decay;
#[cfg(test)]
pub(crate) mod golden_layer;
#[cfg(test)]
mod golden_tests;
pub(crate) mod gpu;
mod keys;
mod keys_backward;
pub mod layer;
mod op;
#[cfg(test)]
mod op_tests;
mod reference;
mod step;
pub(crate) mod step_gpu;
#[cfg(test)]
mod tests;

use std::ops::Range;

use weft_tensor::Real;

pub use backward::{Gradients, backward};
pub use chunk::{Forward, Saved, forward};
pub use op::{Operands, delta_rule, delta_rule_packed, delta_rule_step, recurrence};
pub use step::step;

use super::blocks::{self, LANES, padded};

/// Added to the sum of squares under the root of the L2 norms of q and k.
pub const L2_EPS: f64 = 1e-6;

/// Tokens in a chunk. The work inside a chunk grows with it, the traffic on the state shrinks.
pub const CHUNK: usize = 64;

/// Sizes of one call. Layouts are row-major: q, k [H, K] and v [HV, V] one after the other in each row of
/// qkv [B, T, 2 H K + HV V] (as the short convolution leaves them), o [B, T, HV, V], state [B, HV, K, V].
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

    /// Elements of a row of qkv.
    pub fn width(&self) -> usize {
        2 * self.heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Elements of qkv.
    pub fn qkv_len(&self) -> usize {
        self.batch * self.tokens * self.width()
    }

    /// Elements of o.
    pub fn output_len(&self) -> usize {
        self.batch * self.tokens * self.value_heads * self.value_dim
    }

    /// Elements of the state.
    pub fn state_len(&self) -> usize {
        self.batch * self.value_heads * self.key_dim * self.value_dim
    }
}

/// A gate [B, T, heads, width]: `heads` is H or HV; `width` is 1 or the number of channels.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a, R> {
    data: &'a [R],
    heads: usize,
    width: usize,
}

impl<'a, R: Real> Gate<'a, R> {
    /// A gate of `heads` heads with `width` values each.
    pub fn new(data: &'a [R], heads: usize, width: usize) -> Self {
        Gate { data, heads, width }
    }

    /// One value for each value head: [B, T, HV].
    pub fn scalar(data: &'a [R], dims: &Dims) -> Self {
        Gate::new(data, dims.value_heads, 1)
    }

    fn is_scalar(&self) -> bool {
        self.width == 1
    }

    /// The values of one head at one position (b T + t).
    #[inline(always)]
    fn row(&self, position: usize, head: usize) -> &'a [R] {
        &self.data[(position * self.heads + head) * self.width..][..self.width]
    }

    /// The values for some columns counted from a head, on into those behind it: one each, or the only one of
    /// the head.
    #[inline(always)]
    fn columns(&self, position: usize, head: usize, columns: Range<usize>) -> &'a [R] {
        let head = &self.data[(position * self.heads + head) * self.width..];
        if self.is_scalar() {
            &head[..1]
        } else {
            &head[columns]
        }
    }

    fn fits(&self, dims: &Dims, channels: usize) -> bool {
        (self.heads == dims.heads || self.heads == dims.value_heads)
            && (self.width == 1 || self.width == channels)
            && self.data.len() == dims.batch * dims.tokens * self.heads * self.width
    }
}

/// What the rule reads. A tied gate beta is passed as both `erase` and `write`; its gradient is the sum of theirs.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, R> {
    /// Queries, keys (before the L2 norm) and values [B, T, 2 H K + HV V].
    pub qkv: &'a [R],
    /// Log decay g <= 0, one value or K to a head. `None`: nothing decays.
    pub decay: Option<Gate<'a, R>>,
    /// Erase gate b, one value or K to a head.
    pub erase: Gate<'a, R>,
    /// Write gate w, one value or V to a value head.
    pub write: Gate<'a, R>,
    /// State before the first token [B, HV, K, V]; zero if absent.
    pub state: Option<&'a [R]>,
}

impl<'a, R: Real> Inputs<'a, R> {
    /// The query of a head at a position (b T + t).
    #[inline(always)]
    fn query(&self, dims: &Dims, position: usize, head: usize) -> &'a [R] {
        &self.qkv[position * dims.width() + head * dims.key_dim..][..dims.key_dim]
    }

    #[inline(always)]
    fn key(&self, dims: &Dims, position: usize, head: usize) -> &'a [R] {
        self.query(dims, position, dims.heads + head)
    }

    /// Value columns counted from a value head, on into the heads behind it.
    #[inline(always)]
    fn values(
        &self,
        dims: &Dims,
        position: usize,
        value_head: usize,
        columns: Range<usize>,
    ) -> &'a [R] {
        let start = 2 * dims.heads * dims.key_dim + value_head * dims.value_dim;
        &self.qkv[position * dims.width() + start..][columns]
    }

    /// # Panics
    /// If a slice does not have the size that `dims` says: an error of the calling operation, which has checked
    /// the shapes of its user.
    fn check(&self, dims: &Dims) {
        assert!(
            dims.heads > 0 && dims.value_heads.is_multiple_of(dims.heads),
            "delta_rule: {dims:?}"
        );
        assert_eq!(
            self.qkv.len(),
            dims.qkv_len(),
            "delta_rule: qkv of {dims:?}"
        );
        assert!(
            self.decay.is_none_or(|g| g.fits(dims, dims.key_dim)),
            "delta_rule: decay of {dims:?}"
        );
        assert!(
            self.erase.fits(dims, dims.key_dim),
            "delta_rule: erase gate of {dims:?}"
        );
        let per_value_head = self.write.heads == dims.value_heads;
        assert!(
            per_value_head && self.write.fits(dims, dims.value_dim),
            "delta_rule: write gate of {dims:?}"
        );
        assert!(
            self.state.is_none_or(|s| s.len() == dims.state_len()),
            "delta_rule: state of {dims:?}"
        );
    }
}

/// How a call is cut up. A unit is what shares keys, decays and erase gates: one value head or, with a write gate
/// for each column, all the value heads of a key head. Its value columns are computed in panels of 16.
#[derive(Clone, Copy, Debug)]
struct Layout {
    dims: Dims,
    /// Units in a key head.
    groups: usize,
    /// Value heads in a unit.
    heads: usize,
    /// Whether each key channel decays for itself.
    channel_decay: bool,
    /// Tokens in a chunk, and chunks.
    chunk: usize,
    chunks: usize,
    /// Lanes in a row of key channels; lanes in a row of a chunk's positions; panels of value columns.
    key_lanes: usize,
    row_lanes: usize,
    panels: usize,
}

impl Layout {
    fn new<R: Real>(dims: Dims, x: &Inputs<R>, chunk: usize) -> Layout {
        let per_key_head = |gate: &Gate<R>| gate.heads == dims.heads;
        let shared = x.decay.as_ref().is_none_or(per_key_head) && per_key_head(&x.erase);
        let wide = shared && !x.write.is_scalar();
        let groups = if wide { 1 } else { dims.repeat() };
        let heads = dims.repeat() / groups;
        let chunk = chunk.clamp(1, dims.tokens.max(1));
        Layout {
            dims,
            groups,
            heads,
            channel_decay: x.decay.is_some_and(|g| !g.is_scalar()),
            chunk,
            chunks: dims.tokens.div_ceil(chunk),
            key_lanes: padded(dims.key_dim) / LANES,
            row_lanes: padded(chunk) / LANES,
            panels: padded(heads * dims.value_dim) / LANES,
        }
    }

    fn units(&self) -> usize {
        self.dims.batch * self.dims.heads * self.groups
    }

    /// Value columns of a unit.
    fn columns(&self) -> usize {
        self.heads * self.dims.value_dim
    }

    /// The columns of a unit's panel that begins at `column`.
    fn panel(&self, column: usize) -> Range<usize> {
        column..self.columns().min(column + LANES)
    }

    /// b T + t.
    #[inline(always)]
    fn position(&self, unit: Unit, token: usize) -> usize {
        unit.batch * self.dims.tokens + token
    }

    /// Padded key channels.
    fn channels(&self) -> usize {
        self.key_lanes * LANES
    }

    /// Padded positions of a chunk.
    fn rows(&self) -> usize {
        self.row_lanes * LANES
    }

    fn unit(&self, index: usize) -> Unit {
        let (key_head, group) = (index / self.groups, index % self.groups);
        let (batch, head) = (key_head / self.dims.heads, key_head % self.dims.heads);
        Unit {
            batch,
            head,
            value_head: head * self.dims.repeat() + group * self.heads,
        }
    }

    /// The positions of chunk `c`: first token and number of tokens.
    fn span(&self, c: usize) -> Span {
        let start = c * self.chunk;
        let tokens = self.chunk.min(self.dims.tokens - start);
        Span {
            start,
            tokens,
            rows: padded(tokens),
        }
    }
}

/// Where a unit lives: its sequence, key head and first value head.
#[derive(Clone, Copy, Debug)]
struct Unit {
    batch: usize,
    head: usize,
    value_head: usize,
}

impl Unit {
    /// The index of this unit's head in a gate of H or HV heads.
    #[inline(always)]
    fn head_of<R>(&self, gate: &Gate<R>, dims: &Dims) -> usize {
        if gate.heads == dims.heads {
            self.head
        } else {
            self.value_head
        }
    }
}

/// The tokens of one chunk, and their number padded to whole lanes.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    tokens: usize,
    rows: usize,
}
