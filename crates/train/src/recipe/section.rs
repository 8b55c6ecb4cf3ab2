//! Reads one table of a recipe strictly: every key is asked for by name, type and range, and whatever was not asked
//! for is refused with the nearest key that was.

use std::ops::RangeInclusive;

use super::node::{Node, Place, Value};
use crate::error::{Error, Result};

/// A table while it is read.
pub(super) struct Section<'a> {
    /// Its name with a dot behind, as `model.`; empty for the whole file.
    prefix: String,
    place: Place,
    entries: &'a [(String, Node)],
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            prefix: String::new(),
            place: node.place.clone(),
            entries: node.entries().unwrap_or_default(),
            asked: Vec::new(),
        }
    }

    /// The table under `key`; an absent one is empty.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Section<'a>> {
        let (place, entries) = match self.get(key) {
            None => match self.misspelt(key) {
                Some(error) => return Err(error),
                None => (self.place.clone(), [].as_slice()),
            },
            Some(node) => match node.entries() {
                Some(entries) => (node.place.clone(), entries),
                None => return Err(self.expected(key, node, "a table")),
            },
        };
        Ok(Section {
            prefix: format!("{}{key}.", self.prefix),
            place,
            entries,
            asked: Vec::new(),
        })
    }

    /// The value under `key` as it is.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        self.read(key, "a text", |node| match &node.value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.read(key, "true or false", |node| match node.value {
            Value::Flag(value) => Some(value),
            _ => None,
        })
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |node| match node.value {
            Value::Integer(value) => u64::try_from(value)
                .ok()
                .filter(|value| range.contains(value)),
            _ => None,
        })
    }

    /// As [`Section::integer`], for sizes.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<usize>> {
        Ok(self.integer(key, range)?.map(|value| value as usize))
    }

    /// A number, written with or without a fraction.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>> {
        let expected = format!("a number from {:?} to {:?}", range.start(), range.end());
        self.read(key, &expected, |node| {
            number(node).filter(|value| range.contains(value))
        })
    }

    /// A list of whole numbers.
    pub(super) fn sizes(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<Vec<usize>>> {
        let (low, high) = (range.start(), range.end());
        let expected = format!("a list of whole numbers from {low} to {high}");
        self.read(key, &expected, |node| match &node.value {
            Value::List(items) => items
                .iter()
                .map(|item| match item.value {
                    Value::Integer(value) => u64::try_from(value)
                        .ok()
                        .filter(|value| range.contains(value))
                        .map(|value| value as usize),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// A list of exactly two numbers.
    pub(super) fn pair(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<[f64; 2]>> {
        let expected = format!("two numbers from {:?} to {:?}", range.start(), range.end());
        self.read(key, &expected, |node| match &node.value {
            Value::List(items) => {
                let numbers: Option<Vec<f64>> = items.iter().map(number).collect();
                let pair: [f64; 2] = numbers?.try_into().ok()?;
                pair.iter()
                    .all(|value| range.contains(value))
                    .then_some(pair)
            }
            _ => None,
        })
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<Option<Vec<String>>> {
        self.read(key, "a text or a list of texts", |node| match &node.value {
            Value::Text(text) => Some(vec![text.clone()]),
            Value::List(items) if !items.is_empty() => items
                .iter()
                .map(|item| match &item.value {
                    Value::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// One of some names, and what it stands for.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>> {
        let names: Vec<String> = choices
            .iter()
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        self.read(
            key,
            &format!("one of {}", names.join(", ")),
            |node| match &node.value {
                Value::Text(text) => choices
                    .iter()
                    .find(|(name, _)| name == text)
                    .map(|&(_, value)| value),
                _ => None,
            },
        )
    }

    /// Takes every key that nobody asked for: those in `known` as JSON, all others are refused. The table itself comes
    /// back for complaints.
    pub(super) fn rest(
        self,
        known: &[&str],
    ) -> Result<(serde_json::Map<String, serde_json::Value>, Self)> {
        let mut map = serde_json::Map::new();
        for (name, node) in self.entries {
            if self.asked.contains(&name.as_str()) {
                continue;
            }
            if !known.contains(&name.as_str()) {
                let all: Vec<&str> = self.asked.iter().chain(known).copied().collect();
                return Err(self.unknown(name, node, &all));
            }
            let value = node
                .to_json()
                .ok_or_else(|| self.expected(name, node, "a finite number"))?;
            map.insert(name.clone(), value);
        }
        Ok((map, self))
    }

    /// Refuses keys that nobody asked for; must be called when all others are read.
    pub(super) fn finish(self) -> Result<()> {
        let unknown = self
            .entries
            .iter()
            .find(|(name, _)| !self.asked.contains(&name.as_str()));
        match unknown {
            Some((name, node)) => Err(self.unknown(name, node, &self.asked)),
            None => Ok(()),
        }
    }

    /// The error for a key that must be there.
    pub(super) fn missing(&self, key: &'static str) -> Error {
        let missing = || {
            self.place
                .error(format!("the key `{}{key}` is missing", self.prefix))
        };
        self.misspelt(key).unwrap_or_else(missing)
    }

    /// The error for a key that looks like `key`, which is not there.
    pub(super) fn misspelt(&self, key: &'static str) -> Option<Error> {
        let close = self
            .entries
            .iter()
            .find(|(name, _)| nearest(name, &[key]).is_some());
        close.map(|(name, node)| self.unknown(name, node, &[key]))
    }

    fn unknown(&self, name: &str, node: &Node, known: &[&str]) -> Error {
        let hint = match nearest(name, known) {
            Some(known) => format!("did you mean `{}{known}`?", self.prefix),
            None => format!("known here are {}", known.join(", ")),
        };
        node.place
            .error(format!("unknown key `{}{name}`, {hint}", self.prefix))
    }

    /// An error about the value of a key, or about the table when the key is not there.
    pub(super) fn error(&self, key: &str, reason: &str) -> Error {
        self.wrong(key, format!("`{}{key}` {reason}", self.prefix))
    }

    /// As [`Section::error`], for a reason that names the key itself.
    pub(super) fn wrong(&self, key: &str, reason: String) -> Error {
        let node = self.entries.iter().find(|(name, _)| name == key);
        node.map_or(&self.place, |(_, node)| &node.place)
            .error(reason)
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Node) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(node) => match read(node) {
                Some(value) => Ok(Some(value)),
                None => Err(self.expected(key, node, expected)),
            },
        }
    }

    fn expected(&self, key: &str, node: &Node, expected: &str) -> Error {
        node.place.error(format!(
            "`{}{key}` must be {expected}, not {node}",
            self.prefix
        ))
    }
}

fn number(node: &Node) -> Option<f64> {
    match node.value {
        Value::Number(value) => Some(value),
        Value::Integer(value) => Some(value as f64),
        _ => None,
    }
}

/// The known name that a misspelt one is close to.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |known: &&str| strsim::damerau_levenshtein(name, known);
    let close = known.iter().copied().min_by_key(|known| distance(known))?;
    (distance(&close) <= 1.max(name.len().max(close.len()) / 3)).then_some(close)
}
