//! The errors of this crate. Each prints as one sentence that names the task and its knob and says what to do.

use std::ops::RangeInclusive;

/// What can be wrong with a task that is asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is not in the table.
    #[error("there is no task {name:?}{hint}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest name, in words.
        hint: String,
    },
    /// A knob out of its range, or knobs that contradict each other.
    #[error("task {task}: {reason}")]
    Knob {
        /// The task.
        task: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Sizes beyond this are a slip of the finger.
pub(crate) const MAX: usize = 1 << 16;

/// Check that a size is in its range.
pub(crate) fn size(
    task: &'static str,
    knob: &str,
    value: usize,
    range: RangeInclusive<usize>,
) -> Result<()> {
    let (low, high) = (range.start(), range.end());
    let reason = format!("{knob} is {value}: give {low} to {high}");
    ensure(range.contains(&value), task, reason)
}

/// Check that a share is from 0 to 1.
pub(crate) fn share(task: &'static str, knob: &str, value: f64) -> Result<()> {
    let reason = format!("{knob} is {value}: give a share from 0 to 1");
    ensure((0.0..=1.0).contains(&value), task, reason)
}

/// An error about a knob unless `right`.
pub(crate) fn ensure(right: bool, task: &'static str, reason: impl Into<String>) -> Result<()> {
    match right {
        true => Ok(()),
        false => Err(Error::Knob {
            task,
            reason: reason.into(),
        }),
    }
}
