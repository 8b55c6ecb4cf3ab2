//! Errors of models, their files and their use; each prints as one sentence.

use std::path::PathBuf;

/// What can go wrong when a model is described, built, read, run or made to speak.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] weft_tensor::Error),
    /// A mixer, a parameter, a state or a file was refused.
    #[error(transparent)]
    Mixer(#[from] weft_mixers::Error),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A field of a config that is missing, unknown, of the wrong type or out of range.
    #[error("config: {0}")]
    Config(String),
    /// A token id that the model has no embedding for.
    #[error(
        "token {id} at position {position} of row {row} is outside the vocabulary of {vocab_size} tokens"
    )]
    Token {
        /// The id.
        id: i64,
        /// The row of the batch.
        row: usize,
        /// The position in the row.
        position: usize,
        /// The model's number of tokens.
        vocab_size: usize,
    },
    /// Ids, lengths or a state that do not fit the model or each other.
    #[error("{0}")]
    Input(String),
    /// A setting of generation that is out of range.
    #[error("{name}: {detail}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given and what is expected.
        detail: String,
    },
}

/// Result of model operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A file or folder that cannot be read or written, or does not hold what it should.
    pub fn file(path: impl Into<PathBuf>, detail: impl Into<String>) -> Error {
        Error::Mixer(weft_mixers::Error::file(path, detail))
    }
}
