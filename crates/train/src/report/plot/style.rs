//! How each configuration is drawn: hue from its names, dashes from its numbers.

use super::canvas::{Canvas, Point};
use super::palette::{Ink, PAPER, series};
use crate::report::group::{Group, varying};
use crate::report::result::{AxisValue, StudyResult};

/// The look of one configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Index of the colour.
    pub hue: usize,
    /// 0 solid, 1 dashed, 2 dotted, ...
    pub variant: usize,
}

/// Dash and gap in pixels of each variant; the first is solid.
const DASHES: [(f64, f64); 5] = [(0.0, 0.0), (7.0, 4.0), (2.0, 3.0), (12.0, 4.0), (4.0, 8.0)];

impl Style {
    /// The colour.
    pub fn ink(&self) -> &'static Ink {
        series(self.hue)
    }

    /// A point in this look: a disc, a ring, a square, an open square or a diamond.
    pub fn mark(&self, canvas: &Canvas, (x, y): Point, radius: f64) {
        let square = |r: f64| {
            [
                (x - r, y - r),
                (x + r, y - r),
                (x + r, y + r),
                (x - r, y + r),
            ]
        };
        let diamond = |r: f64| [(x, y - r), (x + r, y), (x, y + r), (x - r, y)];
        match self.variant % DASHES.len() {
            0 => canvas.dot((x, y), radius, self.ink(), 1.0),
            1 => {
                canvas.dot((x, y), radius, self.ink(), 1.0);
                canvas.dot((x, y), radius - 2.0, &PAPER, 1.0);
            }
            2 => canvas.polygon(&square(radius * 0.85), self.ink(), 1.0),
            3 => {
                canvas.polygon(&square(radius * 0.85), self.ink(), 1.0);
                canvas.polygon(&square(radius * 0.85 - 2.0), &PAPER, 1.0);
            }
            _ => canvas.polygon(&diamond(radius * 1.25), self.ink(), 1.0),
        }
    }

    /// A curve in this look.
    pub fn curve(&self, canvas: &Canvas, points: &[Point]) {
        match self.variant % DASHES.len() {
            0 => canvas.line(points, self.ink(), 1.75),
            n => canvas.dashed(points, self.ink(), 1.75, DASHES[n]),
        }
    }
}

/// One style per configuration.
pub fn styles(study: &StudyResult, groups: &[Group]) -> Vec<Style> {
    let hue_axes = hue_axes(study);
    let family = |g: &Group| -> Vec<Option<String>> {
        hue_axes
            .iter()
            .map(|key| g.axes.get(key).map(|v| v.to_string()))
            .collect()
    };
    let mut families: Vec<(Vec<Option<String>>, usize)> = Vec::new();
    let mut style = |g: &Group| {
        let family = family(g);
        if hue_axes.is_empty() {
            families.push((family, 0));
            return Style {
                hue: families.len() - 1,
                variant: 0,
            };
        }
        match families.iter_mut().position(|f| f.0 == family) {
            Some(hue) => {
                families[hue].1 += 1;
                Style {
                    hue,
                    variant: families[hue].1,
                }
            }
            None => {
                families.push((family, 0));
                Style {
                    hue: families.len() - 1,
                    variant: 0,
                }
            }
        }
    };
    groups.iter().map(&mut style).collect()
}

/// The axes that choose the hue: the names; without names, the first of several axes. Empty gives each its own.
fn hue_axes(study: &StudyResult) -> Vec<&str> {
    let varying = varying(study);
    let named = |key: &&str| {
        study.runs.iter().any(|run| {
            matches!(
                run.axes.get(*key),
                Some(AxisValue::Text(_) | AxisValue::Bool(_))
            )
        })
    };
    let names: Vec<&str> = varying.iter().copied().filter(named).collect();
    match names.is_empty() && varying.len() > 1 {
        true => varying[..1].to_vec(),
        false => names,
    }
}
