//! Layer patterns: which mixer sits in which layer, as a short string.
//!
//! ```text
//! pattern = term ("+" term)*
//! term    = [count "*"] (name | "(" pattern ")")
//! name    = letter or "_", then letters, digits, "_" and "-"
//! ```
//!
//! `"3*gdn2 + attention"` is one *period* of four layers. A model of a given depth repeats the period from its first
//! layer on and stops at that depth, so depth 6 gives gdn2 gdn2 gdn2 attention gdn2 gdn2. A pattern only knows names;
//! whether a mixer of that name exists is the registry's business.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most layers that a pattern may describe, in one period or repeated to a depth.
pub const MAX_LAYERS: usize = 4096;

/// Parentheses deeper than this are refused, so that a hostile string cannot exhaust the stack.
const MAX_NESTING: usize = 32;

/// The mixers of one period of layers, first layer first; never empty.
///
/// ```
/// use weft_models::pattern::Pattern;
///
/// let pattern: Pattern = "2*(gdn2 + swa) + attention".parse()?;
/// assert_eq!(pattern.period(), ["gdn2", "swa", "gdn2", "swa", "attention"]);
/// assert_eq!(pattern.layers(7)?[5..], ["gdn2", "swa"]);
/// # Ok::<(), weft_models::pattern::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    period: Vec<String>,
}

/// Why a layer pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The string does not follow the grammar.
    #[error("layer pattern {text:?} is wrong at column {column}: {reason}")]
    Syntax {
        /// The whole pattern.
        text: String,
        /// Where, in characters from 1.
        column: usize,
        /// What was expected there.
        reason: String,
    },
    /// More layers than [`MAX_LAYERS`], or none.
    #[error("layer pattern {text:?} asks for {layers} layers: use between 1 and {MAX_LAYERS}")]
    Layers {
        /// The whole pattern.
        text: String,
        /// How many layers it asked for.
        layers: usize,
    },
}

impl Pattern {
    /// The mixers of one period, first layer first.
    pub fn period(&self) -> &[String] {
        &self.period
    }

    /// The mixers of all `depth` layers: the period repeated, the last repetition cut where the depth ends.
    ///
    /// # Errors
    /// When `depth` is 0 or above [`MAX_LAYERS`].
    pub fn layers(&self, depth: usize) -> Result<Vec<String>, PatternError> {
        if depth == 0 || depth > MAX_LAYERS {
            return Err(PatternError::Layers {
                text: self.to_string(),
                layers: depth,
            });
        }
        Ok(self.period.iter().cycle().take(depth).cloned().collect())
    }

