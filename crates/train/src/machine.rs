//! What numbers were measured on: the machine in words, and what a GPU could do at most, for the model flops utilisation
//! (MFU; Chowdhery et al. 2022, appendix B).

use serde::Serialize;
use weft_tensor::{Device, cuda};

use crate::error::Error;

/// The GPU's name, or the processor's and the number of cores.
///
/// # Errors
/// When the GPU cannot be opened.
pub fn describe(device: &Device) -> Result<String, Error> {
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

/// Dense bf16 matrix products by the vendor's datasheets, operations per second. Names are looked for in this order.
const PEAKS: [(&str, f64); 7] = [
    ("B200", 2250e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
];

/// The peak of a device: `None` on a CPU, and on a GPU that is not in the table.
pub fn peak(device: &Device) -> Option<f64> {
    let Device::Cuda(ordinal) = device else {
        return None;
    };
    peak_of(&cuda::context(*ordinal).ok()?.name)
}

fn peak_of(name: &str) -> Option<f64> {
    let has = |(part, _): &&(&str, f64)| name.contains(part);
    PEAKS.iter().find(has).map(|(_, peak)| *peak)
}

/// Threads that kernels of the CPU run on.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Measure the peak of [`peak_resident_bytes`] anew. Where the system does not let a process do so, the peak stays that
/// of the whole process.
pub fn forget_peak_resident() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The versions that a measurement depends on.
#[derive(Clone, Debug, Serialize)]
pub struct Versions {
    /// Of this program.
    pub weft: &'static str,
    /// The newest CUDA that the GPU's driver supports; `None` on a CPU.
    pub driver: Option<String>,
    /// Of the compiler of the GPU's kernels; `None` on a CPU.
    pub nvrtc: Option<String>,
}

/// The versions behind a device.
pub fn versions(device: &Device) -> Versions {
    let known = |version: Result<(i32, i32), String>| match (device, version) {
        (Device::Cuda(_), Ok((major, minor))) => Some(format!("{major}.{minor}")),
        _ => None,
    };
    Versions {
        weft: env!("CARGO_PKG_VERSION"),
        driver: known(cuda::driver_version()),
        nvrtc: known(cuda::kernels::version()),
    }
}

/// The most bytes of memory that this process has had since [`forget_peak_resident`]; `None` where the system does not
/// say.
pub fn peak_resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_gpus_are_told_apart() {
        assert_eq!(super::peak_of("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(super::peak_of("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(super::peak_of("NVIDIA L40S"), Some(362e12));
        assert_eq!(super::peak_of("Some GPU"), None);
    }
}
