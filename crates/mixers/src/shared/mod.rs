//! Machinery that several mixers share.

pub mod norm;
