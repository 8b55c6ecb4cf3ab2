//! A needle in a haystack: sentences that say a number for a word, somewhere in a long text, and questions for some of
//! them at its end (after the retrieval tasks of RULER, Hsieh et al. 2024, arXiv 2404.06654).
//!
//! ```text
//! .. the river was slow . the number of copper is 4 0 7 1 . a lamp stood ..  what is the number of copper ? 4 0 7 1
//! ```
//!
//! Each digit is asked for at the token before it, the right digits before it given. Needles stand between the words of
//! the filler, at a depth drawn from `depth`: 0 is the beginning of the text and 1 the end. More needles than
//! questions are distractors; `values` numbers for one word make the multi-value task.
//!
//! At level `token` a word is a token, at level `byte` a byte is one and words are spelt with a space behind. What the
//! filler does not fill exactly is cut off in the middle of a word.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{Result, ensure, size};
use crate::example::{Example, NOTHING, Task, below, distinct};
use crate::registry::Knobs;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A byte; the vocabulary is 256.
    Byte,
    /// A word, a digit or a full stop.
    Token,
}

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Needle {
    /// What a token is.
    pub level: Level,
    /// Words that have a number.
    pub needles: usize,
    /// Numbers of each of them.
    pub values: usize,
    /// Words asked for.
    pub queries: usize,
    /// Digits of a number.
    pub digits: usize,
    /// The least and the greatest depth of a needle.
    pub depth: [f64; 2],
}

impl Default for Needle {
    fn default() -> Self {
        Self {
            level: Level::Token,
            needles: 1,
            values: 1,
            queries: 1,
            digits: 4,
            depth: [0.0, 1.0],
        }
    }
}

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
const SENTENCE: [&str; 8] = [".", "?", "the", "number", "of", "is", "what", "and"];
const SUBJECTS: [&str; 32] = [
    "amber", "anvil", "basil", "cedar", "cobalt", "copper", "coral", "ember", "falcon", "flint",
    "garnet", "ginger", "harbor", "indigo", "ivory", "jasper", "kestrel", "linen", "magnet",
    "maple", "nickel", "onyx", "opal", "pepper", "quartz", "raven", "saffron", "silver", "thistle",
    "umber", "velvet", "willow",
];
const FILLER: [&str; 32] = [
    "river", "slow", "lamp", "stood", "near", "old", "wall", "rain", "fell", "over", "quiet",
    "field", "road", "went", "north", "past", "mill", "bird", "sang", "early", "snow", "lay",
    "deep", "under", "tree", "wind", "came", "from", "sea", "boat", "rest", "shore",
];

impl Knobs for Needle {
    const NAME: &'static str = "needle";

    fn build(self, _: u64) -> Result<Box<dyn Task>> {
        size(Self::NAME, "needles", self.needles, 1..=SUBJECTS.len())?;
        size(Self::NAME, "queries", self.queries, 1..=self.needles)?;
        size(Self::NAME, "values", self.values, 1..=256)?;
        size(Self::NAME, "digits", self.digits, 1..=256)?;
        let [low, high] = self.depth;
        let reason =
            format!("depth is [{low}, {high}]: give two shares from 0 to 1, the lower first");
        ensure(0.0 <= low && low <= high && high <= 1.0, Self::NAME, reason)?;
        Ok(Box::new(self))
    }
}

