//! The caching allocator. Blocks come in size classes and go back to a free list when dropped; since every
//! kernel of a GPU runs on one stream, a block may be handed out again at once: whatever still reads it runs
//! before whatever writes it next. In the steady state of a training or decoding loop no driver call is made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys;

use super::context::{Context, check, context, device_error};
use crate::error::Result;

/// Smallest block, and the alignment of all.
const UNIT: usize = 512;
/// Blocks up to this size are cut from slabs.
const SMALL: usize = 1 << 20;
/// Size of a slab.
const SLAB: usize = 16 << 20;

/// Free blocks and statistics of a GPU.
#[derive(Default)]
pub(super) struct Pool {
    free: HashMap<usize, Vec<u64>>,
    /// Start and bytes of the slab that is being cut.
    slab: (u64, usize),
    usage: Usage,
    /// Where new memory belongs to while work is being recorded.
    recording: Option<Arc<Recording>>,
}

/// Memory of recorded work. A replay writes it again, so it goes back to the pool only when the work and every tensor
/// in the memory are gone.
pub(super) struct Recording {
    context: &'static Context,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    free: HashMap<usize, Vec<u64>>,
    /// Address and size of every block, free or not.
    all: Vec<(u64, usize)>,
}

impl Recording {
    fn blocks<R>(&self, f: impl FnOnce(&mut Blocks) -> R) -> R {
        f(&mut self.blocks.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Bytes of its blocks.
    pub(super) fn bytes(&self) -> usize {
        self.blocks(|b| b.all.iter().map(|(_, size)| size).sum())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let blocks = self.blocks(std::mem::take);
        self.context.with_pool(|p| {
            for (address, size) in blocks.all {
                p.give(address, size);
            }
        });
    }
}

/// Bytes and driver calls of a GPU's tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in tensors that are alive.
    pub live: usize,
    /// The largest `live` since the last [`reset_peak`].
    pub peak: usize,
    /// Bytes in freed blocks kept for reuse.
    pub idle: usize,
    /// Allocations asked of the driver so far; constant in a steady state.
    pub driver_allocations: usize,
}

/// Size classes in steps of an eighth of a power of two: at most 12.5% of a block is unused.
fn class(bytes: usize) -> Option<usize> {
    let step = match bytes.checked_ilog2() {
        Some(power) if power > 12 => (1usize << (power - 3)).max(UNIT),
        _ => UNIT,
    };
    bytes.checked_next_multiple_of(step)
}

/// Current usage of a GPU's memory.
pub fn usage(ordinal: usize) -> Result<Usage> {
    Ok(context(ordinal)?.with_pool(|p| p.usage))
}

/// Start measuring the peak anew.
pub fn reset_peak(ordinal: usize) -> Result<()> {
    context(ordinal)?.with_pool(|p| p.usage.peak = p.usage.live);
    Ok(())
}

/// Wait for the GPU and give its large idle blocks back to the driver.
pub fn trim(ordinal: usize) -> Result<()> {
    let c = context(ordinal)?;
    c.synchronize("trim")?;
    c.with_pool(Pool::release);
    Ok(())
}

impl Pool {
    /// Give large free blocks back. The GPU must be idle and its context current.
    fn release(&mut self) {
        let usage = &mut self.usage;
        self.free.retain(|&size, blocks| {
            if size > SMALL {
                for p in blocks.drain(..) {
                    // SAFETY: the block came from the driver, is in no tensor, and the GPU is idle. A failure
                    // leaves the block with the driver; there is nothing more to do about it.
                    let _ = unsafe { sys::cuMemFree_v2(p) };
                    usage.idle -= size;
                }
            }
            size <= SMALL
        });
    }

    fn driver(&mut self, size: usize) -> Result<u64, sys::CUresult> {
        let mut p = 0;
        // SAFETY: the context is current (`Context::allocate`).
        match unsafe { sys::cuMemAlloc_v2(&mut p, size) } {
            sys::CUresult::CUDA_SUCCESS => {
                self.usage.driver_allocations += 1;
                Ok(p)
            }
            failed => Err(failed),
        }
    }

    /// Put a block back that was in use.
    fn give(&mut self, address: u64, size: usize) {
        self.usage.live -= size;
        self.usage.idle += size;
        self.free.entry(size).or_default().push(address);
    }

