//! Lines, dots and text in pixels, on top of plotters' SVG backend.
//!
//! The backend places things on whole units, which makes curves jagged. So a canvas draws in quarters of a pixel and
//! says in the SVG header that four units are one pixel.

use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, IntoTextStyle, ShapeStyle};

use super::palette::{Ink, PAPER};
use crate::error::{Error, Result};

const UNITS: f64 = 4.0;

/// The backend takes a font size for the height of a line and writes this much less into the file.
const LINE_HEIGHT: f64 = 1.24;

/// A point in pixels from the top left.
pub type Point = (f64, f64);

/// Where a text stands with respect to its point; vertically it is always centred.
#[derive(Clone, Copy)]
pub enum Align {
    Left,
    Center,
    Right,
}

/// Something to draw on. Drawing on a string cannot fail half-way: the first error is kept for [`svg`].
pub struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
    failure: std::cell::RefCell<Option<String>>,
}

/// Draws a picture of `width` x `height` pixels and returns it as a standalone SVG document.
pub fn svg(what: &str, width: f64, height: f64, paint: impl FnOnce(&Canvas)) -> Result<String> {
    let fail = |reason: String| Error::Data(format!("cannot draw {what}: {reason}"));
    let (w, h) = ((width * UNITS) as u32, (height * UNITS) as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (w, h)).into_drawing_area();
        area.fill(&PAPER.color()).map_err(|e| fail(e.to_string()))?;
        let canvas = Canvas {
            area,
            failure: None.into(),
        };
        paint(&canvas);
        if let Some(reason) = canvas.failure.take() {
            return Err(fail(reason));
        }
        canvas.area.present().map_err(|e| fail(e.to_string()))?;
    }
    let size = format!("<svg width=\"{w}\" height=\"{h}\"");
    Ok(svg.replacen(
        &size,
        &format!("<svg width=\"{width}\" height=\"{height}\""),
        1,
    ))
}

fn units((x, y): Point) -> (i32, i32) {
    ((x * UNITS).round() as i32, (y * UNITS).round() as i32)
}

fn stroke(ink: &Ink, width: f64, opacity: f64) -> ShapeStyle {
    ink.color()
        .mix(opacity)
        .stroke_width((width * UNITS).round() as u32)
}

impl Canvas<'_> {
    fn keep<E: std::fmt::Display>(&self, outcome: std::result::Result<(), E>) {
        if let Err(error) = outcome {
            self.failure.borrow_mut().get_or_insert(error.to_string());
        }
    }

    /// A polyline.
    pub fn line(&self, points: &[Point], ink: &Ink, width: f64) {
        let points: Vec<_> = points.iter().copied().map(units).collect();
        self.keep(
            self.area
                .draw(&PathElement::new(points, stroke(ink, width, 1.0))),
        );
    }

    /// A polyline in dashes: `on` pixels drawn, `off` pixels left out.
    pub fn dashed(&self, points: &[Point], ink: &Ink, width: f64, (on, off): (f64, f64)) {
        for dash in dashes(points, on, off) {
            self.line(&dash, ink, width);
        }
    }

    /// A filled shape without an outline.
    pub fn polygon(&self, points: &[Point], ink: &Ink, opacity: f64) {
        let points: Vec<_> = points.iter().copied().map(units).collect();
        self.keep(
            self.area
                .draw(&Polygon::new(points, ink.color().mix(opacity).filled())),
        );
    }

    /// A filled circle.
    pub fn dot(&self, center: Point, radius: f64, ink: &Ink, opacity: f64) {
        let radius = (radius * UNITS).round() as i32;
        self.keep(self.area.draw(&Circle::new(
            units(center),
            radius,
            ink.color().mix(opacity).filled(),
        )));
    }

    /// One line of text, `size` pixels high.
    pub fn text(&self, text: &str, at: Point, size: f64, align: Align, ink: &Ink) {
        let h = match align {
            Align::Left => HPos::Left,
            Align::Center => HPos::Center,
            Align::Right => HPos::Right,
        };
        let font = FontDesc::new(
            FontFamily::SansSerif,
            size * UNITS * LINE_HEIGHT,
            FontStyle::Normal,
        );
        let color = ink.color();
        let style = font
            .into_text_style(&self.area)
            .color(&color)
            .pos(Pos::new(h, VPos::Center));
        self.keep(
            self.area
                .draw(&Text::new(text.to_string(), units(at), style)),
        );
    }
}

/// Cuts a polyline into its dashes.
fn dashes(points: &[Point], on: f64, off: f64) -> Vec<Vec<Point>> {
    let mut dashes = Vec::new();
    let mut dash: Vec<Point> = points.first().copied().into_iter().collect();
    let (mut drawing, mut left) = (true, on);
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        loop {
            let rest = (to.0 - from.0).hypot(to.1 - from.1);
            if rest < left {
                left -= rest;
                break;
            }
            from = (
                from.0 + (to.0 - from.0) * left / rest,
                from.1 + (to.1 - from.1) * left / rest,
            );
            dash.push(from);
            if drawing {
                dashes.push(std::mem::take(&mut dash));
            }
            dash = vec![from];
            drawing = !drawing;
            left = if drawing { on } else { off };
        }
        dash.push(to);
    }
    if drawing && dash.len() > 1 {
        dashes.push(dash);
    }
    dashes
}

/// An estimate of the width of a text in pixels: SVG has no font until somebody looks at it.
pub fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.56
}

/// The text, cut to about `width` pixels.
pub fn cut(text: &str, size: f64, width: f64) -> String {
    let keep = (width / (size * 0.56)) as usize;
    match text.chars().count() > keep {
        true => text
            .chars()
            .take(keep.saturating_sub(1))
            .chain(['…'])
            .collect(),
        false => text.to_string(),
    }
}
