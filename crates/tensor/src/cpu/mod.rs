//! CPU kernels on plain slices.

pub mod gemm;
pub mod math;
pub mod simd;
