//! Machinery that several mixers share.

mod blocks;
pub mod cache_rows;
pub mod conv;
pub mod decayed;
pub mod delta_rule;
pub mod flash;
pub mod heads;
pub mod lower_bound;
pub mod norm;
pub mod projection;
pub mod recurrent;
pub mod rope;
pub(crate) mod rope_gpu;
pub(crate) mod rows;
pub mod scan;

/// Channels of all heads that a layer may have: more is a slip of the finger or a hostile config, and products of
/// sizes would overflow.
pub const MAX_CHANNELS: usize = 1 << 26;
