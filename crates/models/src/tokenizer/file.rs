//! Tokenizer files: `tokenizer.json`, and `tokenizer_config.json` beside it for the names of the bos and eos tokens.
//!
//! Files are not trusted: they are read up to a size, ids above a bound are refused (an embedding has a row for each),
//! and truncation and padding rules stored in them are dropped, since no text may be cut silently.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::bytes::{ByteTable, cuts_at_lines};
use super::{Inner, Tokenizer, TokenizerError, contained};

/// A tokenizer.json above this size is refused (the largest known ones have about 35 MB).
pub const MAX_FILE_BYTES: u64 = 128 << 20;

/// Token ids from here on are refused.
pub const MAX_VOCAB: usize = 1 << 22;

const FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// Names that mark the end and the beginning of a document where no tokenizer_config.json says so; first match wins.
const EOS_NAMES: [&str; 7] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|im_end|>",
    "<｜end▁of▁sentence｜>",
];
const BOS_NAMES: [&str; 5] = [
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<s>",
    "<bos>",
    "<｜begin▁of▁sentence｜>",
];

impl Tokenizer {
    /// Loads a `tokenizer.json`, or the one in the folder `path`.
    ///
    /// # Errors
    /// When the file is missing, larger than [`MAX_FILE_BYTES`], no tokenizer, or has ids from [`MAX_VOCAB`] on.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let file = if path.is_dir() {
            path.join(FILE)
        } else {
            path.to_owned()
        };
        let invalid = |reason: String| TokenizerError::Invalid {
            path: file.clone(),
            reason,
        };
        let bytes = read_capped(&file)?;
        let hf = parse(&bytes).map_err(invalid)?;
        let highest = highest_id(&hf);
        if highest >= MAX_VOCAB {
            return Err(invalid(format!(
                "it has the token id {highest}, the highest allowed is {}",
                MAX_VOCAB - 1
            )));
        }
        let mut inner = inner(hf);
        let config_file = file.with_file_name(CONFIG_FILE);
        if config_file.is_file() {
            let config: Value =
                serde_json::from_slice(&read_capped(&config_file)?).map_err(|error| {
                    TokenizerError::Invalid {
                        path: config_file,
                        reason: error.to_string(),
                    }
                })?;
            inner.bos = named(&inner.hf, &config, "bos_token").or(inner.bos);
            inner.eos = named(&inner.hf, &config, "eos_token").or(inner.eos);
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into an existing folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), TokenizerError> {
        let name = |id: Option<u32>| id.and_then(|id| self.0.hf.id_to_token(id));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": name(self.bos()),
            "eos_token": name(self.eos()),
            "clean_up_tokenization_spaces": false,
        });
        let mut hf = self.0.hf.clone();
        hf.set_encode_special_tokens(false);
        for (file, text) in [
            (FILE, hf.to_string(true)),
            (CONFIG_FILE, Ok(format!("{config:#}\n"))),
        ] {
            let path = folder.as_ref().join(file);
            text.and_then(|text| Ok(std::fs::write(&path, text)?))
                .map_err(|source| TokenizerError::Write {
                    path,
                    source: std::io::Error::other(source),
                })?;
        }
        Ok(())
    }

    pub(super) fn wrap(hf: tokenizers::Tokenizer) -> Self {
        Self(Arc::new(inner(hf)))
    }
}

/// Reads a tokenizer.json. The syntax is checked first, since the parser of `tokenizers` panics where it is wrong.
fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<IgnoredAny>(json).map_err(|error| error.to_string())?;
    contained(|| tokenizers::Tokenizer::from_bytes(json))
}

fn inner(mut hf: tokenizers::Tokenizer) -> Inner {
    let vocab_size = highest_id(&hf) + 1;
    hf.set_encode_special_tokens(true);
    hf.with_padding(None);
    // Taking the rule away cannot fail; only a new rule is checked.
    let _ = hf.with_truncation(None);
    let mut specials: Vec<(u32, String)> = hf
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| (id, token.content))
        .collect();
    specials.sort_unstable();
    let known = |names: &[&str]| names.iter().find_map(|name| hf.token_to_id(name));
    let (bos, eos) = (known(&BOS_NAMES), known(&EOS_NAMES));
    let table = ByteTable::of(&hf, vocab_size);
    let identity = table.as_ref().is_some_and(|table| table.is_identity(&hf));
    let cuts_at_lines = cuts_at_lines(&hf);
    Inner {
        hf,
        prompt: OnceLock::new(),
        table,
        identity,
        cuts_at_lines,
        vocab_size,
        specials,
        bos,
        eos,
    }
}

fn highest_id(hf: &tokenizers::Tokenizer) -> usize {
    hf.get_vocab(true).into_values().max().unwrap_or(0) as usize
}

/// The id of the token that a tokenizer_config.json names under `key`, as a string or as `{"content": string}`.
fn named(hf: &tokenizers::Tokenizer, config: &Value, key: &str) -> Option<u32> {
    let token = config.get(key)?;
    let name = token.as_str().or_else(|| token.get("content")?.as_str())?;
    hf.token_to_id(name)
}

fn read_capped(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read(path).map_err(|source| TokenizerError::Read {
        path: path.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TokenizerError::Invalid {
            path: PathBuf::from(path),
            reason: format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20),
        });
    }
    Ok(bytes)
}
