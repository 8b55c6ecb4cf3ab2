//! How far a run has come. Stored in every checkpoint.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::evaluate::Score;

/// Counters of a run, across interruptions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Tokens learned from, those of skipped steps included.
    pub tokens: u64,
    /// Steps whose loss or gradient was not finite: they changed nothing.
    pub skipped: u64,
    /// How many of the last steps were skipped without a good one in between.
    pub skipped_in_a_row: u64,
    /// Seconds spent in steps; evaluating and saving do not count.
    pub seconds: f64,
    /// Mean loss per prediction of the last good step, in nats.
    pub loss: f64,
    /// The last evaluation.
    pub evaluation: Option<Score>,
}

/// Seconds spent since the start of this process, by kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Preparing batches.
    pub data: f64,
    /// From the batch to the loss.
    pub forward: f64,
    /// From the loss to the gradients.
    pub backward: f64,
    /// Norm, clipping and the step of the parameters.
    pub optimizer: f64,
    /// Held-out evaluation.
    pub evaluate: f64,
    /// Writing checkpoints.
    pub save: f64,
}

impl Times {
    /// The part that is training proper.
    pub fn training(&self) -> f64 {
        self.data + self.forward + self.backward + self.optimizer
    }
}

/// Why [`Trainer::run`](super::Trainer::run) came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The budget is spent.
    Finished,
    /// It was asked to stop; a checkpoint holds everything.
    Interrupted,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Why it ended.
    pub outcome: Outcome,
    /// How far it came.
    pub progress: Progress,
    /// Where this process spent its time.
    pub times: Times,
    /// Tokens per second of training time in this process.
    pub tokens_per_second: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Progress {
            step,
            tokens,
            seconds,
            loss,
            ..
        } = self.progress;
        let verb = match self.outcome {
            Outcome::Finished => "finished",
            Outcome::Interrupted => "stopped",
        };
        write!(
            f,
            "{verb} after {step} steps, {tokens} tokens, {seconds:.1} s: loss {loss:.3}"
        )?;
        match &self.progress.evaluation {
            Some(evaluation) => write!(f, ", {evaluation}"),
            None => Ok(()),
        }
    }
}
