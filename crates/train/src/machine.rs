//! What numbers were measured on, in words.

use weft_tensor::{Device, cuda};

use crate::error::Result;

/// The GPU's name, or the processor's and the number of cores.
///
/// # Errors
/// When the GPU cannot be opened.
pub fn describe(device: &Device) -> Result<String> {
    if let Device::Cuda(ordinal) = device {
        return Ok(cuda::context(*ordinal)?.name.clone());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|p| p.1));
    Ok(format!(
        "{}, {cores} cores",
        model.unwrap_or(std::env::consts::ARCH)
    ))
}
