//! Tokenizers: text to token ids and back.
//!
//! Two kinds can be made here, and both are stored as an ordinary `tokenizer.json`, so that other tools load them:
//!
//! - *byte level*: 256 tokens, the id of a token is its byte; special tokens follow from 256 on;
//! - *BPE*: merges learned from text over the same 256 byte tokens ([`train`](Tokenizer::train_bpe)), so that any
//!   text, seen or not, comes back unchanged.
//!
//! Any other `tokenizer.json` (WordPiece, Unigram, SentencePiece-style BPE) can be loaded and used.
//!
//! Ordinary text never turns into special tokens: [`Tokenizer::encode`] takes `<|endoftext|>` in a document for the
//! thirteen characters that it is. Prompts written with a chat template go through [`Tokenizer::encode_prompt`].

mod bytes;
mod file;
mod stream;
#[cfg(test)]
mod tests;
mod train;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::ByteTable;
pub use file::{MAX_FILE_BYTES, MAX_VOCAB};
pub use stream::DecodeStream;

/// The special token that ends a document, in the tokenizers made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Text is cut into pieces of about this many bytes for encoding and training: memory stays flat, cores share the work.
const PIECE_BYTES: usize = 64 << 10;

/// What [`Tokenizer::decode`] does with special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Leave them out.
    Skip,
    /// Write them as they are named, for example `<|endoftext|>`.
    Keep,
}

/// A tokenizer; a clone shares the vocabulary.
///
/// ```
/// use weft_models::tokenizer::{END_OF_TEXT, Specials, Tokenizer};
///
/// let tokenizer = Tokenizer::byte_level(&[END_OF_TEXT])?;
/// assert_eq!(tokenizer.vocab_size(), 257);
/// assert_eq!(tokenizer.encode("Hi")?, [72, 105]);
/// assert_eq!(tokenizer.decode(&[72, 105, 256], Specials::Skip)?, "Hi");
/// # Ok::<(), weft_models::tokenizer::TokenizerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Takes special tokens in a text for ordinary characters.
    hf: tokenizers::Tokenizer,
    /// The same tokenizer recognising special tokens; made when it is first asked for.
    prompt: OnceLock<tokenizers::Tokenizer>,
    /// The bytes of every token, for byte-level vocabularies.
    table: Option<ByteTable>,
    /// The id of byte b is b and there are no merges.
    identity: bool,
    /// Cutting a text between two lines leaves its tokens as they are.
    cuts_at_lines: bool,
    vocab_size: usize,
    /// Sorted by id.
    specials: Vec<(u32, String)>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// What can go wrong with a tokenizer; each prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or unreadable.
    #[error("cannot read the tokenizer {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the tokenizer {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no usable tokenizer.json, or it is too large or lies.
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {id} is outside the tokenizer's vocabulary of {vocab_size} tokens")]
    OutOfRange {
        /// The id.
        id: u32,
        /// One more than the highest id.
        vocab_size: usize,
    },
    /// A special token that cannot be one.
    #[error("special token {token:?} cannot be used: {reason}")]
    Special {
        /// The token's text.
        token: String,
        /// Why not.
        reason: &'static str,
    },
    /// A BPE vocabulary that does not hold the bytes and special tokens.
    #[error(
        "a BPE vocabulary of {vocab_size} is too small: {least} tokens are needed for all bytes and special tokens"
    )]
    TooSmall {
        /// The size asked for.
        vocab_size: usize,
        /// The least possible size.
        least: usize,
    },
    /// Encoding, decoding or training failed inside the tokenizer's own rules.
    #[error("the tokenizer cannot {action}: {reason}")]
    Rules {
        /// What was tried.
        action: &'static str,
        /// The tokenizer's reason.
        reason: String,
    },
}

impl Tokenizer {
    /// The byte-level tokenizer: ids 0..=255 are the bytes, `specials` get the ids from 256 on in their order.
    ///
    /// # Errors
    /// When a special token is empty or given twice.
    pub fn byte_level(specials: &[&str]) -> Result<Self, TokenizerError> {
        Ok(Self::wrap(train::byte_level(specials)?))
    }

