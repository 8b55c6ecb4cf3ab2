//! The other two expressivity tasks of Olmo Hybrid (arXiv 2604.03444): bits of an array, and bits behind pointers.
//!
//! ```text
//! bit_recall:   1 0 0 1 1 0 ..   #4 #0 ..                                   at #i: bit i
//! pointers:     1 0 0 1 1 0 ..   #4 #0 #2   (0 2) @2 #4  (0 1) ..   *1      at @a: the index in pointer a (then shown)
//!                                                                           at *a: the bit at that index
//! ```
//!
//! A fixed state cannot hold more bits than it has room for, so recurrence fails at the first; attention of fixed depth
//! cannot follow the swaps. The second needs both: track the pointers, then recall. Pointers that are told on the way
//! (at @a) guide the training; a share of examples, `strict`, has none.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{MAX, Result, share, size};
use crate::example::{Example, Task, below, distinct};
use crate::registry::Knobs;
use crate::swaps::{pair, pairs};

/// Knobs of the bit array.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitRecall {
    /// Bits in the array.
    pub bits: usize,
}

impl Default for BitRecall {
    fn default() -> Self {
        Self { bits: 128 }
    }
}

impl Knobs for BitRecall {
    const NAME: &'static str = "bit_recall";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "bits", self.bits, 1..=MAX)?;
        Ok(Box::new(self))
    }
}

impl Task for BitRecall {
    /// Two bits, then the indices.
    fn vocab(&self) -> usize {
        2 + self.bits
    }

    fn classes(&self) -> usize {
        2
    }

    fn min_length(&self) -> usize {
        self.bits + 1
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let mut example = Example::default();
        let bits = tell_bits(rng, self.bits, &mut example);
        while example.len() < length {
            let index = below(rng, self.bits);
            example.ask(2 + index, bits[index]);
        }
        example
    }
}

fn tell_bits(rng: &mut Rng, count: usize, example: &mut Example) -> Vec<usize> {
    let bits: Vec<usize> = (0..count).map(|_| below(rng, 2)).collect();
    bits.iter().for_each(|&bit| example.tell(bit));
    bits
}

/// Knobs of the bits behind pointers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pointers {
    /// Bits in the array.
    pub bits: usize,
    /// Pointers into it, all different.
    pub pointers: usize,
    /// The share of swaps behind which a pointer is asked for and told.
    pub told: f64,
    /// The share of examples in which none is.
    pub strict: f64,
}

impl Default for Pointers {
    fn default() -> Self {
        Self {
            bits: 32,
            pointers: 5,
            told: 0.5,
            strict: 0.2,
        }
    }
}

impl Knobs for Pointers {
    const NAME: &'static str = "pointers";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "bits", self.bits, 2..=MAX)?;
        size(
            Self::NAME,
            "pointers",
            self.pointers,
            2..=self.bits.min(256),
        )?;
        share(Self::NAME, "told", self.told)?;
        share(Self::NAME, "strict", self.strict)?;
        Ok(Box::new(self))
    }
}

impl Task for Pointers {
    /// Two bits, the indices, questions for a pointer, questions for a bit, swaps.
    fn vocab(&self) -> usize {
        2 + self.bits + 2 * self.pointers + pairs(self.pointers)
    }

    /// The bit that is asked for in the end has two; pointers on the way have as many as there are bits.
    fn classes(&self) -> usize {
        2
    }

    fn min_length(&self) -> usize {
        self.bits + self.pointers + 2
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let p = self.pointers;
        let (ask_pointer, ask_bit) = (2 + self.bits, 2 + self.bits + p);
        let swap = ask_bit + p;
        let mut example = Example::default();
        let bits = tell_bits(rng, self.bits, &mut example);
        let mut pointers = distinct(rng, self.bits, p);
        pointers.iter().for_each(|&at| example.tell(2 + at));
        let told = if rng.unit() < self.strict {
            0.0
        } else {
            self.told
        };
        while length - example.len() > 1 {
            let (a, b, number) = pair(rng, p);
            pointers.swap(a, b);
            example.tell(swap + number);
            let asked = below(rng, p);
            if rng.unit() < told && length - example.len() > 2 {
                example.ask(ask_pointer + asked, 2 + pointers[asked]);
                example.tell(2 + pointers[asked]);
            }
        }
        let asked = below(rng, p);
        example.ask(ask_bit + asked, bits[pointers[asked]]);
        example
    }
}
