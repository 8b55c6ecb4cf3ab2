//! Recorded work: everything that a closure sends to the GPU, to be sent again as a whole by one call of the driver. A
//! recorded step of many small kernels then takes the GPU's time instead of the host's.
//!
//! A replay reads and writes the same addresses as the recording. So the memory that the closure allocated belongs to
//! the graph until the graph and every tensor in that memory are gone; tensors from before must be kept alive, and in
//! place, by whoever replays. Nothing of the host can be part of a graph: sizes, numbers and positions that kernels got
//! by value stay what they were.

use std::sync::Arc;

use cudarc::driver::sys;

use super::context::{Context, check, context, device_error};
use super::launch::address;
use super::memory::Recording;
use crate::error::Result;
use crate::tensor::Tensor;

const OP: &str = "graph";

/// Work that can be sent again.
pub struct Graph {
    context: &'static Context,
    executable: sys::CUgraphExec,
    memory: Arc<Recording>,
}

// SAFETY: an executable graph may be launched from any thread; launches go to one stream, in order.
unsafe impl Send for Graph {}
// SAFETY: as above: nothing is changed after the recording.
unsafe impl Sync for Graph {}

impl Graph {
    /// Record what `f` sends to a GPU; nothing of it runs yet. `f` must not wait for the GPU, nor move data between host
    /// and GPU, and should have run before, so that every kernel is compiled and loaded.
    ///
    /// # Errors
    /// Those of `f`, and when something was asked for that cannot be recorded.
    pub fn record<R>(ordinal: usize, f: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        let c = context(ordinal)?;
        c.enter(OP)?;
        let memory = c.start_recording(OP)?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the context is current and its stream records nothing else (`start_recording`).
        let begun = check(OP, unsafe { sys::cuStreamBeginCapture_v2(c.stream, mode) });
        let result = begun.and_then(|()| f());
        let mut graph = std::ptr::null_mut();
        // SAFETY: ends what was begun; a failed recording gives no graph.
        let ended = check(OP, unsafe { sys::cuStreamEndCapture(c.stream, &mut graph) });
        c.stop_recording();
        let mut executable = std::ptr::null_mut();
        // SAFETY: a graph that is not null is whole; it is not needed once it is made executable or turns out useless.
        let made = unsafe {
            let made = match &result {
                Ok(_) if !graph.is_null() => {
                    sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0)
                }
                _ => sys::CUresult::CUDA_SUCCESS,
            };
            if !graph.is_null() {
                sys::cuGraphDestroy(graph);
            }
            made
        };
        let result = result?;
        ended.and_then(|()| check(OP, made))?;
        let graph = Graph {
            context: c,
            executable,
            memory,
        };
        Ok((graph, result))
    }

    /// Send everything again; it runs after everything sent before.
    pub fn replay(&self) -> Result<()> {
        self.context.enter(OP)?;
        // SAFETY: the executable lives as long as self.
        check(OP, unsafe {
            sys::cuGraphLaunch(self.executable, self.context.stream)
        })
    }

    /// Bytes that belong to the graph.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// A tensor that recorded work reads, with elements that change from replay to replay.
pub struct Input {
    tensor: Tensor,
    address: u64,
}

impl Input {
    /// A copy of a tensor on a GPU, to be read by what is recorded next.
    pub fn new(x: &Tensor) -> Result<Input> {
        let mut tensor = x.zeros_like();
        tensor.assign(&x.detach())?;
        let address = address(&tensor)?;
        Ok(Input { tensor, address })
    }

    /// What the work to be recorded reads.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// New elements for the next replay.
    ///
    /// # Errors
    /// For another shape or dtype, and if the recorded work still holds the tensor: then they would land elsewhere.
    pub fn set(&mut self, x: &Tensor) -> Result<()> {
        self.tensor.assign(x)?;
        match address(&self.tensor)? == self.address {
            true => Ok(()),
            false => device_error(OP, "an input of recorded work is held by somebody else"),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `record` and not destroyed before; a launch under way is let finish by the driver.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}

impl Context {
    /// Refuse what cannot be recorded.
    pub(super) fn not_recording(&self, op: &'static str) -> Result<()> {
        if self.is_recording() {
            return device_error(
                op,
                "the host cannot take part in work that is being recorded: upload before, read afterwards",
            );
        }
        Ok(())
    }
}
