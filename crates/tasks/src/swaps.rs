//! Items that change places (the state tracking task of Olmo Hybrid, arXiv 2604.03444).
//!
//! ```text
//! 0 1 2 3 4   (1 3) ?3  (0 1) ?4  ..        at ?j: the item in slot j now
//! ```
//!
//! Item i begins in slot i. Each swap exchanges the items of two slots; with probability `questions` a slot is asked
//! for behind it, and always at the end. Swaps of five slots make the group S5: a transition with eigenvalues in
//! (0, 1) cannot follow them for long, one that can reflect (beta = 2 in the delta rule) does it in one layer.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{Result, share, size};
use crate::example::{Example, Task, below};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Swaps {
    /// Slots, as many as items.
    pub slots: usize,
    /// The share of swaps with a question behind.
    pub questions: f64,
}

impl Default for Swaps {
    fn default() -> Self {
        Self {
            slots: 5,
            questions: 1.0,
        }
    }
}

impl Knobs for Swaps {
    const NAME: &'static str = "swaps";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "slots", self.slots, 2..=256)?;
        share(Self::NAME, "questions", self.questions)?;
        Ok(Box::new(self))
    }
}

/// Two different slots in ascending order, and the number of their pair among all pairs.
pub(crate) fn pair(rng: &mut Rng, slots: usize) -> (usize, usize, usize) {
    let a = below(rng, slots);
    let b = (a + 1 + below(rng, slots - 1)) % slots;
    let (a, b) = (a.min(b), a.max(b));
    // Pairs are numbered (0 1), (0 2), (1 2), (0 3), ...
    (a, b, b * (b - 1) / 2 + a)
}

/// How many pairs of slots there are.
pub(crate) fn pairs(slots: usize) -> usize {
    slots * (slots - 1) / 2
}

impl Task for Swaps {
    /// Items, questions, swaps.
    fn vocab(&self) -> usize {
        2 * self.slots + pairs(self.slots)
    }

    fn classes(&self) -> usize {
        self.slots
    }

    fn min_length(&self) -> usize {
        self.slots + 2
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let n = self.slots;
        let mut items: Vec<usize> = (0..n).collect();
        let mut example = Example::default();
        items.iter().for_each(|&item| example.tell(item));
        while example.len() < length {
            let (a, b, number) = pair(rng, n);
            let asks = rng.unit() < self.questions;
            let slot = below(rng, n);
            // The last token asks, whatever was drawn.
            if length - example.len() > 1 {
                items.swap(a, b);
                example.tell(2 * n + number);
            }
            let left = length - example.len();
            if left == 1 || (asks && left > 0) {
                example.ask(n + slot, items[slot]);
            }
        }
        example
    }
}
