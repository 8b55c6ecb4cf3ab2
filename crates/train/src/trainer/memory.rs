//! What steps ask of a GPU's memory. In a steady state every block of a step comes from the pool, and the driver is
//! asked for none: a call to it waits for the GPU.

use serde::Serialize;
use weft_tensor::{Device, cuda};

use crate::error::Result;

/// Steps of a process in which the pool fills.
const WARM_UP: u64 = 3;

/// Watches the memory of the GPU that a run is on.
pub(super) struct Meter {
    ordinal: usize,
    steps: u64,
    before: usize,
}

/// What one step asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Memory {
    /// Allocations by the driver.
    pub(super) driver_allocations: usize,
    /// The most bytes that tensors took so far.
    pub(super) peak_bytes: usize,
    /// Whether the pool should be full by now.
    #[serde(skip)]
    pub(super) settled: bool,
}

impl Memory {
    /// Whether the driver was asked for memory when it should no longer be.
    pub(super) fn unsteady(&self) -> bool {
        self.settled && self.driver_allocations > 0
    }
}

impl Meter {
    /// For runs on a GPU.
    pub(super) fn new(device: &Device) -> Option<Meter> {
        let Device::Cuda(ordinal) = *device else {
            return None;
        };
        Some(Meter {
            ordinal,
            steps: 0,
            before: 0,
        })
    }

    /// A step begins.
    pub(super) fn start(&mut self) -> Result<()> {
        self.before = cuda::memory::usage(self.ordinal)?.driver_allocations;
        Ok(())
    }

    /// It has ended.
    pub(super) fn end(&mut self) -> Result<Memory> {
        let usage = cuda::memory::usage(self.ordinal)?;
        self.steps += 1;
        Ok(Memory {
            driver_allocations: usage.driver_allocations - self.before,
            peak_bytes: usage.peak,
            settled: self.steps > WARM_UP,
        })
    }
}
