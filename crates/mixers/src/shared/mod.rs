//! Machinery that several mixers share.

pub mod delta_rule;
pub mod norm;
