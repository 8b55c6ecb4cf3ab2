//! The log of a run: JSON lines, and the same numbers as TensorBoard curves.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::Progress;
use super::memory::Memory;
use crate::error::{Error, Result};
use crate::evaluate::Score;
use crate::log::{EventFile, JsonLines};

/// The JSON lines, in the run's folder.
pub const LOG_FILE: &str = "log.jsonl";
/// The folder of event files, in the run's folder.
pub const EVENTS_FOLDER: &str = "tensorboard";

pub(super) struct Journal {
    lines: JsonLines,
    events: EventFile,
}

/// A step, as it is logged.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct StepLine {
    pub(super) step: u64,
    pub(super) tokens: u64,
    /// Nats per prediction; null if it was not finite.
    pub(super) loss: f64,
    pub(super) lr: f64,
    pub(super) grad_norm: f64,
    pub(super) tokens_per_second: f64,
    /// Model flops utilisation: the part of the device's peak; only where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mfu: Option<f64>,
    /// On a GPU: what the step asked of its memory.
    #[serde(flatten)]
    pub(super) memory: Option<Memory>,
    /// Steps skipped so far.
    pub(super) skipped: u64,
}

impl fmt::Display for StepLine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let pace = self.tokens_per_second;
        write!(f, "loss {:.3}, {pace:.0} tokens/s", self.loss)?;
        if let Some(mfu) = self.mfu {
            write!(f, ", MFU {:.1}%", 100.0 * mfu)?;
        }
        if let Some(memory) = self.memory.filter(Memory::unsteady) {
            write!(f, ", {} driver allocations", memory.driver_allocations)?;
        }
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct EvaluationLine<'a> {
    step: u64,
    tokens: u64,
    evaluation: &'a Score,
}

impl Journal {
    /// Go on after a step: what was logged later is forgotten.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self> {
        let events = folder.join(EVENTS_FOLDER);
        std::fs::create_dir_all(&events).map_err(Error::io("write", &events))?;
        Ok(Self {
            lines: JsonLines::resume(folder.join(LOG_FILE), step)?,
            events: EventFile::create(&events, step)?,
        })
    }

    pub(super) fn step(&mut self, line: &StepLine) -> Result<()> {
        self.lines.write(line)?;
        let mut curves = vec![
            ("train/loss", line.loss),
            ("train/lr", line.lr),
            ("train/grad_norm", line.grad_norm),
            ("train/tokens_per_second", line.tokens_per_second),
            ("train/skipped", line.skipped as f64),
        ];
        curves.extend(line.mfu.map(|mfu| ("train/mfu", mfu)));
        if let Some(memory) = line.memory {
            let allocations = memory.driver_allocations as f64;
            curves.push(("memory/driver_allocations", allocations));
            curves.push(("memory/peak_bytes", memory.peak_bytes as f64));
        }
        self.events.scalars(line.step, &curves)
    }

    pub(super) fn evaluation(&mut self, progress: &Progress, evaluation: &Score) -> Result<()> {
        self.lines.write(&EvaluationLine {
            step: progress.step,
            tokens: progress.tokens,
            evaluation,
        })?;
        let metrics = evaluation.metrics();
        let named: Vec<(String, f64)> = metrics
            .into_iter()
            .map(|(name, value)| (format!("held_out/{name}"), value))
            .collect();
        let curves: Vec<(&str, f64)> = named.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        self.events.scalars(progress.step, &curves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(memory: Option<Memory>) -> StepLine {
        StepLine {
            step: 9,
            tokens: 90,
            loss: 1.0,
            lr: 0.1,
            grad_norm: 2.0,
            tokens_per_second: 1000.0,
            mfu: None,
            memory,
            skipped: 0,
        }
    }

    #[test]
    fn allocations_are_logged_on_a_gpu_and_shown_when_they_should_not_be() {
        let memory = |driver_allocations, settled| Memory {
            driver_allocations,
            peak_bytes: 1 << 30,
            settled,
        };
        for (memory, shown) in [
            (memory(0, true), false),
            (memory(2, false), false),
            (memory(2, true), true),
        ] {
            let line = line(Some(memory));
            let value = serde_json::to_value(line).unwrap();
            assert_eq!(value["driver_allocations"], memory.driver_allocations);
            assert_eq!(value["peak_bytes"], 1 << 30);
            assert!(value.get("settled").is_none());
            assert_eq!(line.to_string().contains("2 driver allocations"), shown);
        }
        let value = serde_json::to_value(line(None)).unwrap();
        assert!(value.get("driver_allocations").is_none() && value.get("peak_bytes").is_none());
    }
}
