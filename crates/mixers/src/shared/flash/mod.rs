//! Tiled softmax attention on plain slices (CPU): forward, backward and the few-queries case.
//!
//! For each sequence b, query t and head h, with the key head g = h / (Hq / Hkv):
//!
//! ```text
//!     s_ts  = scale * q_t . k_s                        for the visible keys s
//!     lse_t = log sum_s exp(s_ts)
//!     o_t   = sum_s exp(s_ts - lse_t) v_s              0, with lse -inf, if no key is visible
//! ```
//!
//! | array | shape | |
//! |---|---|---|
//! | q, dq | [B, T, Hq, D] | Hq = r Hkv, the r query heads of a key head are neighbours |
//! | k, dk | [B, S, Hkv, D] | |
//! | v, dv | [B, S, Hkv, Dv] | |
//! | o, do | [B, T, Hq, Dv] | |
//! | lse, dlse | [B, Hq, T] | natural logarithm |
//!
//! One rule says what is visible, from absolute positions (see [`Mask`]): training, left-aligned ragged
//! rows, ring caches in any order, empty slots, sliding windows and attention sinks are all cases of it.
//!
//! The scores exist one tile at a time: 64 keys by 16 queries, *transposed*, so that a vector register
//! holds the same key for 16 queries. The maximum, the sum and the rescaling of the online softmax
//! (Milakov and Gimelshein 2018, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691) are then plain
//! elementwise loops. The queries of all heads that share a key head lie in the same tiles. A tile in
//! which nothing is visible is skipped; where all is visible, the mask is not looked at. A key or value
//! that a query may not see never reaches it, even if it is NaN.
//!
//! Sums run in a fixed order, whatever the number of threads.

mod backward;
pub mod block;
mod composed;
mod decode;
mod forward;
pub mod gpu;
mod mask;
pub mod op;
#[cfg(test)]
mod tests;

pub use backward::{Gradients, backward};
pub use forward::forward;
pub use mask::{Keys, Mask};

use weft_tensor::Real;

/// Keys of a tile.
const TILE: usize = 64;

/// The sizes of one call; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B, sequences.
    pub batch: usize,
    /// T, queries of a sequence.
    pub queries: usize,
    /// S, keys (or cache slots) of a sequence.
    pub keys: usize,
    /// Hq, query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Hkv, key and value heads.
    pub kv_heads: usize,
    /// D, of queries and keys.
    pub dim: usize,
    /// Dv, of values and outputs.
    pub value_dim: usize,
}

impl Dims {
    /// Query heads of a key head, r.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries of one key head in one sequence: (t, head in the group), the head running fastest.
    fn lanes(&self) -> usize {
        self.queries * self.group()
    }

    /// The row of an array [B, T, Hq, dim] that a lane of key head g in sequence b stands for.
    #[inline(always)]
    fn query_row(&self, b: usize, g: usize, lane: usize) -> usize {
        let r = self.group();
        ((b * self.queries + lane / r) * self.kv_heads + g) * r + lane % r
    }

    /// The row of an array [B, S, Hkv, dim].
    #[inline(always)]
    fn key_row(&self, b: usize, g: usize, s: usize) -> usize {
        (b * self.keys + s) * self.kv_heads + g
    }

    /// Where an array [B, Hq, T] keeps a lane.
    #[inline(always)]
    fn lse_index(&self, b: usize, g: usize, lane: usize) -> usize {
        let r = self.group();
        (b * self.heads + g * r + lane % r) * self.queries + lane / r
    }

    /// # Panics
    /// If an array does not have the size of its shape: an error of the calling operator, not of the
    /// user's input.
    fn check(&self, mask: &Mask, arrays: &[(&str, usize, [usize; 4])]) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "flash: {} query heads do not share {} key heads evenly",
            self.heads,
            self.kv_heads
        );
        for (name, len, shape) in arrays {
            let expected: usize = shape.iter().product();
            assert!(
                *len == expected,
                "flash: {name} has {len} elements, its shape {shape:?} has {expected}"
            );
        }
        mask.check(self.batch, self.keys);
    }

    /// The shapes of q, k, v and o.
    fn shapes(&self) -> [[usize; 4]; 4] {
        let Dims {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            dim,
            value_dim,
        } = *self;
        [
            [batch, queries, heads, dim],
            [batch, keys, kv_heads, dim],
            [batch, keys, kv_heads, value_dim],
            [batch, queries, heads, value_dim],
        ]
    }
}

/// The `dim` elements of a row.
#[inline(always)]
fn row<R>(array: &[R], row: usize, dim: usize) -> &[R] {
    &array[row * dim..(row + 1) * dim]
}

/// Split an array [B, N, Hkv, r, dim] into its rows, bucketed by (b, key head) and in lane order inside a
/// bucket, so that tasks can write them independently.
fn rows_by_head<R>(
    array: &mut [R],
    batch: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
) -> Vec<Vec<&mut [R]>> {
    if array.is_empty() {
        return (0..batch * kv_heads).map(|_| Vec::new()).collect();
    }
    let sequence = array.len() / batch;
    let mut buckets: Vec<Vec<&mut [R]>> = (0..batch * kv_heads)
        .map(|_| Vec::with_capacity(sequence / (kv_heads * dim)))
        .collect();
    for (b, sequence) in array.chunks_exact_mut(sequence).enumerate() {
        for (i, row) in sequence.chunks_exact_mut(dim).enumerate() {
            buckets[b * kv_heads + i / group % kv_heads].push(row);
        }
    }
    buckets
}

/// The larger of two; keeps the first if the second is NaN.
#[inline(always)]
fn larger<R: Real>(a: R, b: R) -> R {
    if b > a { b } else { a }
}
