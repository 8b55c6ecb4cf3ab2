//! Recall with overwriting and noise: pairs are written at random places of a context, some keys more than once, and
//! in the end they are asked for.
//!
//! ```text
//! . . k3 v1 . . k5 v7 k3 v2 . .   k5 (v7) k3 (v2) ..      at each key of the end: its latest value
//! ```
//!
//! Pairs stand at even places. The first `live` questions ask every live key once, in random order; more begin again.
//! With noise 1 and pairs = live this is recall among filler; with live < pairs the old values must be forgotten.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{MAX, Result, size};
use crate::example::{Example, Task, below, distinct, places};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recall {
    /// Key tokens.
    pub keys: usize,
    /// Value tokens.
    pub values: usize,
    /// Tokens that mean nothing.
    pub noise: usize,
    /// Pairs written.
    pub pairs: usize,
    /// Different keys among them.
    pub live: usize,
    /// Questions.
    pub queries: usize,
    /// Each question is followed by its answer as a token.
    pub answers: bool,
}

impl Default for Recall {
    /// Twelve writes to eight keys.
    fn default() -> Self {
        Self {
            keys: 16,
            values: 16,
            noise: 16,
            pairs: 12,
            live: 8,
            queries: 12,
            answers: true,
        }
    }
}

impl Knobs for Recall {
    const NAME: &'static str = "recall";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        for (knob, value) in [
            ("keys", self.keys),
            ("values", self.values),
            ("noise", self.noise),
            ("pairs", self.pairs),
            ("queries", self.queries),
        ] {
            size(Self::NAME, knob, value, 1..=MAX)?;
        }
        size(Self::NAME, "live", self.live, 1..=self.keys.min(self.pairs))?;
        Ok(Box::new(self))
    }
}

impl Recall {
    /// Tokens of the questions.
    fn end(&self) -> usize {
        self.queries * (1 + usize::from(self.answers))
    }

    /// The key of each write: every live key at least once.
    fn writes(&self, rng: &mut Rng, live: &[usize]) -> Vec<usize> {
        let more = self.pairs - live.len();
        let mut writes = live.to_vec();
        writes.extend((0..more).map(|_| live[below(rng, live.len())]));
        let order = rng.permutation(writes.len());
        order.into_iter().map(|i| writes[i]).collect()
    }
}

impl Task for Recall {
    fn vocab(&self) -> usize {
        self.keys + self.values + self.noise
    }

    fn classes(&self) -> usize {
        self.values
    }

    fn min_length(&self) -> usize {
        2 * self.pairs + self.end()
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let context = length - self.end();
        let live = distinct(rng, self.keys, self.live);
        let writes = self.writes(rng, &live);
        let mut slots = vec![None; context / 2];
        for (place, key) in places(rng, slots.len(), self.pairs).into_iter().zip(writes) {
            slots[place] = Some(key);
        }
        let noise = |rng: &mut Rng| self.keys + self.values + below(rng, self.noise);
        let mut latest = vec![0; self.keys];
        let mut example = Example::default();
        for slot in slots {
            let pair = match slot {
                Some(key) => {
                    latest[key] = self.keys + below(rng, self.values);
                    [key, latest[key]]
                }
                None => [noise(rng), noise(rng)],
            };
            pair.into_iter().for_each(|token| example.tell(token));
        }
        while example.len() < context {
            example.tell(noise(rng));
        }
        let mut order = rng.permutation(live.len());
        for query in 0..self.queries {
            let at = query % live.len();
            if query > 0 && at == 0 {
                order = rng.permutation(live.len());
            }
            let key = live[order[at]];
            example.ask(key, latest[key]);
            if self.answers {
                example.tell(latest[key]);
            }
        }
        example
    }
}
