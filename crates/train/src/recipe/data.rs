//! The `[data]` table.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::section::Section;
use crate::error::Result;

/// What is learned from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataRecipe {
    /// Text or token shards.
    #[serde(flatten)]
    pub source: DataSource,
    /// The tokenizer. Default "byte" for text; shards need one only to measure bits per byte and to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerRecipe>,
    /// The part of the data that is never trained on. Default 0.1; 0 means no evaluation.
    pub held_out: f64,
    /// Tokens in a sequence.
    pub sequence: usize,
}

/// Where the tokens come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DataSource {
    /// Files and folders of text.
    Text(Vec<PathBuf>),
    /// `.bin` and `.npy` token shards, or folders of them.
    Shards(Vec<PathBuf>),
}

/// Which tokenizer is used; one text in a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerRecipe {
    /// `"byte"`: a token is a byte.
    Byte,
    /// `"bpe:4096"`: learned from the training text, with this many tokens.
    Bpe(usize),
    /// The path of a tokenizer.json or of a folder with one.
    Path(PathBuf),
}

impl DataRecipe {
    pub(super) fn read(mut table: Section<'_>) -> Result<Self> {
        let paths = |texts: Vec<String>| texts.into_iter().map(PathBuf::from).collect();
        let source = match (table.texts("text")?, table.texts("shards")?) {
            (Some(text), None) => DataSource::Text(paths(text)),
            (None, Some(shards)) => DataSource::Shards(paths(shards)),
            (None, None) => return Err(table.missing("text")),
            (Some(_), Some(_)) => {
                return Err(table.error(
                    "shards",
                    "cannot stand beside `data.text`: give one of them",
                ));
            }
        };
        let tokenizer = match table.text("tokenizer")? {
            Some(text) => Some(
                TokenizerRecipe::read(text).map_err(|reason| table.error("tokenizer", &reason))?,
            ),
            None => matches!(source, DataSource::Text(_)).then_some(TokenizerRecipe::Byte),
        };
        if let (DataSource::Shards(_), Some(TokenizerRecipe::Bpe(_))) = (&source, &tokenizer) {
            return Err(table.error(
                "tokenizer",
                "cannot be learned from shards: name the tokenizer.json they were made with",
            ));
        }
        let recipe = Self {
            source,
            tokenizer,
            held_out: table.number("held_out", 0.0..=0.5)?.unwrap_or(0.1),
            sequence: table.size("sequence", 1..=1 << 24)?.unwrap_or(256),
        };
        table.finish()?;
        Ok(recipe)
    }
}

impl TokenizerRecipe {
    fn read(text: &str) -> Result<Self, String> {
        if text == "byte" {
            return Ok(Self::Byte);
        }
        if let Some(size) = text.strip_prefix("bpe:") {
            return match size.trim().parse() {
                Ok(size @ 257..=0x40_0000) => Ok(Self::Bpe(size)),
                _ => Err(format!(
                    "asks for {size:?} BPE tokens, possible are 257 to 4194304"
                )),
            };
        }
        if !text.contains(['/', '\\', '.']) {
            return Err(format!(
                "must be \"byte\", \"bpe:4096\" or a path such as \"./{text}\", not {text:?}"
            ));
        }
        Ok(Self::Path(text.into()))
    }
}

impl Serialize for TokenizerRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Byte => serializer.serialize_str("byte"),
            Self::Bpe(size) => serializer.collect_str(&format_args!("bpe:{size}")),
            Self::Path(path) => serializer.collect_str(&path.display()),
        }
    }
}
