//! Weft train.
pub mod bigram;
pub mod checkpoint;
pub mod data;
mod error;
pub mod evaluate;
pub mod files;
pub mod log;
pub mod optim;
pub mod recipe;
pub mod report;
pub mod schedule;
pub mod trainer;

pub use error::{Error, Result};