    /// The distinct mixer names in the order of their first layer.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in &self.period {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let mut parser = Parser {
            text,
            chars: text.chars().collect(),
            at: 0,
        };
        let period = parser.pattern(0)?;
        match parser.peek() {
            None => Ok(Self { period }),
            Some(')') => Err(parser.error("this ')' closes nothing")),
            Some(_) => Err(parser.error("put '+' between two layers")),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

/// The shortest form without parentheses: runs of one mixer are counted.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.period.chunk_by(|a, b| a == b).enumerate() {
            let plus = if i == 0 { "" } else { " + " };
            match run {
                [name] => write!(f, "{plus}{name}")?,
                _ => write!(f, "{plus}{}*{}", run.len(), run[0])?,
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    chars: Vec<char>,
    at: usize,
}

impl Parser<'_> {
    fn pattern(&mut self, nesting: usize) -> Result<Vec<String>, PatternError> {
        let mut layers = self.term(nesting)?;
        while self.peek() == Some('+') {
            self.at += 1;
            layers.extend(self.term(nesting)?);
            self.check_length(layers.len())?;
        }
        Ok(layers)
    }

    fn term(&mut self, nesting: usize) -> Result<Vec<String>, PatternError> {
        let count = self.count()?;
        let atom = self.atom(nesting)?;
        self.check_length(atom.len().saturating_mul(count))?;
        Ok(atom
            .iter()
            .cycle()
            .take(atom.len() * count)
            .cloned()
            .collect())
    }

    /// `3*`, or 1 when no digit stands here.
    fn count(&mut self) -> Result<usize, PatternError> {
        if !self.peek().is_some_and(|c| c.is_ascii_digit()) {
            return Ok(1);
        }
        let start = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        let count = digits.parse().unwrap_or(usize::MAX);
        if count == 0 {
            self.at = start;
            return Err(self.error("a count must be at least 1"));
        }
        if self.peek() != Some('*') {
            return Err(self.error("put '*' between a count and its layer, as in 3*gdn2"));
        }
        self.at += 1;
        Ok(count)
    }

    fn atom(&mut self, nesting: usize) -> Result<Vec<String>, PatternError> {
        match self.peek() {
            Some('(') if nesting == MAX_NESTING => {
                Err(self.error("parentheses are nested too deeply"))
            }
            Some('(') => {
                self.at += 1;
                let layers = self.pattern(nesting + 1)?;
                if self.peek() != Some(')') {
                    return Err(self.error("a ')' or '+' is missing"));
                }
                self.at += 1;
                Ok(layers)
            }
            Some(c) if c.is_alphabetic() || c == '_' => {
                Ok(vec![self.take_while(|c| {
                    c.is_alphanumeric() || c == '_' || c == '-'
                })])
            }
            _ => Err(self.error("a mixer name, a count such as 3* or '(' must stand here")),
        }
    }

    /// The next character that is not white space.
    fn peek(&mut self) -> Option<char> {
        while self.chars.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
        self.chars.get(self.at).copied()
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let taken: String = self.chars[self.at..]
            .iter()
            .copied()
            .take_while(|&c| keep(c))
            .collect();
        self.at += taken.chars().count();
        taken
    }

    fn check_length(&self, layers: usize) -> Result<(), PatternError> {
        if layers <= MAX_LAYERS {
            return Ok(());
        }
        Err(PatternError::Layers {
            text: self.text.to_owned(),
            layers,
        })
    }

    fn error(&self, reason: &str) -> PatternError {
        PatternError::Syntax {
            text: self.text.to_owned(),
            column: self.at + 1,
            reason: reason.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn period(text: &str) -> Vec<String> {
        text.parse::<Pattern>().unwrap().period
    }

    #[test]
    fn reads_counts_sums_and_parentheses() {
        assert_eq!(period("attention"), ["attention"]);
        assert_eq!(
            period(" 3 * gdn2+attention "),
            ["gdn2", "gdn2", "gdn2", "attention"]
        );
        assert_eq!(
            period("2*(a + 2*(b + c))"),
            ["a", "b", "c", "b", "c", "a", "b", "c", "b", "c"]
        );
        assert_eq!(period("(((gated-deltanet_2)))"), ["gated-deltanet_2"]);
    }

    #[test]
    fn repeats_the_period_up_to_a_depth() {
        let pattern: Pattern = "3*gdn2 + attention".parse().unwrap();
        let gdn2 = "gdn2";
        assert_eq!(pattern.layers(2).unwrap(), [gdn2, gdn2]);
        assert_eq!(
            pattern.layers(6).unwrap(),
            [gdn2, gdn2, gdn2, "attention", gdn2, gdn2]
        );
        assert_eq!(pattern.names(), [gdn2, "attention"]);
        assert!(pattern.layers(0).is_err());
        assert!(pattern.layers(MAX_LAYERS + 1).is_err());
    }

    #[test]
    fn errors_point_at_the_column() {
        let cases = [
            ("", 1, "a mixer name"),
            ("3*gdn2 +", 9, "a mixer name"),
            ("gdn2 attention", 6, "'+' between"),
            ("3 gdn2", 3, "'*' between"),
            ("gdn2*3", 5, "'+' between"),
            ("0*gdn2", 1, "at least 1"),
            ("2*(a + b", 9, "')' or '+'"),
            ("a + b)", 6, "closes nothing"),
            ("a ++ b", 4, "a mixer name"),
            ("-3*a", 1, "a mixer name"),
        ];
        for (text, at, part) in cases {
            match text.parse::<Pattern>() {
                Err(PatternError::Syntax { column, reason, .. }) => {
                    assert_eq!(column, at, "{text:?}: {reason}");
                    assert!(reason.contains(part), "{text:?}: {reason}");
                }
                other => panic!("{text:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn absurd_sizes_are_refused_without_allocating_them() {
        for text in [
            "99999999999999999999999*a",
            "4097*a",
            "64*(64*(64*(64*(64*a))))",
            "4096*a + b",
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(
                matches!(error, PatternError::Layers { .. }),
                "{text}: {error}"
            );
        }
        let deep = format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(
            deep.parse::<Pattern>()
                .unwrap_err()
                .to_string()
                .contains("nested too deeply")
        );
    }

    #[test]
    fn serde_goes_through_the_string() {
        let pattern: Pattern = serde_json::from_str("\"2*a + b\"").unwrap();
        assert_eq!(serde_json::to_string(&pattern).unwrap(), "\"2*a + b\"");
        assert!(serde_json::from_str::<Pattern>("\"2*\"").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(period in prop::collection::vec("[a-c]", 1..12)) {
            let pattern = Pattern { period };
            prop_assert_eq!(pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        }

        #[test]
        fn any_text_gives_a_value_or_an_error(text in "[ a*+()0-9-]{0,24}") {
            let _ = text.parse::<Pattern>();
        }
    }
}
