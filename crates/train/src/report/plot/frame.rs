//! The part of a plot that every plot has: a grid, tick labels, axis titles, and names at the right edge.

use super::axis::Axis;
use super::canvas::{Align, Canvas, Point, cut, text_width};
use super::palette::{GRID, MUTED, TEXT};
use super::style::Style;

/// Text sizes in pixels.
pub const LABEL: f64 = 12.5;
const TICK: f64 = 11.5;

/// Widest column of names at an edge.
pub const NAMES: f64 = 290.0;

/// The furthest that a name is still tied to its place with a line, in pixels.
const LEADER: f64 = 40.0;

/// The plotting rectangle in pixels and its two axes.
pub struct Frame {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub x: Axis,
    pub y: Option<Axis>,
}

impl Frame {
    /// The pixel of a pair of values; without a y axis, `y` is the share of the height from the top.
    pub fn at(&self, x: f64, y: f64) -> Point {
        let from_top = self.y.as_ref().map_or(y, |axis| 1.0 - axis.place(y));
        (
            self.left + self.width * self.x.place(x),
            self.top + self.height * from_top,
        )
    }

    /// Grid, ticks and titles.
    pub fn draw(&self, canvas: &Canvas) {
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        for (value, label) in &self.x.ticks {
            let x = self.left + self.width * self.x.place(*value);
            canvas.line(&[(x, self.top), (x, bottom)], &GRID, 1.0);
            canvas.text(label, (x, bottom + 15.0), TICK, Align::Center, &MUTED);
        }
        canvas.text(
            &self.x.title,
            (self.left + self.width / 2.0, bottom + 36.0),
            LABEL,
            Align::Center,
            &MUTED,
        );
        let Some(y) = &self.y else { return };
        for (value, label) in &y.ticks {
            let at = self.top + self.height * (1.0 - y.place(*value));
            canvas.line(&[(self.left, at), (right, at)], &GRID, 1.0);
            canvas.text(label, (self.left - 8.0, at), TICK, Align::Right, &MUTED);
        }
        canvas.text(
            &y.title,
            (self.left - 8.0 - tick_width(y), self.top - 16.0),
            LABEL,
            Align::Left,
            &MUTED,
        );
    }

    /// Names in the margin on the right, each near its `y` in pixels behind its mark, none on another.
    pub fn name_right(&self, canvas: &Canvas, names: &[(String, f64, Style)]) {
        let wanted: Vec<f64> = names.iter().map(|n| n.1).collect();
        let bottom = self.top + self.height;
        for ((name, wanted, style), y) in names.iter().zip(apart(&wanted, 17.0, self.top, bottom)) {
            let right = self.left + self.width;
            if (y - wanted).abs() < LEADER {
                canvas.line(
                    &[(right + 3.0, *wanted), (right + 13.0, y)],
                    style.ink(),
                    1.0,
                );
            }
            style.mark(canvas, (right + 19.0, y), 4.0);
            canvas.text(
                &cut(name, LABEL, NAMES),
                (right + 28.0, y),
                LABEL,
                Align::Left,
                &TEXT,
            );
        }
    }
}

/// Width of the widest tick label.
pub fn tick_width(axis: &Axis) -> f64 {
    axis.ticks
        .iter()
        .map(|(_, label)| text_width(label, TICK))
        .fold(0.0, f64::max)
}

/// Width that the names need.
pub fn names_width<'a>(names: impl Iterator<Item = &'a str>) -> f64 {
    names
        .map(|n| text_width(n, LABEL))
        .fold(40.0, f64::max)
        .min(NAMES)
}

/// Moves the wanted places so that neighbours are `gap` apart, within `low..=high` as far as there is room.
pub fn apart(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut places = wanted.to_vec();
    let mut floor = low;
    for &i in &order {
        places[i] = places[i].max(floor);
        floor = places[i] + gap;
    }
    let mut ceiling = high;
    for &i in order.iter().rev() {
        places[i] = places[i].min(ceiling);
        ceiling = places[i] - gap;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn names_keep_their_distance_and_order() {
        assert_eq!(
            apart(&[50.0, 10.0, 12.0], 10.0, 0.0, 100.0),
            [50.0, 10.0, 20.0]
        );
        assert_eq!(apart(&[99.0, 98.0], 10.0, 0.0, 100.0), [100.0, 90.0]);
    }
}
