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

const KNOWN: [(&str, &str, &str, Direction, usize); 7] = [
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
        "exact",
        "all right",
        "share of examples with every answer right, higher is better",
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

/// The name of a metric that is measured at a length: `accuracy@128`.
pub fn length_key(metric: &str, length: usize) -> String {
    format!("{metric}@{length}")
}

/// The metric and the length of a name that [`length_key`] made.
pub fn at_length(key: &str) -> Option<(&str, usize)> {
    let (metric, length) = key.split_once('@')?;
    Some((metric, length.parse().ok()?))
}

impl Metric {
    /// The metric named `key`. An unlisted one is shown under its own name and has no better direction.
    pub fn of(key: &str) -> Metric {
        if let Some((base, length)) = at_length(key) {
            let metric = Metric::of(base);
            return Metric {
                title: format!("{} at {length} tokens", metric.title),
                ..metric
            };
        }
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
