//! One metric of all configurations, best first: a dot for the mean, a bar from the lowest seed to the highest.

use super::axis::{Axis, pad, range};
use super::canvas::{Align, cut, svg};
use super::frame::{Frame, LABEL, NAMES, names_width};
use super::palette::{MUTED, TEXT};
use super::{Figure, Metric, Plot, best, describe};
use crate::error::Result;
use crate::report::format;
use crate::report::group::{Group, Spread};

const ROW: f64 = 27.0;
const WIDTH: f64 = 860.0;

impl Plot<'_> {
    /// The comparison, or nothing when no run has the metric.
    pub(super) fn comparison(&self, key: &str) -> Result<Option<Figure>> {
        let metric = Metric::of(key);
        let mut rows: Vec<(usize, &Group, Spread)> = self
            .groups
            .iter()
            .enumerate()
            .map(|(i, g)| (i, g, g.metric(key)))
            .filter(|r| r.2.count > 0)
            .collect();
        if rows.is_empty() {
            return Ok(None);
        }
        rows.sort_by(|a, b| {
            match (
                metric.better(a.2.mean, b.2.mean),
                metric.better(b.2.mean, a.2.mean),
            ) {
                (true, _) => std::cmp::Ordering::Less,
                (_, true) => std::cmp::Ordering::Greater,
                _ => a.0.cmp(&b.0),
            }
        });
        let (low, high) = range(rows.iter().flat_map(|r| [r.2.low, r.2.high]));
        let (low, high) = pad(low, high, 0.06);
        let names = names_width(rows.iter().map(|r| r.1.label.as_str()));
        let frame = Frame {
            left: names + 24.0,
            top: 12.0,
            width: WIDTH - names - 24.0 - 120.0,
            height: ROW * rows.len() as f64,
            x: Axis::linear(&metric.title, low, high, 6),
            y: None,
        };
        let best = best(self);
        let svg = svg(
            "the comparison",
            WIDTH,
            frame.top + frame.height + 50.0,
            |canvas| {
                frame.draw(canvas);
                for (place, (index, group, spread)) in rows.iter().enumerate() {
                    let share = (place as f64 + 0.5) / rows.len() as f64;
                    let y = frame.at(low, share).1;
                    let style = self.styles[*index];
                    canvas.text(
                        &cut(&group.label, LABEL, NAMES),
                        (frame.left - 12.0, y),
                        LABEL,
                        Align::Right,
                        &TEXT,
                    );
                    let number = format::spread(spread, metric.digits);
                    let ink = if best == Some(*index) { &TEXT } else { &MUTED };
                    canvas.text(
                        &number,
                        (frame.left + frame.width + 14.0, y),
                        LABEL,
                        Align::Left,
                        ink,
                    );
                    if !spread.mean.is_finite() {
                        continue;
                    }
                    canvas.line(
                        &[frame.at(spread.low, share), frame.at(spread.high, share)],
                        style.ink(),
                        2.0,
                    );
                    if spread.count > 1 {
                        for value in group.runs.iter().filter_map(|run| run.metrics.get(key)) {
                            canvas.dot(frame.at(*value, share), 3.0, style.ink(), 0.45);
                        }
                    }
                    style.mark(canvas, frame.at(spread.mean, share), 5.0);
                }
            },
        )?;
        let seeds = self.about_seeds("Marks", "bars span");
        Ok(Some(Figure {
            file: format!("{key}.svg"),
            caption: format!("{}.{seeds}", describe(&metric)),
            svg,
        }))
    }
}