/// One word after the other, with the words that are asked for marked.
#[derive(Default)]
struct Text(Vec<(&'static str, bool)>);

impl Text {
    fn say(&mut self, words: &[&'static str]) {
        self.0.extend(words.iter().map(|&word| (word, false)));
    }
}

impl Needle {
    /// The tokens of a word.
    fn spell(&self, word: &str) -> Vec<usize> {
        match self.level {
            Level::Byte => word.bytes().chain([b' ']).map(usize::from).collect(),
            Level::Token => {
                let words = DIGITS
                    .iter()
                    .chain(&SENTENCE)
                    .chain(&SUBJECTS)
                    .chain(&FILLER);
                words
                    .enumerate()
                    .filter(|(_, w)| **w == word)
                    .map(|(i, _)| i)
                    .collect()
            }
        }
    }

    /// The tokens of a text, asking for each marked one. Of a word of bytes the first is asked for; of a digit that is
    /// all but its space.
    fn encode(&self, text: &Text) -> Example {
        let mut example = Example::default();
        for &(word, asked) in &text.0 {
            let tokens = self.spell(word);
            if let (true, Some(target)) = (asked, example.targets.last_mut()) {
                *target = tokens[0] as i64;
            }
            tokens.into_iter().for_each(|token| example.tell(token));
        }
        example
    }

    /// A number with a space between its digits.
    fn number(&self, rng: &mut Rng) -> Vec<&'static str> {
        (0..self.digits)
            .map(|_| DIGITS[below(rng, DIGITS.len())])
            .collect()
    }

    /// What is found: the sentence with all numbers of a word.
    fn sentence(subject: &'static str, numbers: &[Vec<&'static str>]) -> Text {
        let mut text = Text::default();
        text.say(&["the", "number", "of", subject, "is"]);
        for (i, number) in numbers.iter().enumerate() {
            if i > 0 {
                text.say(&["and"]);
            }
            text.say(number);
        }
        text.say(&["."]);
        text
    }

    /// The question with its answer, of which every digit is asked for.
    fn question(subject: &'static str, numbers: &[Vec<&'static str>]) -> Text {
        let mut text = Text::default();
        text.say(&["what", "is", "the", "number", "of", subject, "?"]);
        for (i, number) in numbers.iter().enumerate() {
            if i > 0 {
                text.say(&["and"]);
            }
            text.0.extend(number.iter().map(|&digit| (digit, true)));
        }
        text
    }

    /// Tokens of filler words, `count` exactly, and the places between two words.
    fn filler(&self, rng: &mut Rng, count: usize) -> (Vec<usize>, Vec<usize>) {
        let (mut tokens, mut borders) = (Vec::new(), vec![0]);
        while tokens.len() < count {
            let end = rng.unit() < 0.15;
            let word = if end {
                "."
            } else {
                FILLER[below(rng, FILLER.len())]
            };
            tokens.extend(self.spell(word));
            borders.push(tokens.len());
        }
        tokens.truncate(count);
        borders.retain(|&border| border <= count);
        (tokens, borders)
    }

    /// The most tokens that sentences and questions can take: those with the longest words.
    fn most_tokens(&self) -> usize {
        let longest = SUBJECTS
            .iter()
            .copied()
            .max_by_key(|s| s.len())
            .unwrap_or("");
        let numbers = vec![vec!["0"; self.digits]; self.values];
        let size = |text: Text| self.encode(&text).len();
        self.needles * size(Self::sentence(longest, &numbers))
            + self.queries * size(Self::question(longest, &numbers))
    }
}

impl Task for Needle {
    fn vocab(&self) -> usize {
        match self.level {
            Level::Byte => 256,
            Level::Token => DIGITS.len() + SENTENCE.len() + SUBJECTS.len() + FILLER.len(),
        }
    }

    fn classes(&self) -> usize {
        DIGITS.len()
    }

    fn min_length(&self) -> usize {
        self.most_tokens()
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let subjects = distinct(rng, SUBJECTS.len(), self.needles);
        let facts: Vec<(&str, Vec<Vec<&str>>)> = subjects
            .into_iter()
            .map(|i| {
                let numbers = (0..self.values).map(|_| self.number(rng)).collect();
                (SUBJECTS[i], numbers)
            })
            .collect();
        let sentences: Vec<Example> = facts
            .iter()
            .map(|(subject, numbers)| self.encode(&Self::sentence(subject, numbers)))
            .collect();
        let questions: Vec<Example> = distinct(rng, facts.len(), self.queries)
            .into_iter()
            .map(|i| self.encode(&Self::question(facts[i].0, &facts[i].1)))
            .collect();
        let used: usize = sentences.iter().chain(&questions).map(Example::len).sum();
        let (filler, borders) = self.filler(rng, length - used);
        let [low, high] = self.depth;
        let mut at: Vec<usize> = sentences
            .iter()
            .map(|_| {
                let wanted = (low + (high - low) * rng.unit()) * filler.len() as f64;
                let near = borders.partition_point(|&border| (border as f64) < wanted);
                borders[near.min(borders.len() - 1)]
            })
            .collect();
        at.sort_unstable();

        let mut ids: Vec<i64> = Vec::with_capacity(length);
        let mut from = 0;
        for (place, sentence) in at.into_iter().zip(sentences) {
            ids.extend(filler[from..place].iter().map(|&token| token as i64));
            ids.extend(sentence.ids);
            from = place;
        }
        ids.extend(filler[from..].iter().map(|&token| token as i64));
        let mut example = Example {
            targets: vec![NOTHING; ids.len()],
            ids,
        };
        for question in questions {
            example.ids.extend(question.ids);
            example.targets.extend(question.targets);
        }
        example
    }
}
