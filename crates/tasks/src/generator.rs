//! A task with its knobs set and a seed: batches by number.
//!
//! Every example has a random stream of its own, named by the seed, what it is for and its number. So batches can be
//! drawn in any order, a run continues from a number, and nothing held out is drawn from a stream of training. (In a
//! world with few inputs, such as short words over {0, 1}, equal examples still come up by chance.)

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use weft_tensor::Rng;

use crate::error::{Result, ensure};
use crate::example::{Batch, Task, below};
use crate::registry::{Entry, find};

/// What a random stream is for.
#[derive(Clone, Copy)]
enum Purpose {
    Train,
    HeldOut,
    Length,
}

fn stream(seed: u64, purpose: Purpose, number: u64) -> Rng {
    let purposes = 4u64;
    Rng::stream(
        seed,
        number.wrapping_mul(purposes).wrapping_add(purpose as u64),
    )
}

/// An endless supply of examples.
pub struct Generator {
    entry: &'static Entry,
    task: Box<dyn Task>,
    seed: u64,
}

impl Generator {
    /// A task by name. What is fixed for the whole task (a grammar, a style) and the held-out draws come from `seed`;
    /// missing knobs take their defaults.
    ///
    /// # Errors
    /// When the name or a knob is not known, or the knobs contradict each other.
    pub fn new(name: &str, knobs: &Map<String, Value>, seed: u64) -> Result<Generator> {
        let entry = find(name)?;
        Ok(Generator {
            entry,
            task: (entry.build)(knobs, seed)?,
            seed,
        })
    }

    /// Its line in the table.
    pub fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// Vocabulary, classes and the shortest length.
    pub fn task(&self) -> &dyn Task {
        &*self.task
    }

    /// Batch `number` of a training run, of one length drawn from `lengths`.
    ///
    /// # Errors
    /// When the shortest length does not hold an example.
    pub fn train(
        &self,
        seed: u64,
        number: u64,
        rows: usize,
        lengths: RangeInclusive<usize>,
    ) -> Result<Batch> {
        let (low, high) = (*lengths.start(), *lengths.end());
        self.check_length(low)?;
        let spread = high.saturating_sub(low) + 1;
        let length = low + below(&mut stream(seed, Purpose::Length, number), spread);
        let first = number.wrapping_mul(rows as u64);
        Ok(self.batch(seed, Purpose::Train, first, rows, length))
    }

    /// Held-out examples `first` to `first + rows`, of some length.
    ///
    /// # Errors
    /// When the length does not hold an example.
    pub fn held_out(&self, first: u64, rows: usize, length: usize) -> Result<Batch> {
        self.check_length(length)?;
        Ok(self.batch(self.seed, Purpose::HeldOut, first, rows, length))
    }

    /// Check that examples of a length exist.
    ///
    /// # Errors
    /// When they do not.
    pub fn check_length(&self, length: usize) -> Result<()> {
        let least = self.task.min_length();
        let reason = format!("{length} tokens are too few, with these knobs it takes {least}");
        ensure(length >= least, self.entry.name, reason)
    }

    fn batch(&self, seed: u64, purpose: Purpose, first: u64, rows: usize, length: usize) -> Batch {
        let mut batch = Batch {
            rows,
            columns: length,
            ..Batch::default()
        };
        for number in (0..rows as u64).map(|row| first.wrapping_add(row)) {
            let example = self.task.draw(&mut stream(seed, purpose, number), length);
            batch.ids.extend(example.ids);
            batch.targets.extend(example.targets);
        }
        batch
    }
}