    fn take(&mut self, size: usize) -> Result<u64, sys::CUresult> {
        if let Some(p) = self.free.get_mut(&size).and_then(Vec::pop) {
            self.usage.idle -= size;
            return Ok(p);
        }
        if size > SMALL {
            return self.driver(size);
        }
        if self.slab.1 < size {
            // What is left of the old slab becomes a block of its own class, if any fits.
            let (start, left) = self.slab;
            let whole = left / UNIT * UNIT;
            if whole > 0 && class(whole) == Some(whole) {
                self.free.entry(whole).or_default().push(start);
                self.usage.idle += whole;
            }
            self.slab = (self.driver(SLAB)?, SLAB);
        }
        let p = self.slab.0;
        self.slab = (p + size as u64, self.slab.1 - size);
        Ok(p)
    }
}

/// A piece of a GPU's memory that goes back to its pool when dropped.
pub(super) struct Block {
    context: &'static Context,
    /// Its address; 0 if it has no bytes.
    pub(super) address: u64,
    size: usize,
    /// The recorded work that it belongs to.
    home: Option<Arc<Recording>>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        match &self.home {
            Some(home) => home.blocks(|b| b.free.entry(self.size).or_default().push(self.address)),
            // What recorded work may read is not handed out again while the work can be replayed.
            None => self.context.with_pool(|p| match &p.recording {
                Some(recording) => recording.blocks(|b| b.all.push((self.address, self.size))),
                None => p.give(self.address, self.size),
            }),
        }
    }
}

impl Context {
    fn with_pool<R>(&self, f: impl FnOnce(&mut Pool) -> R) -> R {
        // The pool is consistent between any two statements that can panic: none can.
        f(&mut self.pool.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// A block of at least `bytes`. When memory is short the idle blocks are given back and the driver asked
    /// once more; then it is an error, and the process goes on.
    pub(super) fn allocate(&'static self, op: &'static str, bytes: usize) -> Result<Block> {
        let mut block = Block {
            context: self,
            address: 0,
            size: 0,
            home: None,
        };
        if bytes == 0 {
            return Ok(block);
        }
        let Some(size) = class(bytes) else {
            return device_error(op, format!("{bytes} bytes are more than any GPU has"));
        };
        self.enter(op)?;
        block.home = self.with_pool(|p| p.recording.clone());
        let reused = block
            .home
            .as_ref()
            .and_then(|home| home.blocks(|b| b.free.get_mut(&size).and_then(Vec::pop)));
        if let Some(address) = reused {
            (block.address, block.size) = (address, size);
            self.poison(op, &block)?;
            return Ok(block);
        }
        let first = self.with_pool(|p| p.take(size));
        let got = match first {
            Err(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) if block.home.is_none() => {
                // SAFETY: the stream lives as long as the process.
                check(op, unsafe { sys::cuStreamSynchronize(self.stream) })?;
                self.with_pool(|p| {
                    p.release();
                    p.take(size)
                })
            }
            other => other,
        };
        match got {
            Ok(p) => {
                self.with_pool(|p| {
                    p.usage.live += size;
                    p.usage.peak = p.usage.peak.max(p.usage.live);
                });
                (block.address, block.size) = (p, size);
                if let Some(home) = &block.home {
                    home.blocks(|b| b.all.push((p, size)));
                }
            }
            Err(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                let live = self.with_pool(|p| p.usage.live);
                let mib = |b: usize| b.div_ceil(1 << 20);
                return device_error(
                    op,
                    format!(
                        "out of memory on {}: {} MiB more do not fit beside {} MiB in use of {} MiB; use a smaller batch, checkpointing or a larger GPU",
                        self.name,
                        mib(size),
                        mib(live),
                        mib(self.total_memory)
                    ),
                );
            }
            Err(failed) => check(op, failed)?,
        }
        self.poison(op, &block)?;
        Ok(block)
    }

    /// Fill a new block with NaN where tests ask for that.
    fn poison(&self, op: &'static str, block: &Block) -> Result<()> {
        if !crate::memory::poisoned() {
            return Ok(());
        }
        // SAFETY: the block is at least `size` bytes and no tensor has it yet.
        check(op, unsafe {
            sys::cuMemsetD8Async(block.address, 0xff, block.size, self.stream)
        })
    }

    /// Let new memory belong to work that is being recorded.
    pub(super) fn start_recording(&'static self, op: &'static str) -> Result<Arc<Recording>> {
        let memory = Arc::new(Recording {
            context: self,
            blocks: Mutex::default(),
        });
        self.with_pool(|p| match p.recording {
            Some(_) => device_error(op, "something is being recorded already"),
            None => {
                p.recording = Some(memory.clone());
                Ok(memory)
            }
        })
    }

    pub(super) fn stop_recording(&self) {
        self.with_pool(|p| p.recording = None);
    }

    pub(super) fn is_recording(&self) -> bool {
        self.with_pool(|p| p.recording.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_at_most_an_eighth() {
        assert_eq!(class(1), Some(512));
        assert_eq!(class(4096), Some(4096));
        for bytes in [4097, 10_000, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let c = class(bytes).unwrap();
            assert!(
                c >= bytes && (c - bytes) * 8 <= bytes.max(UNIT * 8),
                "{bytes} -> {c}"
            );
            assert_eq!(class(c), Some(c));
        }
        assert_eq!(class(usize::MAX), None);
    }
}
