//! A metric against a numeric axis of the grid, the length of the sequences, the size of the state, or training speed.

use std::collections::{BTreeMap, BTreeSet};

use super::axis::{Axis, pad, range};
use super::canvas::svg;
use super::frame::{Frame, names_width, tick_width};
use super::{Figure, Metric, Plot, Style, describe};
use crate::error::Result;
use crate::report::format::bytes;
use crate::report::group::{Group, Spread, label, varying};
use crate::report::metric::{at_length, length_key};
use crate::report::result::{AxisValue, RunResult};
use crate::report::table::metric_keys;

const WIDTH: f64 = 860.0;

/// Points that belong together: one series of the plot.
struct Series {
    name: String,
    style: Style,
    points: Vec<(f64, Spread)>,
}

impl Plot<'_> {
    /// The metric against a numeric axis, one line per combination of the other axes.
    pub(super) fn against(&self, key: &str, axis: &str, title: &str) -> Result<Option<Figure>> {
        let mut series: Vec<(BTreeMap<&str, &AxisValue>, Series)> = Vec::new();
        let others: Vec<&str> = varying(self.study)
            .into_iter()
            .filter(|other| *other != axis)
            .collect();
        for (group, style) in self.groups.iter().zip(&self.styles) {
            let Some(x) = group.axes.get(axis).and_then(|v| v.number()) else {
                continue;
            };
            let mut rest = group.axes.clone();
            rest.remove(axis);
            let point = (x, group.metric(key));
            match series.iter_mut().find(|s| s.0 == rest) {
                Some((_, series)) => series.points.push(point),
                None => {
                    let name = label(&rest, &others);
                    let style = Style {
                        variant: 0,
                        ..*style
                    };
                    series.push((
                        rest,
                        Series {
                            name,
                            style,
                            points: vec![point],
                        },
                    ));
                }
            }
        }
        let mut series: Vec<Series> = series.into_iter().map(|s| s.1).collect();
        distinguish(&mut series);
        let xs: Vec<f64> = series
            .iter()
            .flat_map(|s| s.points.iter().map(|p| p.0))
            .collect();
        let x = Axis::at_values(title, &xs, |v| AxisValue::Number(v).to_string());
        let caption = format!(
            "{} against {}.{}",
            describe(&Metric::of(key)),
            title,
            self.about_seeds("Marks", "bars span")
        );
        self.points(
            key,
            x,
            series,
            format!("{key}-{}.svg", axis.replace('.', "-")),
            caption,
        )
    }

    /// The metric against tokens per second: one point per configuration.
    pub(super) fn against_speed(&self, key: &str) -> Result<Option<Figure>> {
        let one = |(group, style): (&Group, &Style)| {
            let speed = group
                .spread(|run| Some(run.tokens_per_second).filter(|s| *s > 0.0))
                .mean;
            Series {
                name: group.label.clone(),
                style: *style,
                points: vec![(speed, group.metric(key))],
            }
        };
        let series: Vec<Series> = self.groups.iter().zip(&self.styles).map(one).collect();
        if series.len() < 2 || series.iter().any(|s| !s.points[0].0.is_finite()) {
            return Ok(None);
        }
        let (low, high) = range(series.iter().map(|s| s.points[0].0));
        let (low, high) = pad(low, high, 0.06);
        let x = Axis::linear("training speed, tokens per second", low, high, 6);
        let caption = format!(
            "{} against training speed: further right is faster.{}",
            describe(&Metric::of(key)),
            self.about_seeds("Marks", "bars span")
        );
        self.points(key, x, series, format!("{key}-speed.svg"), caption)
    }

    /// The metric against the lengths that it was measured at, that of training among them: one line per configuration.
    pub(super) fn against_length(&self, key: &str) -> Result<Option<Figure>> {
        let all = metric_keys(self.study).into_iter().filter_map(at_length);
        let lengths: BTreeSet<usize> = all.filter(|m| m.0 == key).map(|m| m.1).collect();
        if lengths.is_empty() {
            return Ok(None);
        }
        let one = |(group, style): (&Group, &Style)| {
            let trained = group.spread(|run| Some(run.sequence as f64)).mean;
            let other = |&n: &usize| (n as f64, group.metric(&length_key(key, n)));
            let points = lengths.iter().map(other);
            Series {
                name: group.label.clone(),
                style: *style,
                points: points.chain([(trained, group.metric(key))]).collect(),
            }
        };
        let series: Vec<Series> = self.groups.iter().zip(&self.styles).map(one).collect();
        let points = series.iter().flat_map(|s| &s.points);
        let values: Vec<f64> = points.map(|point| point.0).collect();
        let x = Axis::at_values("tokens of an example", &values, |n| n.to_string());
        let trained: BTreeSet<u64> = self.study.runs.iter().map(|run| run.sequence).collect();
        let trained: Vec<String> = trained.iter().map(u64::to_string).collect();
        let caption = format!(
            "{} against the length of the examples; trained on up to {} tokens.{}",
            describe(&Metric::of(key)),
            trained.join(" and "),
            self.about_seeds("Marks", "bars span")
        );
        self.points(key, x, series, format!("{key}-length.svg"), caption)
    }

    /// The metric against the bytes of a sequence's state: one point per configuration, where these sizes differ.
    pub(super) fn against_state(&self, key: &str) -> Result<Option<Figure>> {
        let one = |(group, style): (&Group, &Style)| {
            let size = |run: &RunResult| Some(run.state_bytes as f64).filter(|&n| n > 0.0);
            Series {
                name: group.label.clone(),
                style: *style,
                points: vec![(group.spread(size).mean, group.metric(key))],
            }
        };
        let all = self.groups.iter().zip(&self.styles).map(one);
        let series: Vec<Series> = all.filter(|s| s.points[0].0.is_finite()).collect();
        let sizes: Vec<f64> = series.iter().map(|s| s.points[0].0).collect();
        let (least, most) = range(sizes.iter().copied());
        if sizes.is_empty() || least == most {
            return Ok(None);
        }
        let title = "state of a sequence at the end of a training sequence";
        let x = Axis::powers_of_two(title, &sizes, |n| bytes(n as usize));
        let caption = format!(
            "{} against the size of the state: further left remembers more per byte.{}",
            describe(&Metric::of(key)),
            self.about_seeds("Marks", "bars span")
        );
        self.points(key, x, series, format!("{key}-state.svg"), caption)
    }

    fn points(
        &self,
        key: &str,
        x: Axis,
        mut series: Vec<Series>,
        file: String,
        caption: String,
    ) -> Result<Option<Figure>> {
        for one in &mut series {
            one.points.retain(|(_, spread)| spread.mean.is_finite());
            one.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        series.retain(|s| !s.points.is_empty());
        if series.is_empty() {
            return Ok(None);
        }
        let (low, high) = range(
            series
                .iter()
                .flat_map(|s| &s.points)
                .flat_map(|(_, s)| [s.low, s.high]),
        );
        let (low, high) = pad(low, high, 0.08);
        let y = Axis::linear(&Metric::of(key).title, low, high, 6);
        let (left, right) = (
            tick_width(&y) + 16.0,
            names_width(series.iter().map(|s| s.name.as_str())) + 40.0,
        );
        let frame = Frame {
            left,
            top: 34.0,
            width: WIDTH - left - right,
            height: (17.0 * series.len() as f64).max(300.0),
            x,
            y: Some(y),
        };
        let svg = svg(&file, WIDTH, frame.top + frame.height + 50.0, |canvas| {
            frame.draw(canvas);
            let mut names = Vec::new();
            for Series {
                name,
                style,
                points,
            } in series
            {
                let line: Vec<_> = points.iter().map(|(x, s)| frame.at(*x, s.mean)).collect();
                style.curve(canvas, &line);
                for (x, spread) in &points {
                    canvas.line(
                        &[frame.at(*x, spread.low), frame.at(*x, spread.high)],
                        style.ink(),
                        1.5,
                    );
                    style.mark(canvas, frame.at(*x, spread.mean), 4.5);
                }
                names.extend(line.last().map(|end| (name, end.1, style)));
            }
            frame.name_right(canvas, &names);
        })?;
        Ok(Some(Figure { file, caption, svg }))
    }
}

/// Gives series of the same hue different dashes.
fn distinguish(series: &mut [Series]) {
    for i in 0..series.len() {
        let hue = series[i].style.hue;
        series[i].style.variant = series[..i].iter().filter(|s| s.style.hue == hue).count();
    }
}
