//! How long a call takes.
//!
//! On a GPU the stream's events are asked, around so many calls in a row that they fill a millisecond: a call that is
//! shorter than its launch then costs what a program that never waits pays for it. On the CPU it is the clock.
//! The result is the best of three medians, as a busy neighbour can only make a round slower.

use std::time::Instant;

use weft_tensor::{Device, cuda};

use crate::error::Result;

/// Calls that pay for compilation and memory.
const WARM_UP: usize = 3;
const ROUNDS: usize = 3;
/// Samples of a round at least and at most; an odd number has a median.
const LEAST: usize = 3;
const MOST: usize = 101;
/// A sample lasts about this long at least.
const SAMPLE_MS: f64 = 1.0;
const MOST_CALLS: f64 = 1000.0;

/// Times calls on a device.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    device: Device,
    seconds: f64,
}

impl Clock {
    /// A clock that spends about `seconds` on each measurement, and more only where a few calls take longer.
    pub fn new(device: Device, seconds: f64) -> Clock {
        Clock { device, seconds }
    }

    /// Milliseconds of one call.
    ///
    /// # Errors
    /// Those of the call, and what a GPU met on the way.
    pub fn ms(&self, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
        for _ in 0..WARM_UP {
            f()?;
        }
        self.device.synchronize()?;
        let once = self.sample(1, &mut f)?.max(1e-6);
        let calls = (SAMPLE_MS / once).ceil().clamp(1.0, MOST_CALLS) as usize;
        let fit = 1e3 * self.seconds / (ROUNDS as f64 * once * calls as f64);
        let samples = (fit as usize).clamp(LEAST, MOST) | 1;
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let times = (0..samples).map(|_| self.sample(calls, &mut f));
            let mut times = times.collect::<Result<Vec<f64>>>()?;
            times.sort_by(f64::total_cmp);
            best = best.min(times[samples / 2]);
        }
        self.device.synchronize()?;
        Ok(best)
    }

    /// Milliseconds of a call, from `calls` in a row.
    fn sample(&self, calls: usize, f: &mut impl FnMut() -> Result<()>) -> Result<f64> {
        let mut run = || (0..calls).try_for_each(|_| f());
        let ms = if let Device::Cuda(i) = self.device {
            let context = cuda::context(i)?;
            let start = context.record()?;
            run()?;
            f64::from(start.until(&context.record()?)?)
        } else {
            let start = Instant::now();
            run()?;
            1e3 * start.elapsed().as_secs_f64()
        };
        Ok(ms / calls as f64)
    }
}
