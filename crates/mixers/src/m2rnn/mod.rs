//! M2RNN (Mishra, Tan, Stoica, Gonzalez, Dao 2026, arXiv 2603.14360): a recurrent network whose state is a matrix
//! and whose update is not linear.
//!
//! For each of N heads, H [K, V], rows q, k in R^K, v in R^V, one gate f in (0, 1), W [V, V]:
//!
//! ```text
//! Z_t = tanh(H_{t-1} W + k_t v_t^T)
//! H_t = f_t H_{t-1} + (1 - f_t) Z_t              o_t = H_t^T q_t
//! ```
//!
//! The rows of H do not mix: each is an Elman network of V units that shares W. q and k may have fewer heads, which
//! are then shared by neighbours. The layer:
//!
//! ```text
//! c, f, g = input_projection(x)        c = q | k | v        q, k, v = SiLU(short convolution of c)
//! f = exp(-exp(A_log) softplus(f + dt_bias))
//! y = output_projection( RMSNorm_NV( (o + D v) SiLU(g) ) )
//! ```
//!
//! There is no form that is parallel over tokens: [`op`] runs the recurrence in one fused scan.

mod backward;
mod forward;
#[cfg(test)]
mod golden_tests;
mod layer;
pub mod op;
mod reference;
#[cfg(test)]
mod tests;

pub use layer::{Config, ENTRY};
pub use op::{Clip, Operands, m2rnn, m2rnn_step, recurrence};

use crate::shared::recurrent::product::LANES;

/// Tokens between two states that are kept for the way back.
const SEGMENT: usize = crate::shared::recurrent::SEGMENT;

/// Heads that are computed one after the other, so that they sum up the gradients of a shared query and key.
const HEADS: usize = 4;

/// Sizes of one call: q [B, T, Nq, K], k [B, T, Nk, K], v [B, T, N, V], f [B, T, N], W [N, V, V], H [B, N, K, V].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B
    pub batch: usize,
    /// T
    pub tokens: usize,
    /// N
    pub heads: usize,
    /// Nq, a divisor of N.
    pub q_heads: usize,
    /// Nk, a divisor of N.
    pub k_heads: usize,
    /// K
    pub key_dim: usize,
    /// V
    pub value_dim: usize,
}

impl Dims {
    /// Lanes in a row of values.
    fn panels(&self) -> usize {
        self.value_dim.div_ceil(LANES)
    }

    /// Elements of a head's state.
    fn matrix(&self) -> usize {
        self.key_dim * self.value_dim
    }

    /// All units: runs of at most [`HEADS`] heads of one sequence that share their query and their key.
    fn units(&self) -> Vec<Unit> {
        let shared = gcd(self.heads / self.q_heads, self.heads / self.k_heads);
        let runs = |batch| {
            (0..self.heads).step_by(shared).flat_map(move |group| {
                (group..group + shared)
                    .step_by(HEADS)
                    .map(move |first| Unit {
                        batch,
                        first,
                        heads: HEADS.min(group + shared - first),
                    })
            })
        };
        (0..self.batch).flat_map(runs).collect()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Some heads of one sequence.
#[derive(Clone, Copy, Debug)]
struct Unit {
    batch: usize,
    first: usize,
    heads: usize,
}

impl Unit {
    fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.heads
    }
}

/// What the recurrence reads, on slices; see [`Dims`].
#[derive(Clone, Copy, Debug)]
struct Inputs<'a, R> {
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    f: &'a [R],
    w: &'a [R],
    /// Without tanh: a linear recurrence.
    linear: bool,
}

impl<'a, R> Inputs<'a, R> {
    #[inline(always)]
    fn query(&self, d: &Dims, u: &Unit, t: usize) -> &'a [R] {
        let head = u.first * d.q_heads / d.heads;
        &self.q[((u.batch * d.tokens + t) * d.q_heads + head) * d.key_dim..][..d.key_dim]
    }

    #[inline(always)]
    fn key(&self, d: &Dims, u: &Unit, t: usize) -> &'a [R] {
        let head = u.first * d.k_heads / d.heads;
        &self.k[((u.batch * d.tokens + t) * d.k_heads + head) * d.key_dim..][..d.key_dim]
    }

    #[inline(always)]
    fn value(&self, d: &Dims, position: usize) -> &'a [R] {
        &self.v[position * d.value_dim..][..d.value_dim]
    }

    /// The index of a head at a token in [B, T, N].
    #[inline(always)]
    fn position(&self, d: &Dims, u: &Unit, (t, head): (usize, usize)) -> usize {
        (u.batch * d.tokens + t) * d.heads + head
    }
}
