//! Weft's tensors.
pub mod cpu;
mod dtype;
pub use dtype::{DType, Element, Real};
