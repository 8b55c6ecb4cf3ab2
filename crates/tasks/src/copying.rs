//! Selective copying (Gu, Dao 2023, arXiv 2312.00752): some tokens stand at random places in noise, and are to be
//! repeated in their order.
//!
//! ```text
//! . . a . . . c . a . . .  ? ? ?        at the question marks: a, c, a
//! ```
//!
//! The distances vary, so a fixed filter cannot solve it; the model must choose by content what it keeps.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{MAX, Result, size};
use crate::example::{Example, Task, below, places};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectiveCopying {
    /// Tokens that can be asked for; one more is noise and one the question mark.
    pub symbols: usize,
    /// Tokens to copy.
    pub copies: usize,
}

impl Default for SelectiveCopying {
    /// The paper's: 16 tokens, 14 of them symbols, 16 to copy.
    fn default() -> Self {
        Self {
            symbols: 14,
            copies: 16,
        }
    }
}

impl Knobs for SelectiveCopying {
    const NAME: &'static str = "selective_copying";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "symbols", self.symbols, 1..=MAX)?;
        size(Self::NAME, "copies", self.copies, 1..=MAX)?;
        Ok(Box::new(self))
    }
}

impl Task for SelectiveCopying {
    fn vocab(&self) -> usize {
        self.symbols + 2
    }

    fn classes(&self) -> usize {
        self.symbols
    }

    fn min_length(&self) -> usize {
        2 * self.copies
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let (noise, question) = (self.symbols, self.symbols + 1);
        let mut context = vec![noise; length - self.copies];
        let places = places(rng, context.len(), self.copies);
        for &place in &places {
            context[place] = below(rng, self.symbols);
        }
        let mut example = Example::default();
        context.iter().for_each(|&token| example.tell(token));
        for place in places {
            example.ask(question, context[place]);
        }
        example
    }
}
