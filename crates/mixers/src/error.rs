//! Errors of mixers, their parameters and their states.

use std::path::PathBuf;

/// What can go wrong when a mixer is built, run, or its state is read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] weft_tensor::Error),
    /// A setting that is unknown, of the wrong type or out of range.
    #[error("{mixer}: {detail}")]
    Config {
        /// The mixer's registry name.
        mixer: String,
        /// The setting and what is expected.
        detail: String,
    },
    /// A parameter that is missing, of another shape or of another dtype.
    #[error("parameter {name}: {detail}")]
    Param {
        /// The full name.
        name: String,
        /// What was found and what was expected.
        detail: String,
    },
    /// A state that does not belong to this mixer, or a row that it does not have.
    #[error("state of {mixer}: {detail}")]
    State {
        /// The mixer that the state is of, or is used with.
        mixer: String,
        /// What does not fit.
        detail: String,
    },
    /// A file that cannot be read or does not hold what it should.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        detail: String,
    },
}

/// Result of mixer operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A wrong setting.
    pub fn config(mixer: &str, detail: impl Into<String>) -> Error {
        Error::Config {
            mixer: mixer.into(),
            detail: detail.into(),
        }
    }

    /// A wrong state.
    pub fn state(mixer: &str, detail: impl Into<String>) -> Error {
        Error::State {
            mixer: mixer.into(),
            detail: detail.into(),
        }
    }

    /// A wrong file.
    pub fn file(path: impl Into<PathBuf>, detail: impl Into<String>) -> Error {
        Error::File {
            path: path.into(),
            detail: detail.into(),
        }
    }
}
