//! Errors: every one names the operation, what it got and what it expected.

use crate::dtype::DType;

/// What can go wrong in a tensor operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, axes, ranges or counts that do not fit the operation.
    #[error("{op}: {detail}")]
    Shape {
        /// The operation, as the method is called.
        op: &'static str,
        /// The shapes involved and what was expected.
        detail: String,
    },
    /// An element type that the operation does not take.
    #[error("{op}: got dtype {found}, expected {expected}")]
    DType {
        /// The operation, as the method is called.
        op: &'static str,
        /// The dtype of the offending operand.
        found: DType,
        /// The dtype or the kind of dtype that fits.
        expected: String,
    },
    /// An index outside the axis it points into.
    #[error("{op}: index {index} at position {position} is outside 0..{size} of axis {axis}")]
    Index {
        /// The operation, as the method is called.
        op: &'static str,
        /// The offending value.
        index: i64,
        /// Where it stands in the (flattened) index tensor.
        position: usize,
        /// The axis pointed into.
        axis: usize,
        /// The size of that axis.
        size: usize,
    },
    /// What a GPU, its driver or its libraries could not do.
    #[error("{op}: {detail}")]
    Device {
        /// The operation, as the method is called.
        op: &'static str,
        /// What happened, and what helps.
        detail: String,
    },
    /// A gradient that cannot be computed.
    #[error("grad: {0}")]
    Gradient(String),
    /// An error of a caller's own function inside a graph (checkpointing, custom functions).
    #[error("{0}")]
    Custom(String),
}

/// Result of tensor operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Build an [`Error::Shape`].
pub fn shape_error<T>(op: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::Shape {
        op,
        detail: detail.into(),
    })
}

/// Build an [`Error::DType`].
pub fn dtype_error<T>(op: &'static str, found: DType, expected: impl Into<String>) -> Result<T> {
    Err(Error::DType {
        op,
        found,
        expected: expected.into(),
    })
}
