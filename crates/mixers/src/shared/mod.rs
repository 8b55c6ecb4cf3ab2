//! Machinery that several mixers share.

pub mod delta_rule;
pub mod flash;
pub mod heads;
pub mod norm;
pub mod rope;
