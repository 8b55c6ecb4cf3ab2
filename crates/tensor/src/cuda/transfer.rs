//! Copies between host and GPU, through a ring of pinned buffers: while one is on its way over the bus another is filled
//! or emptied. Small uploads return at once: a buffer is waited for only when its turn comes again.

use cudarc::driver::sys;

use super::context::{Context, check};
use crate::error::Result;

/// Bytes of each pinned buffer.
const CHUNK: usize = 2 << 20;
/// Pinned buffers.
const BUFFERS: usize = 8;

/// Pinned buffers, the events that say when the GPU is done with them, and whose turn it is.
pub(super) struct Staging {
    buffers: [*mut u8; BUFFERS],
    events: [sys::CUevent; BUFFERS],
    turn: usize,
}

// SAFETY: plain pinned memory and event handles, used under the context's lock.
unsafe impl Send for Staging {}

impl Staging {
    fn new() -> Result<Staging> {
        let mut s = Staging {
            buffers: [std::ptr::null_mut(); BUFFERS],
            events: [std::ptr::null_mut(); BUFFERS],
            turn: 0,
        };
        for i in 0..BUFFERS {
            let mut p = std::ptr::null_mut();
            let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: the context is current; both pointers are to live locals.
            unsafe {
                check("cuda", sys::cuMemHostAlloc(&mut p, CHUNK, 0))?;
                check("cuda", sys::cuEventCreate(&mut s.events[i], flags))?;
            }
            s.buffers[i] = p.cast();
        }
        Ok(s)
    }
}

impl Context {
    fn with_staging<R>(
        &self,
        op: &'static str,
        f: impl FnOnce(&mut Staging) -> Result<R>,
    ) -> Result<R> {
        self.enter(op)?;
        let mut guard = self.staging.lock().unwrap_or_else(|e| e.into_inner());
        if guard.is_none() {
            *guard = Some(Staging::new()?);
        }
        match &mut *guard {
            Some(s) => f(s),
            None => Staging::new().and_then(|mut s| f(&mut s)),
        }
    }

    /// Copy host bytes to `address`. When this returns, `data` may change.
    pub(super) fn upload(&self, op: &'static str, address: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.not_recording(op)?;
        self.with_staging(op, |s| {
            for (i, part) in data.chunks(CHUNK).enumerate() {
                s.turn = (s.turn + 1) % BUFFERS;
                let (buffer, event) = (s.buffers[s.turn], s.events[s.turn]);
                let to = address + (i * CHUNK) as u64;
                // SAFETY: the event says that the GPU has read the buffer's last contents; the buffer holds
                // CHUNK bytes, the block at `address` as many as `data`.
                unsafe {
                    check(op, sys::cuEventSynchronize(event))?;
                    std::ptr::copy_nonoverlapping(part.as_ptr(), buffer, part.len());
                    check(
                        op,
                        sys::cuMemcpyHtoDAsync_v2(to, buffer.cast(), part.len(), self.stream),
                    )?;
                    check(op, sys::cuEventRecord(event, self.stream))?;
                }
            }
            Ok(())
        })
    }

    /// Copy bytes from `address` to the host, after everything sent to the GPU before.
    pub(super) fn download(&self, op: &'static str, address: u64, data: &mut [u8]) -> Result<()> {
        self.not_recording(op)?;
        if data.is_empty() {
            return self.synchronize(op);
        }
        self.with_staging(op, |s| {
            let (total, pieces) = (data.len(), data.len().div_ceil(CHUNK));
            let size = |i: usize| CHUNK.min(total - i * CHUNK);
            let send = |i: usize| {
                let (buffer, event) = (s.buffers[i % BUFFERS], s.events[i % BUFFERS]);
                let from = address + (i * CHUNK) as u64;
                // SAFETY: the block at `address` holds `total` bytes, the buffer CHUNK; the host has emptied
                // the buffer of piece i - BUFFERS before it is sent again.
                unsafe {
                    check(
                        op,
                        sys::cuMemcpyDtoHAsync_v2(buffer.cast(), from, size(i), self.stream),
                    )?;
                    check(op, sys::cuEventRecord(event, self.stream))
                }
            };
            for i in 0..pieces.min(BUFFERS) {
                send(i)?;
            }
            for (i, out) in data.chunks_mut(CHUNK).enumerate() {
                // SAFETY: the event says that piece i has arrived; nothing writes the buffer until the next
                // `send` into it, below.
                unsafe {
                    check(op, sys::cuEventSynchronize(s.events[i % BUFFERS]))?;
                    let from = s.buffers[i % BUFFERS];
                    std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len());
                }
                if i + BUFFERS < pieces {
                    send(i + BUFFERS)?;
                }
            }
            Ok(())
        })?;
        self.synchronize(op)
    }
}
