//! The bytes behind a byte-level vocabulary.
//!
//! A tokenizer.json is text, so byte-level vocabularies spell each byte as a printable character: the bytes that print
//! in Latin-1 stand for themselves, the other 68 are numbered upwards from U+0100 in the order of the bytes (GPT-2's
//! convention, which every later byte-level BPE follows).

use std::collections::HashMap;

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper};

/// The character that spells byte `b`.
pub(super) fn spell(b: u8) -> char {
    if prints(b) {
        return char::from(b);
    }
    let rank = (0..b).filter(|&b| !prints(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Printable in Latin-1, the space and the soft hyphen excepted.
fn prints(b: u8) -> bool {
    matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The bytes of each token by id; ids without a token have none.
#[derive(Debug)]
pub(super) struct ByteTable {
    bytes: Vec<u8>,
    /// Token i is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
}

impl ByteTable {
    /// The table of a tokenizer whose decoder is byte level and nothing else; `None` for all others.
    pub(super) fn of(hf: &tokenizers::Tokenizer, vocab_size: usize) -> Option<Self> {
        if !matches!(hf.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return None;
        }
        let byte_of: HashMap<char, u8> = (0..=255).map(|b| (spell(b), b)).collect();
        let added = hf.get_added_tokens_decoder();
        let mut table = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(vocab_size),
        };
        for id in 0..vocab_size as u32 {
            if let Some(token) = added.get(&id) {
                table.bytes.extend_from_slice(token.content.as_bytes());
            } else if let Some(token) = hf.id_to_token(id) {
                match token
                    .chars()
                    .map(|c| byte_of.get(&c).copied())
                    .collect::<Option<Vec<u8>>>()
                {
                    Some(bytes) => table.bytes.extend(bytes),
                    None => table.bytes.extend_from_slice(token.as_bytes()),
                }
            }
            table.ends.push(table.bytes.len());
        }
        Some(table)
    }

    /// The bytes of token `id`, which must be below the vocabulary size.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..self.ends[id]]
    }

    /// True when token b is byte b for all 256 and there are no other ordinary tokens, hence no merges.
    pub(super) fn is_identity(&self, hf: &tokenizers::Tokenizer) -> bool {
        hf.get_vocab_size(false) == 256
            && self.ends.len() >= 256
            && (0..=255u8).all(|b| self.get(u32::from(b)) == [b])
            && rule(hf).is_some()
    }
}

/// True when a text cut between two lines has the same tokens as the whole: words never cross the cut, and neither do
/// added tokens.
pub(super) fn cuts_at_lines(hf: &tokenizers::Tokenizer) -> bool {
    let in_lines = |token: &AddedToken| !token.content.contains('\n');
    rule(hf).is_some_and(|rule| rule.use_regex)
        && hf.get_added_tokens_decoder().values().all(in_lines)
}

/// The rule of byte-level words where the text reaches the model unchanged: without normaliser, without a space put
/// before the first word.
fn rule(hf: &tokenizers::Tokenizer) -> Option<&ByteLevel> {
    match hf.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(rule))
            if hf.get_normalizer().is_none() && !rule.add_prefix_space =>
        {
            Some(rule)
        }
        _ => None,
    }
}
