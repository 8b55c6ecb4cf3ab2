//! The CUDA device: found at run time, never needed at build time. The driver, NVRTC and cuBLASLt are opened
//! when a GPU is first asked for; kernels are embedded as source and compiled for the GPU that is there.
//!
//! One stream per GPU: operations run in the order they are called, and memory is reused in that order
//! ([`memory`]). Errors name the operation; index errors come out at the next wait (`fault`).

mod blas;
mod context;
pub(crate) mod elementwise;
mod fault;
pub(crate) mod fuse;
pub(crate) mod fused;
mod graph;
pub(crate) mod index;
mod launch;
pub(crate) mod linalg;
mod loader;
pub(crate) mod loss;
pub mod memory;
mod modules;
pub(crate) mod norm;
mod nvrtc;
mod profile;
pub(crate) mod reduce;
mod source;
mod storage;
mod table;
pub mod timing;
mod transfer;
mod walk;

pub use context::{Context, context, count, driver_version, ready};
pub use graph::{Graph, Input};
pub use launch::{Launch, address};
pub use modules::Grid;
pub use profile::{Line, profile};
pub use source::{Source, Type, Variant};
pub use storage::CudaStorage;
pub use table::SOURCES;

/// Compiling kernels ahead of their use, and where compiled ones are kept.
pub mod kernels {
    pub use super::nvrtc::{Checked, build, cache_folder, check, version};
}

/// The first GPU for a test, with new memory filled with NaN from now on; `None`, with a line on stderr, where there is
/// none.
///
/// # Panics
/// If there is none and `WEFT_REQUIRE_GPU` is 1: a run that is meant for a GPU must not pass without it.
pub fn for_tests() -> Option<crate::Device> {
    crate::memory::poison(true);
    match crate::Device::cuda(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var("WEFT_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}
