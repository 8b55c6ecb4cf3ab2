//! Configurations: runs that agree on every axis but the seed.

use std::collections::BTreeMap;

use super::result::{AxisValue, RunResult, StudyResult};

/// Runs of one configuration.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Short name, from the axes that vary; unique within a study whose axes tell its runs apart.
    pub label: String,
    /// Every axis but the seed.
    pub axes: BTreeMap<&'a str, &'a AxisValue>,
    /// One run per seed, in grid order.
    pub runs: Vec<&'a RunResult>,
}

/// Mean and scatter of one number over the seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// How many values.
    pub count: usize,
    /// Arithmetic mean; NaN as soon as one value is.
    pub mean: f64,
    /// Sample standard deviation (n - 1), zero for one value.
    pub deviation: f64,
    /// Lowest value.
    pub low: f64,
    /// Highest value.
    pub high: f64,
}

impl Spread {
    /// Of any values; an empty one has count 0 and NaN everywhere.
    pub fn of(values: &[f64]) -> Spread {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Spread {
            count: values.len(),
            mean,
            deviation: if values.len() > 1 {
                (squares / (n - 1.0)).sqrt()
            } else {
                0.0
            },
            low: values.iter().copied().fold(f64::NAN, f64::min),
            high: values.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

impl Group<'_> {
    /// A final metric over the seeds that have it.
    pub fn metric(&self, key: &str) -> Spread {
        self.spread(|run| run.metrics.get(key).copied())
    }

    /// Any number of the runs over the seeds.
    pub fn spread(&self, value: impl Fn(&RunResult) -> Option<f64>) -> Spread {
        Spread::of(
            &self
                .runs
                .iter()
                .filter_map(|run| value(run))
                .collect::<Vec<_>>(),
        )
    }

    /// The learning curve: at each step that every seed has reached with a finite value, the spread over the seeds.
    pub fn curve(&self, key: &str) -> Vec<(u64, Spread)> {
        let curves: Vec<_> = self
            .runs
            .iter()
            .filter_map(|run| run.curves.get(key))
            .collect();
        let mut steps = BTreeMap::<u64, Vec<f64>>::new();
        for &(step, value) in curves.iter().copied().flatten() {
            if value.is_finite() {
                steps.entry(step).or_default().push(value);
            }
        }
        let all = |(_, values): &(u64, Vec<f64>)| values.len() == curves.len();
        steps
            .into_iter()
            .filter(all)
            .map(|(step, values)| (step, Spread::of(&values)))
            .collect()
    }
}

/// Whether an axis only repeats a run with other random numbers.
pub fn is_seed(axis: &str) -> bool {
    axis.rsplit('.').next() == Some("seed")
}

/// The last part of a recipe key: `optimizer.lr` is `lr`.
pub fn short_key(axis: &str) -> &str {
    axis.rsplit('.').next().unwrap_or(axis)
}

/// The axes of a study, seeds excluded, on which its runs differ.
pub fn varying(study: &StudyResult) -> Vec<&str> {
    let mut values = BTreeMap::<&str, Vec<Option<&AxisValue>>>::new();
    for key in study.runs.iter().flat_map(|run| run.axes.keys()) {
        values.insert(
            key,
            study.runs.iter().map(|run| run.axes.get(key)).collect(),
        );
    }
    let differ = |v: &[Option<&AxisValue>]| v.windows(2).any(|pair| pair[0] != pair[1]);
    values
        .into_iter()
        .filter(|(key, v)| !is_seed(key) && differ(v))
        .map(|(key, _)| key)
        .collect()
}

/// The configurations of a study, in the order in which the grid first meets them.
pub fn groups(study: &StudyResult) -> Vec<Group<'_>> {
    let varying = varying(study);
    let mut groups: Vec<Group> = Vec::new();
    for run in &study.runs {
        let axes: BTreeMap<_, _> = run
            .axes
            .iter()
            .filter(|(k, _)| !is_seed(k))
            .map(|(k, v)| (k.as_str(), v))
            .collect();
        match groups
            .iter_mut()
            .find(|g| !axes.is_empty() && g.axes == axes)
        {
            Some(group) => group.runs.push(run),
            None => {
                let label = Some(label(&axes, &varying))
                    .filter(|l| !l.is_empty())
                    .unwrap_or_else(|| run.name.clone());
                groups.push(Group {
                    label,
                    axes,
                    runs: vec![run],
                });
            }
        }
    }
    groups
}

/// The values on the axes `keys` in words: names speak for themselves, numbers and switches need their key.
pub fn label(axes: &BTreeMap<&str, &AxisValue>, keys: &[&str]) -> String {
    let part = |key: &&str| match axes.get(key)? {
        AxisValue::Text(text) => Some(text.clone()),
        value => Some(format!("{} {value}", short_key(key))),
    };
    keys.iter().filter_map(part).collect::<Vec<_>>().join(", ")
}
