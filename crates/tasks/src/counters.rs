//! Counters: registers that are counted up, reset to 0, and read. Counting needs writing without erasing, a reset
//! erasing without writing; a test of separate erase and write gates (Gated DeltaNet-2, arXiv 2605.22791).
//!
//! ```text
//! +2 +2 ?2 +0 0:=0 +2 ?2 ..       at ?2: how often register 2 was counted up since its last reset
//! ```

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{MAX, Result, ensure, size};
use crate::example::{Example, Task, below, weighted};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Counters {
    /// Registers.
    pub registers: usize,
    /// Counts from here on are one class.
    pub cap: usize,
    /// Share of tokens that reset.
    pub resets: f64,
    /// Share of tokens that ask; the last token always does.
    pub queries: f64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            registers: 8,
            cap: 15,
            resets: 0.07,
            queries: 0.28,
        }
    }
}

impl Knobs for Counters {
    const NAME: &'static str = "counters";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "registers", self.registers, 1..=MAX)?;
        size(Self::NAME, "cap", self.cap, 1..=MAX)?;
        let (resets, queries) = (self.resets, self.queries);
        let right = resets >= 0.0 && queries >= 0.0 && resets + queries <= 1.0;
        let reason =
            format!("resets {resets} and queries {queries} must be shares with a sum of at most 1");
        ensure(right, Self::NAME, reason)?;
        Ok(Box::new(self))
    }
}

impl Task for Counters {
    /// Counts, then an up, a reset and a question token for each register.
    fn vocab(&self) -> usize {
        self.classes() + 3 * self.registers
    }

    fn classes(&self) -> usize {
        self.cap + 1
    }

    fn min_length(&self) -> usize {
        1
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let shares = [1.0 - self.resets - self.queries, self.resets, self.queries];
        let mut counts = vec![0; self.registers];
        let mut example = Example::default();
        for place in 0..length {
            let drawn = weighted(rng, &shares);
            let kind = if place + 1 == length { 2 } else { drawn };
            let register = below(rng, self.registers);
            let token = self.classes() + kind * self.registers + register;
            match kind {
                0 => counts[register] += 1,
                1 => counts[register] = 0,
                _ => {
                    example.ask(token, counts[register].min(self.cap));
                    continue;
                }
            }
            example.tell(token);
        }
        example
    }
}
