//! Plots of a study as SVG: the comparison of configurations, learning curves, a metric against a numeric axis, the
//! length of the sequences or the size of the state, and quality against speed.
//!
//! One configuration looks the same in every plot: its names (mixers, layer patterns) choose the hue, its numbers
//! (width, learning rate) the dashes. Scatter over seeds is drawn from the lowest to the highest value.

mod against;
mod axis;
mod canvas;
mod comparison;
mod curves;
mod frame;
mod palette;
mod style;

pub(super) use palette::{css_variables, themed};
pub(super) use style::{Style, styles};

use std::collections::BTreeSet;

use super::group::{Group, groups, varying};
use super::metric::Metric;
use super::result::StudyResult;
use super::table;
use crate::error::Result;

/// A plot, ready to be written or set into a page.
#[derive(Clone, Debug)]
pub struct Figure {
    /// File name, unique within the study.
    pub file: String,
    /// What it shows, in one or two sentences.
    pub caption: String,
    /// A complete SVG document on a white background.
    pub svg: String,
}

/// Every plot that the study has data for, the most telling first.
///
/// # Errors
/// When the drawing library refuses.
pub fn figures(study: &StudyResult) -> Result<Vec<Figure>> {
    let groups = groups(study);
    let plot = Plot {
        study,
        styles: styles(study, &groups),
        groups,
    };
    let mut figures = Vec::new();
    figures.extend(plot.comparison(&study.metric)?);
    figures.extend(plot.curves(&study.metric)?);
    for axis in numeric_axes(study) {
        figures.extend(plot.against(&study.metric, axis, axis)?);
    }
    figures.extend(plot.against_length(&study.metric)?);
    figures.extend(plot.against_state(&study.metric)?);
    figures.extend(plot.against_speed(&study.metric)?);
    for key in curve_keys(study)
        .into_iter()
        .filter(|key| *key != study.metric)
    {
        figures.extend(plot.curves(key)?);
    }
    Ok(figures)
}

/// A study with its configurations and their looks.
struct Plot<'a> {
    study: &'a StudyResult,
    groups: Vec<Group<'a>>,
    styles: Vec<Style>,
}

impl Plot<'_> {
    /// "Points are means over 3 seeds ...", or nothing when no configuration has two runs.
    fn about_seeds(&self, what: &str, scatter: &str) -> String {
        let counts: Vec<usize> = self.groups.iter().map(|g| g.runs.len()).collect();
        let (least, most) = (
            counts.iter().min().copied().unwrap_or(0),
            counts.iter().max().copied().unwrap_or(0),
        );
        match (least, most) {
            (_, 0..=1) => String::new(),
            (a, b) if a == b => {
                format!(" {what} are means over {a} seeds, {scatter} the lowest to the highest.")
            }
            (a, b) => format!(
                " {what} are means over {a} to {b} seeds, {scatter} the lowest to the highest."
            ),
        }
    }
}

/// Metrics with a learning curve.
fn curve_keys(study: &StudyResult) -> BTreeSet<&str> {
    study
        .runs
        .iter()
        .flat_map(|run| run.curves.keys().map(String::as_str))
        .collect()
}

/// The varying axes on which every run has a number.
fn numeric_axes(study: &StudyResult) -> Vec<&str> {
    let number = |key: &&str| {
        study
            .runs
            .iter()
            .all(|run| run.axes.get(*key).is_some_and(|v| v.number().is_some()))
    };
    varying(study).into_iter().filter(number).collect()
}

/// `Bits per byte (held-out text, lower is better)`.
fn describe(metric: &Metric) -> String {
    let mut letters = metric.title.chars();
    let title: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(letters)
        .collect();
    if metric.meaning.is_empty() {
        title
    } else {
        format!("{title} ({})", metric.meaning)
    }
}

fn best(plot: &Plot) -> Option<usize> {
    table::best(plot.study, &plot.groups)
}
