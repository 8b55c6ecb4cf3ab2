//! Language models woven from sequence mixers.
//!
//! [`Config`] describes a model and is its `config.json`; [`LanguageModel`] is embeddings, pre-norm blocks around
//! mixers, and a head; [`ModelState`] is its memory as a value. [`folder`] reads and writes model folders,
//! [`generate`] continues text token by token through the state, [`explain`] says what runs in each layer and why.

pub mod block;
pub mod blueprint;
pub mod config;
pub mod decoder;
pub mod embedding;
pub mod error;
pub mod explain;
pub mod fields;
mod fingerprint;
pub mod folder;
pub mod generate;
pub mod lm;
pub mod mlp;
pub mod pattern;
pub mod sample;
pub mod state;
mod stop;
pub mod tokenizer;

pub use config::Config;
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use explain::{Explanation, explain};
pub use generate::{Finish, Generation, Session, Settings};
pub use lm::{LanguageModel, Run};
pub use mlp::MlpKind;
pub use sample::{Sampler, Sampling};
pub use state::ModelState;
