//! Weft train.
pub mod bench;
pub mod bigram;
pub mod checkpoint;
pub mod data;
mod error;
pub mod evaluate;
pub mod files;
pub mod log;
pub mod machine;
pub mod model;
pub mod optim;
pub mod quickstart;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schedule;
pub mod study;
pub mod trainer;

pub use error::{Error, Result};
