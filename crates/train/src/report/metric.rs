//! What the program knows about the metrics it measures: their names in words, units and good direction.

/// Which way a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Losses, perplexities, bits per byte.
    Lower,
    /// Accuracies.
    Higher,
    /// Not known: nothing is called best.
    Unknown,
}

/// A metric as a reader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Title of axes and columns.
    pub title: String,
    /// What one is, for captions.
    pub meaning: &'static str,
    /// Which way is better.
    pub direction: Direction,
    /// Digits after the point in tables.
    pub digits: usize,
}

use Direction::{Higher, Lower, Unknown};

const KNOWN: [(&str, &str, &str, Direction, usize); 6] = [
    (
        "bits_per_byte",
        "bits per byte",
        "held-out text, lower is better",
        Lower,
        3,
    ),
    (
        "perplexity",
        "perplexity",
        "held-out text, per token, lower is better",
        Lower,
        2,
    ),
    (
        "validation_loss",
        "validation loss",
        "nats per token on held-out text, lower is better",
        Lower,
        3,
    ),
    (
        "loss",
        "training loss",
        "nats per token on the training batches, lower is better",
        Lower,
        3,
    ),
    (
        "accuracy",
        "accuracy",
        "share of right answers, higher is better",
        Higher,
        3,
    ),
    (
        "gradient_norm",
        "gradient norm",
        "before clipping",
        Unknown,
        3,
    ),
];

impl Metric {
    /// The metric named `key`. An unlisted one is shown under its own name and has no better direction.
    pub fn of(key: &str) -> Metric {
        match KNOWN.iter().find(|m| m.0 == key) {
            Some(&(_, title, meaning, direction, digits)) => Metric {
                title: title.into(),
                meaning,
                direction,
                digits,
            },
            None => Metric {
                title: key.replace('_', " "),
                meaning: "",
                direction: Unknown,
                digits: 4,
            },
        }
    }

    /// Whether `a` is better than `b`. NaN is never better; unknown directions have no better.
    pub fn better(&self, a: f64, b: f64) -> bool {
        match self.direction {
            Lower => a < b || (b.is_nan() && !a.is_nan()),
            Higher => a > b || (b.is_nan() && !a.is_nan()),
            Unknown => false,
        }
    }
}
