//! The grammar as a task: name the state after every symbol.
//!
//! ```text
//! A . C ! ! A . # .        at every token: the state of the last element
//! ```
//!
//! Behind an element there may be a gap: empty tokens, or with `distractors` symbols that the grammar does not allow
//! there. With gap_share 1 and gaps [1, 1] this is the first test of SelectivBench, with gaps [1, 10] the second (its
//! additive noise has no counterpart among tokens), with distractors the third, and longer gaps in evaluation make the
//! fourth. The first element of a string can be ambiguous between starts of one symbol.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use super::{Grammar, Shape};
use crate::error::{MAX, Result, ensure, share, size};
use crate::example::{Example, Task, below};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrammarTask {
    /// Symbols, the end among them.
    pub symbols: usize,
    /// Letters that stand for several states.
    pub ambiguous: usize,
    /// How many states each of them stands for.
    pub depth: usize,
    /// Start states.
    pub starts: usize,
    /// The probability that an ambiguous letter may follow a state.
    pub density: f64,
    /// The shortest and the longest gap behind an element.
    pub gaps: [usize; 2],
    /// The share of elements with a gap.
    pub gap_share: f64,
    /// Elements before the first gap.
    pub gap_start: usize,
    /// Gaps hold symbols that the grammar does not allow there; a state that allows all has no gap.
    pub distractors: bool,
}

impl Default for GrammarTask {
    /// 37 states, an empty token behind every element.
    fn default() -> Self {
        Self {
            symbols: 7,
            ambiguous: 6,
            depth: 6,
            starts: 4,
            density: 0.4,
            gaps: [1, 1],
            gap_share: 1.0,
            gap_start: 0,
            distractors: false,
        }
    }
}

impl Knobs for GrammarTask {
    const NAME: &'static str = "grammar";

    fn build(self, seed: u64) -> Result<Box<dyn Task>> {
        let [low, high] = self.gaps;
        let reason = format!("gaps is [{low}, {high}]: give the shortest first");
        ensure(low <= high, Self::NAME, reason)?;
        size(Self::NAME, "gaps", high, 0..=MAX)?;
        share(Self::NAME, "gap_share", self.gap_share)?;
        let shape = Shape {
            symbols: self.symbols,
            ambiguous: self.ambiguous,
            depth: self.depth,
            starts: self.starts,
            density: self.density,
        };
        let grammar = Grammar::draw(&mut Rng::new(seed), &shape)?;
        Ok(Box::new(Rendered {
            grammar,
            knobs: self,
        }))
    }
}

/// A grammar and how its strings become tokens.
pub(super) struct Rendered {
    pub(super) grammar: Grammar,
    pub(super) knobs: GrammarTask,
}

impl Rendered {
    /// The tokens behind element `number`, which is in `state`.
    fn gap(&self, rng: &mut Rng, number: usize, state: usize) -> Vec<usize> {
        let GrammarTask {
            symbols,
            gaps: [low, high],
            gap_share,
            gap_start,
            distractors,
            ..
        } = self.knobs;
        if number < gap_start || rng.unit() >= gap_share {
            return Vec::new();
        }
        let count = low + below(rng, high - low + 1);
        if !distractors {
            return vec![symbols; count];
        }
        match self.grammar.ungrammatical(state) {
            none if none.is_empty() => Vec::new(),
            wrong => (0..count).map(|_| wrong[below(rng, wrong.len())]).collect(),
        }
    }
}

impl Task for Rendered {
    /// The symbols and the empty token; classes begin at 0 again.
    fn vocab(&self) -> usize {
        self.grammar.states().max(self.knobs.symbols + 1)
    }

    fn classes(&self) -> usize {
        self.grammar.states()
    }

    fn min_length(&self) -> usize {
        1
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let mut example = Example::default();
        for (number, state) in self.grammar.walk(rng, length).into_iter().enumerate() {
            if example.len() == length {
                break;
            }
            example.ask(self.grammar.symbol(state), state);
            for token in self.gap(rng, number, state) {
                if example.len() < length {
                    example.ask(token, state);
                }
            }
        }
        example
    }
}
