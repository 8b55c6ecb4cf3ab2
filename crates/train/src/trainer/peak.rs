//! What a GPU could do at most, for the model flops utilisation (MFU; Chowdhery et al. 2022, appendix B) in the log.

use weft_tensor::{Device, cuda};

use super::Task;

/// Dense bf16 matrix products by the vendor's datasheets, operations per second. Names are looked for in this order.
const KNOWN: [(&str, f64); 7] = [
    ("B200", 2250e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
];

/// The peak of the device that a task's parameters are on: `None` on a CPU, and on a GPU that is not in the table.
pub(super) fn peak(task: &dyn Task) -> Option<f64> {
    let Device::Cuda(ordinal) = task.params().iter().next()?.get().device() else {
        return None;
    };
    let name = &cuda::context(ordinal).ok()?.name;
    of(name)
}

fn of(name: &str) -> Option<f64> {
    let has = |(part, _): &&(&str, f64)| name.contains(part);
    KNOWN.iter().find(has).map(|(_, peak)| *peak)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_gpus_are_told_apart() {
        assert_eq!(super::of("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(super::of("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(super::of("NVIDIA L40S"), Some(362e12));
        assert_eq!(super::of("Some GPU"), None);
    }
}
