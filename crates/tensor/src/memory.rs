//! Host buffers that are kept for reuse. Training asks for the same sizes at every step; giving large
//! blocks back to the system would cost a page fault per 4 KiB each time they are written again.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};

use crate::dtype::Element;

/// 64 bytes: a cache line and one AVX-512 register.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u64; 8]);

const LINE: usize = std::mem::size_of::<Line>();
/// Blocks below 64 lines (4 KiB) go straight to the allocator, which is good at them.
const POOLED: usize = 64;

static POOL: LazyLock<Mutex<HashMap<usize, Vec<Vec<Line>>>>> = LazyLock::new(Default::default);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static IDLE: AtomicUsize = AtomicUsize::new(0);
static POISON: AtomicBool = AtomicBool::new(false);

/// Bytes held by tensors on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In tensors that are alive.
    pub live: usize,
    /// The largest `live` since the last [`reset_peak`].
    pub peak: usize,
    /// In freed blocks kept for reuse.
    pub idle: usize,
}

/// Current usage of host memory by tensors.
pub fn usage() -> Usage {
    Usage {
        live: LIVE.load(Relaxed),
        peak: PEAK.load(Relaxed),
        idle: IDLE.load(Relaxed),
    }
}

/// Start measuring the peak anew.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Relaxed), Relaxed);
}

/// Give the kept blocks back to the system.
pub fn trim() {
    if let Ok(mut pool) = POOL.lock() {
        pool.clear();
        IDLE.store(0, Relaxed);
    }
}

/// Fill every new buffer with NaN bit patterns: a test that passes with this on reads no element that its
/// kernel did not write.
pub fn poison(on: bool) {
    POISON.store(on, Relaxed);
}

/// Whether new buffers are to be filled with NaN, on any device.
pub(crate) fn poisoned() -> bool {
    POISON.load(Relaxed)
}

/// Size classes in steps of an eighth of a power of two: at most 12.5% of a block is unused.
fn class(lines: usize) -> usize {
    if lines < POOLED {
        return lines;
    }
    let step = 1 << (lines.ilog2() - 3);
    lines.div_ceil(step) * step
}

/// A fixed-size block of elements, aligned to 64 bytes, that returns to the pool when dropped.
pub struct Buffer<T: Element> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// `len` elements with unspecified (but initialised) values: every one must be written.
    pub fn unwritten(len: usize) -> Buffer<T> {
        let want = class((len * std::mem::size_of::<T>()).div_ceil(LINE));
        let kept = if want < POOLED {
            None
        } else {
            POOL.lock()
                .ok()
                .and_then(|mut pool| pool.get_mut(&want).and_then(Vec::pop))
        };
        let mut lines = match kept {
            Some(lines) => {
                IDLE.fetch_sub(want * LINE, Relaxed);
                lines
            }
            None => bytemuck::allocation::zeroed_vec(want),
        };
        if POISON.load(Relaxed) {
            lines.fill(Line([u64::MAX; 8]));
        }
        let live = LIVE.fetch_add(want * LINE, Relaxed) + want * LINE;
        PEAK.fetch_max(live, Relaxed);
        Buffer {
            lines,
            len,
            element: std::marker::PhantomData,
        }
    }

    /// `len` copies of `value`.
    pub fn filled(len: usize, value: T) -> Buffer<T> {
        let mut b = Buffer::unwritten(len);
        b.fill(value);
        b
    }

    /// A copy of a slice.
    pub fn from_slice(data: &[T]) -> Buffer<T> {
        let mut b = Buffer::unwritten(data.len());
        b.copy_from_slice(data);
        b
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let n = lines.len();
        LIVE.fetch_sub(n * LINE, Relaxed);
        if n >= POOLED
            && let Ok(mut pool) = POOL.lock()
        {
            pool.entry(n).or_default().push(lines);
            IDLE.fetch_add(n * LINE, Relaxed);
        }
    }
}
