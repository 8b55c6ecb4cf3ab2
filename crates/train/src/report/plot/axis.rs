//! Axes: a range, a scale, and ticks at round numbers or at the values themselves.

use crate::report::format::round;

/// One axis of a plot.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it counts, with its unit.
    pub title: String,
    /// Values that get a label, and the label.
    pub ticks: Vec<(f64, String)>,
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// A linear axis over `low..=high`, about `ticks` round ticks.
    pub fn linear(title: &str, low: f64, high: f64, ticks: usize) -> Axis {
        let (low, high) = widen(low, high);
        let step = round_step((high - low) / ticks as f64);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let label = |v: f64| {
            if step >= 1.0 {
                round(v)
            } else {
                format!("{v:.digits$}")
            }
        };
        let (first, last) = (
            (low / step).ceil() as i64,
            (high / step + 1e-9).floor() as i64,
        );
        let ticks = (first..=last)
            .map(|i| i as f64 * step)
            .map(|v| (v, label(v)))
            .collect();
        Axis {
            title: title.into(),
            ticks,
            low,
            high,
            log: false,
        }
    }

    /// An axis whose ticks are the measured `values`; logarithmic when they span a factor of eight or more.
    pub fn at_values(title: &str, values: &[f64], label: impl Fn(f64) -> String) -> Axis {
        let (low, high) = range(values.iter().copied());
        let log = low > 0.0 && high / low >= 8.0;
        let mut ticks: Vec<f64> = values.to_vec();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let ticks = ticks.into_iter().map(|v| (v, label(v))).collect();
        let (low, high) = match log {
            true => (low / 1.1, high * 1.1),
            false => pad(low, high, 0.04),
        };
        Axis {
            title: title.into(),
            ticks,
            low,
            high,
            log,
        }
    }

    /// A logarithmic axis over positive values, its ticks at powers of two, nine at most.
    pub fn powers_of_two(title: &str, values: &[f64], label: impl Fn(f64) -> String) -> Axis {
        let (low, high) = range(values.iter().copied());
        let first = low.max(1.0).log2().floor() as i32;
        let last = (high.max(1.0).log2().ceil() as i32).max(first + 1);
        let step = (last - first + 7) / 8;
        let ticks = (first..=last)
            .step_by(step as usize)
            .map(|power| 2f64.powi(power))
            .map(|v| (v, label(v)))
            .collect();
        Axis {
            title: title.into(),
            ticks,
            low: 2f64.powi(first) / 1.1,
            high: 2f64.powi(last) * 1.1,
            log: true,
        }
    }

    /// The place of a value between 0 (low end) and 1 (high end).
    pub fn place(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

/// Lowest and highest finite value; `(0, 1)` when there is none.
pub fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The range with `share` of its length added on both sides.
pub fn pad(low: f64, high: f64, share: f64) -> (f64, f64) {
    let (low, high) = widen(low, high);
    let margin = (high - low) * share;
    (low - margin, high + margin)
}

/// A range that is not empty.
fn widen(low: f64, high: f64) -> (f64, f64) {
    match high > low {
        true => (low, high),
        false => (
            low - low.abs().max(1.0) * 0.05,
            low + low.abs().max(1.0) * 0.05,
        ),
    }
}

/// The nearest of 1, 2, 5 times a power of ten at or above `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|&s| s >= rough * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear("", 1.73, 2.61, 5);
        let labels: Vec<_> = axis.ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(labels, ["1.8", "2.0", "2.2", "2.4", "2.6"]);
        let axis = Axis::linear("", 0.0, 4000.0, 5);
        let labels: Vec<_> = axis.ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(labels, ["0", "1000", "2000", "3000", "4000"]);
    }

    #[test]
    fn wide_values_are_logarithmic() {
        let axis = Axis::at_values("lr", &[1e-4, 1e-3, 1e-2], |v| v.to_string());
        assert!((axis.place(1e-3) - 0.5).abs() < 1e-9);
        let axis = Axis::at_values("width", &[64.0, 128.0, 192.0], |v| v.to_string());
        assert!((axis.place(128.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn powers_of_two_stand_at_equal_distances() {
        let axis = Axis::powers_of_two("", &[300.0, 5000.0], |v| v.to_string());
        let labels: Vec<_> = axis.ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(labels, ["256", "512", "1024", "2048", "4096", "8192"]);
        let places = [256.0, 512.0, 1024.0].map(|v| axis.place(v));
        assert!((places[2] - 2.0 * places[1] + places[0]).abs() < 1e-9);
        let wide = Axis::powers_of_two("", &[1.0, 1e9], |v| v.to_string());
        assert!(wide.ticks.len() <= 9);
        let one = Axis::powers_of_two("", &[64.0], |v| v.to_string());
        assert!((0.0..=1.0).contains(&one.place(64.0)));
    }

    #[test]
    fn one_value_still_has_a_range() {
        let axis = Axis::linear("", 2.0, 2.0, 5);
        assert!(axis.place(2.0).is_finite());
        let axis = Axis::at_values("", &[0.0], |v| v.to_string());
        assert!(axis.place(0.0).is_finite());
    }
}
