//! Learning curves: a metric against the optimiser step, one curve per configuration, named where it ends.

use super::axis::{Axis, pad, range};
use super::canvas::{Point, svg};
use super::frame::{Frame, names_width, tick_width};
use super::{Figure, Metric, Plot, describe};
use crate::error::Result;
use crate::report::group::Spread;
use crate::report::metric::Direction;

const WIDTH: f64 = 860.0;

/// The steps that a falling metric's axis leaves out, as a share of the run: it falls too far in them.
const WARM_UP: f64 = 0.1;

type Curve = Vec<(u64, Spread)>;

impl Plot<'_> {
    /// The curves, or nothing when no run has two points of the metric.
    pub(super) fn curves(&self, key: &str) -> Result<Option<Figure>> {
        let metric = Metric::of(key);
        let curves: Vec<Curve> = self.groups.iter().map(|g| g.curve(key)).collect();
        if curves.iter().all(|c| c.len() < 2) {
            return Ok(None);
        }
        let steps = curves
            .iter()
            .flatten()
            .map(|point| point.0)
            .max()
            .unwrap_or(1) as f64;
        let (low, high) = range(curves.iter().flatten().flat_map(|(_, s)| [s.low, s.high]));
        let high = if metric.direction == Direction::Lower {
            high.min(after_warm_up(&curves, low))
        } else {
            high
        };
        let (low, padded) = pad(low, high, 0.05);
        let y = Axis::linear(&metric.title, low, padded, 6);

        let names: Vec<String> = self.groups.iter().map(|g| g.label.clone()).collect();
        let (left, right) = (
            tick_width(&y) + 16.0,
            names_width(names.iter().map(String::as_str)) + 40.0,
        );
        let frame = Frame {
            left,
            top: 34.0,
            width: WIDTH - left - right,
            height: (17.0 * names.len() as f64).max(330.0),
            x: Axis::linear("optimiser step", 0.0, steps, 6),
            y: Some(y),
        };
        let svg = svg(
            "the learning curves",
            WIDTH,
            frame.top + frame.height + 50.0,
            |canvas| {
                frame.draw(canvas);
                let ceiling = frame.top;
                for (curve, style) in curves.iter().zip(&self.styles) {
                    let edge = |value: fn(&Spread) -> f64| -> Vec<Point> {
                        below(
                            ceiling,
                            &curve
                                .iter()
                                .map(|(step, s)| frame.at(*step as f64, value(s)))
                                .collect::<Vec<_>>(),
                        )
                    };
                    if curve.iter().any(|(_, s)| s.count > 1) {
                        let mut band = edge(|s| s.high);
                        band.extend(edge(|s| s.low).into_iter().rev());
                        canvas.polygon(&band, style.ink(), 0.15);
                    }
                }
                let mut ends = Vec::new();
                for ((curve, style), name) in curves.iter().zip(&self.styles).zip(names) {
                    let points: Vec<Point> = curve
                        .iter()
                        .map(|(step, s)| frame.at(*step as f64, s.mean))
                        .collect();
                    style.curve(canvas, &below(ceiling, &points));
                    if let Some(end) = points.last() {
                        ends.push((name, end.1.max(ceiling), *style));
                    }
                }
                frame.name_right(canvas, &ends);
            },
        )?;
        let seeds = self.about_seeds("Lines", "bands span");
        let caption = format!("{} during training.{seeds}", describe(&metric));
        Ok(Some(Figure {
            file: format!("{key}-curves.svg"),
            caption,
            svg,
        }))
    }
}

/// The median over the curves of their value when the warm-up share of their steps is done.
fn after_warm_up(curves: &[Curve], low: f64) -> f64 {
    let early = |curve: &Curve| {
        let last = curve.last()?.0 as f64;
        curve
            .iter()
            .find(|(step, _)| *step as f64 >= last * WARM_UP)
            .map(|(_, s)| s.mean)
    };
    let mut values: Vec<f64> = curves.iter().filter_map(early).collect();
    values.sort_by(f64::total_cmp);
    values
        .get(values.len() / 2)
        .copied()
        .filter(|&v| v > low)
        .unwrap_or(f64::INFINITY)
}

/// The part of a polyline that is not above the ceiling (a smaller y in pixels), cut where it crosses.
fn below(ceiling: f64, points: &[Point]) -> Vec<Point> {
    let mut kept = Vec::with_capacity(points.len());
    for (i, &(x, y)) in points.iter().enumerate() {
        if let Some(&(px, py)) = i.checked_sub(1).and_then(|p| points.get(p))
            && (py < ceiling) != (y < ceiling)
        {
            kept.push((px + (x - px) * (ceiling - py) / (y - py), ceiling));
        }
        if y >= ceiling {
            kept.push((x, y));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn curves_are_cut_at_the_ceiling() {
        let cut = below(10.0, &[(0.0, 0.0), (2.0, 20.0), (4.0, 30.0)]);
        assert_eq!(cut, [(1.0, 10.0), (2.0, 20.0), (4.0, 30.0)]);
        assert_eq!(below(10.0, &[(0.0, 5.0), (1.0, 8.0)]), []);
    }
}
