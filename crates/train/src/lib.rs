//! Weft train.
pub mod report;
