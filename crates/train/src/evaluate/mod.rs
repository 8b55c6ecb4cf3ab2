//! How good a model is on what it has not seen: text ([`text`]) or a synthetic task ([`answers`]).

pub mod answers;
pub mod text;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use answers::{Answers, AtLength};
pub use text::{EvalConfig, Evaluation, HeldOut, evaluate};

/// What an evaluation found; in logs and checkpoints it stands without a tag.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Score {
    /// On held-out text.
    Text(Evaluation),
    /// On held-out draws of a task.
    Answers(Answers),
}

impl Score {
    /// The numbers to plot and compare, by name; the one that decides comes first.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        match self {
            Score::Text(text) => vec![
                ("bits_per_byte".into(), text.bits_per_byte),
                ("perplexity".into(), text.perplexity),
            ],
            Score::Answers(answers) => answers.metrics(),
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Score::Text(text) => text.fmt(f),
            Score::Answers(answers) => answers.fmt(f),
        }
    }
}
