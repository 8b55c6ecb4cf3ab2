//! TOML values that know their file and line, so that every complaint about a recipe can point at it.

use std::fmt;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// Where a value is written; prints as `recipe.toml:12`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    file: Arc<str>,
    /// From 1; 0 where there are no lines.
    line: usize,
}

/// A value of a recipe.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Number(f64),
    Flag(bool),
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Place {
    /// An error about what is written here.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Recipe {
            place: self.to_string(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

impl Node {
    /// Parses a whole TOML file; the result is a table with its keys in the order of the file.
    pub(super) fn parse(text: &str, file: &str) -> Result<Self> {
        Self::read(Reader {
            text,
            file: file.into(),
            first_line: 1,
        })
    }

    /// Reads `train.lr=3e-4` as it stands on a command line: one key of a recipe, where a text needs no quotes.
    pub(super) fn parse_setting(setting: &str) -> Result<Self> {
        let read = |text: &str| {
            Self::read(Reader {
                text,
                file: format!("--set {setting}").into(),
                first_line: 0,
            })
        };
        let Some((key, value)) = setting.split_once('=') else {
            let reason = "there is no value: give key=value, such as train.steps=200";
            return Err(Error::Recipe {
                place: format!("--set {setting}"),
                reason: reason.into(),
            });
        };
        let quoted = toml::Value::String(value.trim().to_owned());
        read(setting).or_else(|_| read(&format!("{key} = {quoted}")))
    }

    fn read(reader: Reader<'_>) -> Result<Self> {
        let text = reader.text;
        match DeTable::parse(text) {
            Ok(table) => Ok(Self {
                place: reader.place(0),
                value: reader.table(table.get_ref())?,
            }),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                let message = error.message().replace('\n', ", ");
                Err(reader.place(at).error(format!("not valid TOML: {message}")))
            }
        }
    }

    /// The entries of a table; `None` for every other value.
    pub(super) fn entries(&self) -> Option<&[(String, Node)]> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// Puts `node` under a path of keys, making the tables on the way; a table is joined with one that is there.
    pub(super) fn set(&mut self, path: &[&str], node: Node) {
        let [key, rest @ ..] = path else {
            self.merge(node);
            return;
        };
        if self.entries().is_none() {
            self.value = Value::Table(Vec::new());
        }
        let Value::Table(entries) = &mut self.value else {
            return;
        };
        if !entries.iter().any(|(name, _)| name == key) {
            let empty = Node {
                place: node.place.clone(),
                value: Value::Table(Vec::new()),
            };
            entries.push(((*key).to_owned(), empty));
        }
        if let Some((_, inner)) = entries.iter_mut().find(|(name, _)| name == key) {
            inner.set(rest, node);
        }
    }

    /// Adds the keys of another table, whose values win; tables in tables are joined likewise.
    pub(super) fn merge(&mut self, other: Node) {
        match (&mut self.value, other.value) {
            (Value::Table(entries), Value::Table(others)) => {
                for (key, node) in others {
                    match entries.iter_mut().find(|(name, _)| *name == key) {
                        Some((_, mine)) => mine.merge(node),
                        None => entries.push((key, node)),
                    }
                }
            }
            (_, value) => {
                *self = Node {
                    place: other.place,
                    value,
                };
            }
        }
    }

    /// Takes a key out of a table.
    pub(super) fn remove(&mut self, key: &str) -> Option<Node> {
        let Value::Table(entries) = &mut self.value else {
            return None;
        };
        let at = entries.iter().position(|(name, _)| name == key)?;
        Some(entries.remove(at).1)
    }

    /// The same value as JSON; `None` for a number that JSON cannot hold.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        Some(match &self.value {
            Value::Text(text) => text.as_str().into(),
            Value::Integer(value) => (*value).into(),
            Value::Number(value) => serde_json::Number::from_f64(*value)?.into(),
            Value::Flag(value) => (*value).into(),
            Value::List(items) => items
                .iter()
                .map(Node::to_json)
                .collect::<Option<Vec<_>>>()?
                .into(),
            Value::Table(entries) => {
                let entry = |(key, node): &(String, Node)| Some((key.clone(), node.to_json()?));
                entries
                    .iter()
                    .map(entry)
                    .collect::<Option<serde_json::Map<_, _>>>()?
                    .into()
            }
        })
    }
}

/// As an error names a value: `the text "big"`, `12`, `a list`.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Text(text) => write!(f, "the text {text:?}"),
            Value::Integer(value) => write!(f, "{value}"),
            Value::Number(value) => write!(f, "{value:?}"),
            Value::Flag(value) => write!(f, "{value}"),
            Value::List(_) => write!(f, "a list"),
            Value::Table(_) => write!(f, "a table"),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    file: Arc<str>,
    first_line: usize,
}

impl Reader<'_> {
    fn place(&self, at: usize) -> Place {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        Place {
            file: self.file.clone(),
            line: self.first_line + before.iter().filter(|&&b| b == b'\n').count(),
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Value> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            Ok((
                name.clone().into_owned(),
                self.node(key.span().start, value.get_ref())?,
            ))
        };
        Ok(Value::Table(
            entries.into_iter().map(entry).collect::<Result<_>>()?,
        ))
    }

    fn node(&self, at: usize, value: &DeValue<'_>) -> Result<Node> {
        let place = self.place(at);
        let value = match value {
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Boolean(value) => Value::Flag(*value),
            DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix())
                .map(Value::Integer)
                .map_err(|_| place.error(format!("{value} is too large a number")))?,
            DeValue::Float(value) => value
                .as_str()
                .parse()
                .map(Value::Number)
                .map_err(|_| place.error(format!("{value} is no number")))?,
            DeValue::Datetime(value) => {
                return Err(place.error(format!("no key takes a date such as {value}")));
            }
            DeValue::Array(items) => {
                let item = |item: &toml::Spanned<DeValue<'_>>| {
                    self.node(item.span().start, item.get_ref())
                };
                Value::List(items.iter().map(item).collect::<Result<_>>()?)
            }
            DeValue::Table(table) => self.table(table)?,
        };
        Ok(Node { place, value })
    }
}
