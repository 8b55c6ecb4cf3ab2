//! Weft train.
pub mod data;
mod error;
pub mod files;
pub mod log;
pub mod recipe;
pub mod report;
pub mod schedule;

pub use error::{Error, Result};
