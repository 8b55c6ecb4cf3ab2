//! The data of a study: what was asked, where it ran, and what each run measured.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// A grid of trainings and what came of it. `results.json` is exactly this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StudyResult {
    /// The heading of the report.
    pub title: String,
    /// The command line that makes these numbers again.
    pub command: String,
    /// The recipe (TOML), word for word.
    pub recipe: String,
    /// Processor, cores and memory, in words.
    pub machine: String,
    /// Version of the program that ran the study.
    pub version: String,
    /// The metric that decides, a key of [`RunResult::metrics`].
    pub metric: String,
    /// How many runs the grid has; more than `runs.len()` while the study is under way.
    pub planned: usize,
    /// The finished runs, in grid order.
    pub runs: Vec<RunResult>,
}

/// One finished training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Unique within the study; also the name of the run's folder.
    pub name: String,
    /// The recipe keys that the grid varies, and this run's values of them.
    pub axes: BTreeMap<String, AxisValue>,
    /// Trained parameters.
    pub parameters: u64,
    /// Tokens of a training sequence.
    #[serde(default)]
    pub sequence: u64,
    /// Bytes of one sequence's state behind so many tokens, in the dtype of the model.
    #[serde(default)]
    pub state_bytes: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Training throughput, tokens per second, evaluation excluded.
    #[serde(deserialize_with = "nullable")]
    pub tokens_per_second: f64,
    /// Wall-clock time of the whole run in seconds.
    #[serde(deserialize_with = "nullable")]
    pub seconds: f64,
    /// Per metric, `(step, value)` in the order of the steps.
    #[serde(deserialize_with = "nullable_curves")]
    pub curves: BTreeMap<String, Vec<(u64, f64)>>,
    /// Final value per metric. NaN marks a run that diverged (`null` in JSON).
    #[serde(deserialize_with = "nullable_map")]
    pub metrics: BTreeMap<String, f64>,
}

/// The value a run has on one axis of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AxisValue {
    /// A switch.
    Bool(bool),
    /// A count or a seed.
    Integer(i64),
    /// A real number.
    Number(f64),
    /// A name, a layer pattern.
    Text(String),
}

impl AxisValue {
    /// The value as a coordinate, when it has one.
    pub fn number(&self) -> Option<f64> {
        match self {
            AxisValue::Integer(i) => Some(*i as f64),
            AxisValue::Number(x) => Some(*x),
            AxisValue::Bool(_) | AxisValue::Text(_) => None,
        }
    }
}

impl fmt::Display for AxisValue {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            AxisValue::Bool(b) => b.fmt(f),
            AxisValue::Integer(i) => i.fmt(f),
            AxisValue::Number(x) if *x != 0.0 && x.abs() < 1e-2 => write!(f, "{x:e}"),
            AxisValue::Number(x) => x.fmt(f),
            AxisValue::Text(s) => s.fmt(f),
        }
    }
}

impl From<bool> for AxisValue {
    fn from(b: bool) -> Self {
        AxisValue::Bool(b)
    }
}

impl From<i64> for AxisValue {
    fn from(i: i64) -> Self {
        AxisValue::Integer(i)
    }
}

impl From<f64> for AxisValue {
    fn from(x: f64) -> Self {
        AxisValue::Number(x)
    }
}

impl From<&str> for AxisValue {
    fn from(s: &str) -> Self {
        AxisValue::Text(s.to_string())
    }
}

// JSON has no NaN: serde_json writes it as null, and these read it back.

fn nullable<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

fn nullable_map<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let map = BTreeMap::<String, Option<f64>>::deserialize(d)?;
    Ok(map
        .into_iter()
        .map(|(k, v)| (k, v.unwrap_or(f64::NAN)))
        .collect())
}

type Curves<T> = BTreeMap<String, Vec<(u64, T)>>;

fn nullable_curves<'de, D: Deserializer<'de>>(d: D) -> Result<Curves<f64>, D::Error> {
    let read = |points: Vec<(u64, Option<f64>)>| {
        points
            .into_iter()
            .map(|(s, v)| (s, v.unwrap_or(f64::NAN)))
            .collect()
    };
    let map = Curves::<Option<f64>>::deserialize(d)?;
    Ok(map
        .into_iter()
        .map(|(k, points)| (k, read(points)))
        .collect())
}
