//! What `weft bench` measures: [`kernels`], training steps ([`train`]) and decoding ([`decode`]), each beside ceilings
//! that are measured in the same run.
//!
//! Two numbers describe an operation: the bytes that it cannot avoid to move, and its floating-point operations. With
//! the rate of a large copy and that of a large matrix product they give a floor (the roofline of Williams et al. 2009),
//!
//! ```text
//! floor = max(bytes / copy, flops / product),     share of the ceiling = floor / measured time
//! ```
//!
//! A share above 1 means that the operands stayed in a cache, or that the kernel does less than the published form
//! whose operations are counted. Before a kernel is timed its outputs must be finite; whether they are right is the
//! business of the tests.

mod attention;
mod case;
mod ceilings;
mod clock;
mod decode;
mod delta_rule;
mod input;
mod model;
mod optimizer;
mod primitives;
#[cfg(test)]
mod tests;
mod train;

use weft_tensor::{Device, cuda, memory};

use crate::error::Result;
use crate::machine;

pub use case::{Case, Ceiling, Row};
pub use ceilings::Ceilings;
pub use clock::Clock;
pub use decode::{DecodeRow, Decoding};
pub use model::{LastModel, Size};
pub use train::{KernelTime, TrainRow, Training};

/// All kernels, at sizes that suit the device.
pub fn kernels(device: &Device) -> Vec<Case> {
    let mut cases = primitives::cases(device);
    cases.extend(attention::cases(device));
    cases.extend(delta_rule::cases(device));
    cases.extend(optimizer::cases(device));
    cases
}

/// The training steps that are measured when nothing else is asked for.
pub fn train(device: &Device) -> Vec<Training> {
    train::defaults(device)
}

/// The decoding steps that are measured when nothing else is asked for.
pub fn decode(device: &Device) -> Vec<Decoding> {
    decode::defaults(device)
}

/// Give back what the last row left in the memory pools, and measure their peak anew.
fn fresh_memory(device: &Device) -> Result<()> {
    if let Device::Cuda(i) = device {
        cuda::memory::trim(*i)?;
        cuda::memory::reset_peak(*i)?;
    } else {
        memory::trim();
        memory::reset_peak();
    }
    machine::forget_peak_resident();
    Ok(())
}

/// The most bytes that tensors on the device took since [`fresh_memory`].
fn peak_bytes(device: &Device) -> Result<usize> {
    Ok(match device {
        Device::Cuda(i) => cuda::memory::usage(*i)?.peak,
        _ => memory::usage().peak,
    })
}

/// The driver's allocations so far; `None` on the CPU.
fn driver_allocations(device: &Device) -> Result<Option<usize>> {
    Ok(match device {
        Device::Cuda(i) => Some(cuda::memory::usage(*i)?.driver_allocations),
        _ => None,
    })
}