    /// Learns a byte-level BPE of `vocab_size` tokens from `texts`; fewer when the texts hold no more repeated pairs.
    ///
    /// Ids: the 256 bytes, the merges in the order learned, then `specials`. The same texts give the same tokenizer.
    /// `progress` is told how many bytes of text were read so far; the merges are computed after the last of them.
    ///
    /// # Errors
    /// When `vocab_size` is below 256 + `specials.len()`, or a special token is empty or given twice.
    pub fn train_bpe<S: AsRef<str>>(
        texts: &[S],
        vocab_size: usize,
        specials: &[&str],
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Self, TokenizerError> {
        Ok(Self::wrap(train::bpe(
            texts, vocab_size, specials, progress,
        )?))
    }

    /// One more than the highest token id: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The token that begins a document, if the tokenizer names one.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The token that ends a document, if the tokenizer names one.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// Every special token with its id, by id.
    pub fn specials(&self) -> &[(u32, String)] {
        &self.0.specials
    }

    /// True when id b stands for byte b, as [`Tokenizer::byte_level`] makes it.
    pub fn is_byte_level(&self) -> bool {
        self.0.identity
    }

    /// The id of a token by its exact name in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.hf.token_to_id(token)
    }

    /// The tokens of a plain text; nothing is added and no special token is recognised.
    ///
    /// # Errors
    /// When the tokenizer's rules fail, which a byte-level one's never do.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let inner = &*self.0;
        if inner.identity {
            return Ok(text.bytes().map(u32::from).collect());
        }
        if !inner.cuts_at_lines || text.len() <= PIECE_BYTES {
            return encode(&inner.hf, text, false);
        }
        let pieces = train::pieces(text).collect();
        let encodings = contained(|| inner.hf.encode_batch_fast(pieces, false));
        let mut tokens = Vec::new();
        for encoding in encodings.map_err(rules("encode this text"))? {
            tokens.extend_from_slice(encoding.get_ids());
        }
        Ok(tokens)
    }

    /// The tokens of a prompt: special tokens written in it are recognised, and those that the tokenizer itself adds
    /// (such as one at the beginning) are added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let hf = self.0.prompt.get_or_init(|| {
            let mut hf = self.0.hf.clone();
            hf.set_encode_special_tokens(false);
            hf
        });
        encode(hf, text, true)
    }

    /// The text of some tokens; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], specials: Specials) -> Result<String, TokenizerError> {
        if self.0.table.is_some() {
            return Ok(String::from_utf8_lossy(&self.decode_bytes(ids, specials)?).into_owned());
        }
        self.check(ids)?;
        contained(|| self.0.hf.decode(ids, specials == Specials::Skip))
            .map_err(rules("decode these tokens"))
    }

    /// The bytes of some tokens, exactly; for vocabularies that are not byte level those of [`Tokenizer::decode`].
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32], specials: Specials) -> Result<Vec<u8>, TokenizerError> {
        let Some(table) = &self.0.table else {
            return Ok(self.decode(ids, specials)?.into_bytes());
        };
        self.check(ids)?;
        let skipped = |id: &u32| specials == Specials::Skip && self.is_special(*id);
        let kept = ids.iter().filter(|id| !skipped(id));
        Ok(kept.flat_map(|&id| table.get(id)).copied().collect())
    }

    /// True for a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.0
            .specials
            .binary_search_by_key(&id, |(id, _)| *id)
            .is_ok()
    }

    /// A decoder for tokens that arrive one at a time.
    pub fn stream(&self, specials: Specials) -> DecodeStream {
        DecodeStream::new(self.clone(), specials)
    }

    fn check(&self, ids: &[u32]) -> Result<(), TokenizerError> {
        let vocab_size = self.vocab_size();
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(TokenizerError::OutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }
}

fn encode(
    hf: &tokenizers::Tokenizer,
    text: &str,
    add_specials: bool,
) -> Result<Vec<u32>, TokenizerError> {
    let encoding = contained(|| hf.encode_fast(text, add_specials));
    Ok(encoding
        .map_err(rules("encode this text"))?
        .get_ids()
        .to_vec())
}

/// Runs code of `tokenizers` over a vocabulary or rules that came from a file: it panics on some that contradict
/// themselves, which here is an error like any other.
fn contained<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its rules contradict themselves".to_owned()),
    }
}

fn rules<E: ToString>(action: &'static str) -> impl Fn(E) -> TokenizerError {
    move |reason| TokenizerError::Rules {
        action,
        reason: reason.to_string(),
    }
}
