//! Index errors on the GPU. Kernels check every index before they use it; the first bad one is written to a
//! record in host memory that the GPU can reach. Looking at it costs nothing, so it is looked at whenever the
//! host waits for the GPU anyway.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys;

use super::context::check;
use crate::error::{Error, Result};

/// Operations that check indices, by the number their kernels report.
const OPERATIONS: [&str; 4] = ["index_select", "gather", "scatter_add", "cross_entropy"];

/// The layout of `Fault` in the kernels.
#[repr(C)]
struct Fault {
    /// 0: none; 1: being written; 2: complete.
    taken: AtomicU32,
    op: u32,
    index: i64,
    position: u64,
    size: u64,
    axis: u64,
}

/// A pinned record, never freed.
pub(super) struct Record(Mutex<*mut Fault>);

impl Record {
    /// Allocate it in the current context.
    pub(super) fn new() -> Result<Record> {
        let mut p = std::ptr::null_mut();
        // SAFETY: the context is current; the block is large enough and zero is a valid `Fault`.
        unsafe {
            let size = std::mem::size_of::<Fault>();
            check(
                "cuda",
                sys::cuMemHostAlloc(&mut p, size, sys::CU_MEMHOSTALLOC_DEVICEMAP),
            )?;
            std::ptr::write_bytes(p.cast::<u8>(), 0, size);
        }
        Ok(Record(Mutex::new(p.cast())))
    }

    /// Its address for kernels: one address space holds host and device memory.
    pub(super) fn address(&self) -> u64 {
        self.0.lock().map_or(0, |p| *p as u64)
    }

    /// The error that kernels found since the last look. The GPU must be idle.
    pub(super) fn take(&self) -> Result<()> {
        let Ok(p) = self.0.lock() else {
            return Ok(());
        };
        // SAFETY: the pointer is valid for the process's life. The caller has waited for the stream, so no
        // kernel writes now; the lock keeps other host threads out.
        unsafe {
            let fault = *p;
            if (*fault).taken.load(Ordering::Acquire) != 2 {
                return Ok(());
            }
            let error = Error::Index {
                op: OPERATIONS
                    .get((*fault).op as usize)
                    .copied()
                    .unwrap_or("index"),
                index: (*fault).index,
                position: (*fault).position as usize,
                axis: (*fault).axis as usize,
                size: (*fault).size as usize,
            };
            (*fault).taken.store(0, Ordering::Release);
            Err(error)
        }
    }
}
