//! Time on the GPU, by events on its stream.

use cudarc::driver::sys;

use super::context::{Context, check, device_error};
use super::loader::{self, Lib};
use crate::error::Result;

type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

/// A moment on a GPU's stream.
pub struct Event<'a> {
    context: &'a Context,
    raw: sys::CUevent,
}

impl Context {
    /// Mark the moment when everything sent so far is done.
    pub fn record(&self) -> Result<Event<'_>> {
        const OP: &str = "record";
        self.enter(OP)?;
        let mut e = Event {
            context: self,
            raw: std::ptr::null_mut(),
        };
        // SAFETY: the context is current; the stream lives as long as the process.
        unsafe {
            check(OP, sys::cuEventCreate(&mut e.raw, 0))?;
            check(OP, sys::cuEventRecord(e.raw, self.stream))?;
        }
        Ok(e)
    }
}

impl Event<'_> {
    /// Milliseconds from this moment to a later one; waits for the later one.
    pub fn until(&self, later: &Event) -> Result<f32> {
        const OP: &str = "elapsed time";
        self.context.enter(OP)?;
        let library = loader::load(Lib::Driver).or_else(|reason| device_error(OP, reason))?;
        let mut ms = 0.0;
        // SAFETY: the symbol is in every driver with this signature; both events are recorded on live streams.
        unsafe {
            let Ok(elapsed) = library.get::<Elapsed>(b"cuEventElapsedTime\0") else {
                return device_error(OP, "the driver has no cuEventElapsedTime");
            };
            check(OP, sys::cuEventSynchronize(later.raw))?;
            check(OP, elapsed(&mut ms, self.raw, later.raw))?;
        }
        Ok(ms)
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: created by cuEventCreate and not destroyed before.
        unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}
