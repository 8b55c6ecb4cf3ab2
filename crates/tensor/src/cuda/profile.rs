//! Where a GPU's time goes: while a profile is taken, every launch stands between two events, and their distances are
//! summed by operation and kernel. Launches run one after another anyway, so the sums are the GPU's busy time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::context::{Context, context};
use super::timing::Event;
use crate::error::Result;

/// The launches of one kernel by one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// The operation.
    pub op: &'static str,
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// How often it ran.
    pub launches: usize,
    /// Milliseconds of all of them.
    pub ms: f64,
}

struct Span {
    op: &'static str,
    kernel: &'static str,
    start: Event<'static>,
    end: Event<'static>,
}

/// The spans of a profile that is being taken.
#[derive(Default)]
pub(super) struct Spans {
    on: AtomicBool,
    list: Mutex<Vec<Span>>,
}

impl Context {
    /// Send something to the stream, between two events if a profile is being taken.
    pub(super) fn spanned(
        &'static self,
        op: &'static str,
        kernel: &'static str,
        send: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.spans.on.load(Relaxed) || self.is_recording() {
            return send();
        }
        let start = self.record()?;
        send()?;
        let end = self.record()?;
        let span = Span {
            op,
            kernel,
            start,
            end,
        };
        let mut list = self.spans.list.lock().unwrap_or_else(|e| e.into_inner());
        list.push(span);
        Ok(())
    }
}

/// Run `f` and sum up what the GPU did meanwhile, the longest first. Waits for the GPU.
pub fn profile<R>(ordinal: usize, f: impl FnOnce() -> R) -> Result<(R, Vec<Line>)> {
    let c = context(ordinal)?;
    c.spans.on.store(true, Relaxed);
    let result = f();
    c.spans.on.store(false, Relaxed);
    let mut list = c.spans.list.lock().unwrap_or_else(|e| e.into_inner());
    let mut sums: HashMap<(&str, &str), Line> = HashMap::new();
    for span in list.drain(..) {
        let (op, kernel) = (span.op, span.kernel);
        let line = sums.entry((op, kernel)).or_insert(Line {
            op,
            kernel,
            launches: 0,
            ms: 0.0,
        });
        line.launches += 1;
        line.ms += f64::from(span.start.until(&span.end)?);
    }
    let mut lines: Vec<Line> = sums.into_values().collect();
    lines.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok((result, lines))
}
