//! The errors of training. Each prints as one sentence that names the file, key or number and says what to do.

use std::io;
use std::path::{Path, PathBuf};

use weft_models::tokenizer::TokenizerError;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to read or write a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, for example "read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk, the quota or the allowed file size is exhausted.
    #[error(
        "no room to write {} ({source}): free some space or choose another folder, \
         the files already there are unchanged",
        path.display()
    )]
    Full {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process holds the lock of the folder.
    #[error("{} is in use by another run: wait for it or choose another folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The content of a file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A recipe that cannot be followed.
    #[error("{place}: {reason}")]
    Recipe {
        /// File and line, as `recipe.toml:12`.
        place: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Data that does not fit what is asked of it.
    #[error("{0}")]
    Data(String),
    /// The tokenizer's file or rules.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] weft_tensor::Error),
    /// A parameter or a mixer refused.
    #[error(transparent)]
    Mixer(#[from] weft_mixers::Error),
    /// A synthetic task refused.
    #[error(transparent)]
    Task(#[from] weft_tasks::Error),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] weft_models::Error),
    /// Gradients, moments or parameters that do not belong together.
    #[error("optimizer: {0}")]
    Optimizer(String),
    /// Training was given up.
    #[error(
        "{in_a_row} steps in a row were not finite, the last one step {step} (loss {loss}; NaN or infinity in \
         {tensors}): continue from the last checkpoint with a lower learning rate, see {} for every tensor",
        dump.display()
    )]
    Diverged {
        /// The last step.
        step: u64,
        /// How many steps were skipped.
        in_a_row: u64,
        /// The last step's loss.
        loss: f64,
        /// What was not finite.
        tensors: String,
        /// The list of all parameters and gradients.
        dump: PathBuf,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Names the file that an I/O error is about; no room left becomes [`Error::Full`].
    pub(crate) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| {
            let path = path.clone();
            match source.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => Self::Full { path, source },
                _ => Self::Io {
                    action,
                    path,
                    source,
                },
            }
        }
    }

    pub(crate) fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
