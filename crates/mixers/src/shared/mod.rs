//! Machinery that several mixers share.

pub mod cache_rows;
pub mod delta_rule;
pub mod flash;
pub mod heads;
pub mod norm;
pub mod recurrent;
pub mod rope;

/// Channels of all heads that a layer may have: more is a slip of the finger or a hostile config, and products of
/// sizes would overflow.
pub const MAX_CHANNELS: usize = 1 << 26;
