//! What a training run is told: how long, how fast, and what it reports.

use serde::{Deserialize, Serialize};

use crate::optim::OptimizerConfig;
use crate::schedule::{Schedule, Shape};
use crate::trainer::Progress;

/// When training ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// After so many steps. Reproducible bit for bit.
    Steps(u64),
    /// After the step that completes so many tokens. Reproducible bit for bit.
    Tokens(u64),
    /// After the step in which so many minutes of training are over. The schedule then follows the clock, so two runs
    /// are never quite alike.
    Minutes(f64),
}

impl Budget {
    /// The part of the budget that is used up, from 0 to 1.
    pub fn spent(&self, progress: &Progress) -> f64 {
        let spent = match *self {
            Self::Steps(n) => progress.step as f64 / n as f64,
            Self::Tokens(n) => progress.tokens as f64 / n as f64,
            Self::Minutes(m) => progress.seconds / (60.0 * m),
        };
        // A budget of nothing is spent at once.
        if spent.is_nan() {
            1.0
        } else {
            spent.clamp(0.0, 1.0)
        }
    }

    /// What is done and what is to be done, in the budget's own unit.
    pub(super) fn count(&self, progress: &Progress) -> (u64, u64) {
        match *self {
            Self::Steps(n) => (progress.step, n),
            Self::Tokens(n) => (progress.tokens, n),
            Self::Minutes(m) => (progress.seconds as u64, (60.0 * m) as u64),
        }
    }

    /// Steps of the whole run, judged by the pace so far where it is not the budget itself.
    fn steps(&self, progress: &Progress) -> u64 {
        match *self {
            Self::Steps(n) => n,
            // Before the first step the quotient is NaN: every schedule then begins as if the run were endless.
            _ => match progress.step as f64 / self.spent(progress) {
                steps if steps.is_nan() => u64::MAX,
                steps => steps.round() as u64,
            },
        }
    }
}

/// The settings of a [`Trainer`](super::Trainer).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// When training ends.
    pub budget: Budget,
    /// The rule that moves the parameters.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run. Its total is that of the budget: what is given here is ignored.
    pub schedule: Schedule,
    /// Micro-batches whose gradients are averaged into one step.
    pub accumulate: usize,
    /// Longest gradient: a longer one is scaled down.
    pub clip: Option<f64>,
    /// Stop when this many steps in a row had a loss or a gradient that is not finite.
    pub patience: u32,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// Steps between two evaluations; the last step is always followed by one.
    pub evaluate_every: Option<u64>,
    /// Steps between two checkpoints; the last step is always followed by one.
    pub save_every: Option<u64>,
    /// Checkpoints kept.
    pub keep: usize,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            budget: Budget::Steps(1000),
            optimizer: OptimizerConfig::default(),
            schedule: Schedule {
                shape: Shape::Cosine,
                peak: 1e-3,
                warmup: 20,
                total: 0,
                min_ratio: 0.1,
            },
            accumulate: 1,
            clip: Some(1.0),
            patience: 5,
            log_every: 1,
            evaluate_every: None,
            save_every: None,
            keep: 2,
        }
    }
}

impl TrainerConfig {
    /// The learning rate of the step after `progress`.
    pub fn learning_rate(&self, progress: &Progress) -> f64 {
        let schedule = Schedule {
            total: self.budget.steps(progress),
            ..self.schedule
        };
        schedule.rate(progress.step)
    }
}
