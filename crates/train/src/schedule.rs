//! Learning rates in closed form: the rate of a step is a function of the step alone, so a resumed run needs no state.
//!
//! With peak p, warm-up w, total n, and the floor m = min_ratio:
//!
//! ```text
//! step s < w          p (s + 1) / (w + 1)                     a ramp that is never zero and reaches p at s = w
//! t = (s - w) / (n - w) in [0, 1]
//! constant            p
//! linear              p (1 - (1 - m) t)
//! cosine              p (m + (1 - m) (1 + cos(pi t)) / 2)     Loshchilov and Hutter 2017
//! wsd                 p until t = 1 - d, then linear to p m   warm-up, stable, decay: Hu et al. 2024 (MiniCPM)
//! ```
//!
//! d is the share of the steps after the warm-up that decay. From step n on the rate stays at its end value.

use serde::{Deserialize, Serialize};

/// What the rate does after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "schedule", rename_all = "lowercase")]
pub enum Shape {
    /// Stays at the peak.
    Constant,
    /// Falls on a straight line.
    Linear,
    /// Falls on half a cosine wave.
    Cosine,
    /// Stays, and falls on a straight line in the last part.
    Wsd {
        /// The part of the steps after the warm-up that falls, in 0..=1.
        decay: f64,
    },
}

/// A learning rate as a function of the step.
///
/// ```
/// use weft_train::schedule::{Schedule, Shape};
///
/// let schedule = Schedule { shape: Shape::Cosine, peak: 1e-3, warmup: 9, total: 109, min_ratio: 0.1 };
/// assert_eq!(schedule.rate(0), 1e-4);
/// assert_eq!(schedule.rate(9), 1e-3);
/// assert!((schedule.rate(109) - 1e-4).abs() < 1e-12);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// What the rate does after the warm-up.
    #[serde(flatten)]
    pub shape: Shape,
    /// The highest rate.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// The last rate as a part of the peak.
    pub min_ratio: f64,
}

impl Schedule {
    /// The rate of the update number `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let falling = self.total.saturating_sub(self.warmup);
        let t = match falling {
            0 => 1.0,
            _ => ((step - self.warmup) as f64 / falling as f64).min(1.0),
        };
        let left = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - t,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
            Shape::Wsd { decay } if decay > 0.0 => ((1.0 - t) / decay).min(1.0),
            Shape::Wsd { .. } => 1.0,
        };
        self.peak * (self.min_ratio + (1.0 - self.min_ratio) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [Shape; 4] = [
        Shape::Constant,
        Shape::Linear,
        Shape::Cosine,
        Shape::Wsd { decay: 0.25 },
    ];

    fn schedule(shape: Shape) -> Schedule {
        Schedule {
            shape,
            peak: 2.0,
            warmup: 10,
            total: 110,
            min_ratio: 0.1,
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn all_shapes_ramp_to_the_peak_and_end_at_the_floor() {
        for shape in SHAPES {
            let schedule = schedule(shape);
            assert!(close(schedule.rate(0), 2.0 / 11.0));
            assert!(close(schedule.rate(9), 2.0 * 10.0 / 11.0));
            assert!(close(schedule.rate(10), 2.0), "{shape:?}");
            let end = if shape == Shape::Constant { 2.0 } else { 0.2 };
            for step in [110, 111, 1_000_000, u64::MAX] {
                assert!(close(schedule.rate(step), end), "{shape:?} at {step}");
            }
            let falls = |s| schedule.rate(s + 1) <= schedule.rate(s);
            assert!((10..120).all(falls), "{shape:?}");
        }
    }

    #[test]
    fn the_middle_is_where_the_formula_says() {
        assert!(close(schedule(Shape::Linear).rate(60), 1.1));
        assert!(close(schedule(Shape::Cosine).rate(60), 1.1));
        let quarter = 2.0 * (0.1 + 0.9 * (1.0 + (std::f64::consts::PI / 4.0).cos()) / 2.0);
        assert!(close(schedule(Shape::Cosine).rate(35), quarter));
        let wsd = schedule(Shape::Wsd { decay: 0.25 });
        assert!(close(wsd.rate(85), 2.0));
        assert!(wsd.rate(86) < 2.0);
        assert!(close(wsd.rate(97), 2.0 * (0.1 + 0.9 * 13.0 / 25.0)));
    }

    #[test]
    fn degenerate_runs_have_finite_rates() {
        for shape in SHAPES
            .into_iter()
            .chain([Shape::Wsd { decay: 0.0 }, Shape::Wsd { decay: 1.0 }])
        {
            for (warmup, total) in [(0, 0), (0, 1), (1, 1), (10, 10), (10, 5)] {
                let schedule = Schedule {
                    warmup,
                    total,
                    ..schedule(shape)
                };
                for step in 0..15 {
                    let rate = schedule.rate(step);
                    assert!(rate > 0.0 && rate <= 2.0, "{schedule:?} at {step}: {rate}");
                }
            }
        }
        let none = Schedule {
            warmup: 0,
            ..schedule(Shape::Cosine)
        };
        assert!(close(none.rate(0), 2.0));
    }
}
