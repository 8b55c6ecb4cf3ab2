//! When training ends, and what learning rate that means for a step.
//!
//! Runs by steps or tokens are the same bits each time. In a run by minutes the schedule follows the clock, so two runs
//! are never quite alike.

use crate::recipe::{Budget, TrainRecipe};

use super::Progress;

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

    /// What is done and what is to be done, in the budget's own unit; minutes are counted in seconds.
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

impl TrainRecipe {
    /// The part of the highest learning rate that the step after `progress` is taken with.
    pub fn rate(&self, progress: &Progress) -> f64 {
        let total = self.budget.steps(progress);
        self.schedule(1.0, total).rate(progress.step)
    }
}
