//! Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).
//!
//! ```text
//! k1 v1 k2 v2 .. kP vP   . . k2 . . . k1 . ..        at each later key: its value
//! ```
//!
//! P different keys with a value each stand at the beginning. Behind them every key comes once more, at an even
//! distance from the pairs; slot x of them is taken with weight x^(power - 1), so that a small power asks most
//! questions early. All other tokens are random, but none is a key of this example. The value is asked, not shown.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{MAX, Result, ensure, size};
use crate::example::{Example, Task, below, distinct};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqar {
    /// Tokens: the first half are keys, the second half values.
    pub vocab: usize,
    /// Pairs, P.
    pub pairs: usize,
    /// The exponent of the gaps, above 0; 1 asks everywhere alike.
    pub power: f64,
}

impl Default for Mqar {
    /// The sizes of a quick comparison, with the paper's gaps.
    fn default() -> Self {
        Self {
            vocab: 256,
            pairs: 8,
            power: 0.01,
        }
    }
}

impl Knobs for Mqar {
    const NAME: &'static str = "mqar";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "vocab", self.vocab, 2..=MAX)?;
        size(Self::NAME, "pairs", self.pairs, 1..=self.vocab / 2)?;
        let right = self.power > 0.0 && self.power <= 10.0;
        let reason = format!("power is {}: give a number above 0, 10 at most", self.power);
        ensure(right, Self::NAME, reason)?;
        Ok(Box::new(self))
    }
}

impl Mqar {
    /// `count` of the slots 1..=slots, drawn one after the other by weight (Efraimidis, Spirakis 2006: the largest
    /// ln(u)/weight), in random order.
    fn slots(&self, rng: &mut Rng, slots: usize) -> Vec<usize> {
        let mut scored: Vec<(f64, usize)> = (0..slots)
            .map(|slot| {
                let weight = ((slot + 1) as f64).powf(self.power - 1.0);
                ((1.0 - rng.unit()).ln() / weight, slot)
            })
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let chosen: Vec<usize> = scored.iter().take(self.pairs).map(|s| s.1).collect();
        let order = rng.permutation(chosen.len());
        order.into_iter().map(|i| chosen[i]).collect()
    }
}

impl Task for Mqar {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn classes(&self) -> usize {
        self.vocab - self.vocab / 2
    }

    fn min_length(&self) -> usize {
        4 * self.pairs
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let half = self.vocab / 2;
        let keys = distinct(rng, half, self.pairs);
        let values: Vec<usize> = keys
            .iter()
            .map(|_| half + below(rng, self.classes()))
            .collect();
        let mut example = Example::default();
        for (&key, &value) in keys.iter().zip(&values) {
            example.tell(key);
            example.tell(value);
        }
        let start = example.len();
        let mut asked = vec![None; length - start];
        for (pair, slot) in self.slots(rng, asked.len() / 2).into_iter().enumerate() {
            asked[2 * slot] = Some(pair);
        }
        let mut is_key = vec![false; self.vocab];
        keys.iter().for_each(|&key| is_key[key] = true);
        for pair in asked {
            match pair {
                Some(pair) => example.ask(keys[pair], values[pair]),
                None => {
                    let mut token = below(rng, self.vocab);
                    while is_key[token] {
                        token = below(rng, self.vocab);
                    }
                    example.tell(token);
                }
            }
        }
        example
    }
}
