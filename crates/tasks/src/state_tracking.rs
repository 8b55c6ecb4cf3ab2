//! State tracking: the word problem of a finite group (Merrill, Petty, Sabharwal 2024, arXiv 2404.08819).
//!
//! ```text
//! x_1 x_2 .. x_T        at every x_t: the product x_t .. x_2 x_1
//! ```
//!
//! Tokens and classes are the elements of the [`Group`]. With two generators as alphabet a short convolution sees
//! fewer different words, and a model must compose to get far; with all elements each step can be any.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{Error, Result};
use crate::example::{Example, Task, below};
use crate::group::Group;
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateTracking {
    /// `"Z2"` (parity) and other cyclic groups, `"S3"` to `"S6"`, `"A3"` to `"A6"`.
    pub group: String,
    /// Which elements are tokens.
    pub alphabet: Alphabet,
}

/// The elements that words are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alphabet {
    /// Two that make all others.
    Generators,
    /// Every element.
    All,
}

impl Default for StateTracking {
    fn default() -> Self {
        Self {
            group: "S5".into(),
            alphabet: Alphabet::Generators,
        }
    }
}

impl Knobs for StateTracking {
    const NAME: &'static str = "state_tracking";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        let group = Group::named(&self.group).ok_or_else(|| Error::Knob {
            task: Self::NAME,
            reason: format!(
                "group is {:?}: give Z2 to Z1024, S2 to S6 or A3 to A6",
                self.group
            ),
        })?;
        let alphabet = match self.alphabet {
            Alphabet::Generators => group.generators().to_vec(),
            Alphabet::All => (0..group.order()).collect(),
        };
        Ok(Box::new(Words { group, alphabet }))
    }
}

struct Words {
    group: Group,
    alphabet: Vec<usize>,
}

impl Task for Words {
    fn vocab(&self) -> usize {
        self.group.order()
    }

    fn classes(&self) -> usize {
        self.group.order()
    }

    fn min_length(&self) -> usize {
        1
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let mut product = 0;
        let mut example = Example::default();
        for _ in 0..length {
            let x = self.alphabet[below(rng, self.alphabet.len())];
            product = self.group.product(x, product);
            example.ask(x, product);
        }
        example
    }
}
