//! Decoding a stream of tokens: a character may be spread over several tokens, and is shown when it is complete.
//!
//! The pieces and the rest from [`DecodeStream::finish`] joined are [`Tokenizer::decode`] of all the tokens. For
//! vocabularies that are not byte level, whose decoders look at the neighbours of a token, a window of the last tokens
//! is decoded with and without the newest, and what was added is shown.

use super::{Specials, Tokenizer, TokenizerError};

/// A character has at most four bytes, so after four tokens without one the text is broken and is shown as it is.
const MAX_PENDING: usize = 4;

/// Turns tokens that arrive one at a time into text; made by [`Tokenizer::stream`].
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    specials: Specials,
    /// Byte level: the beginning of a character that is not complete yet.
    bytes: Vec<u8>,
    /// Otherwise: the tokens last shown, and behind `shown` those not shown yet.
    window: Vec<u32>,
    shown: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, specials: Specials) -> Self {
        Self {
            tokenizer,
            specials,
            bytes: Vec::new(),
            window: Vec::new(),
            shown: 0,
        }
    }

    /// Takes the next token; gives the text that it completes, `None` while a character is unfinished.
    ///
    /// # Errors
    /// When the id is outside the vocabulary; the stream is then as it was.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        let text = if self.tokenizer.0.table.is_some() {
            let bytes = self.tokenizer.decode_bytes(&[id], self.specials)?;
            self.bytes.extend(bytes);
            take_complete(&mut self.bytes)
        } else {
            self.push_window(id)?
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// The text of an unfinished character (as U+FFFD), if any; the stream then starts afresh.
    ///
    /// # Errors
    /// When the tokenizer's rules fail, which a byte-level one's never do.
    pub fn finish(&mut self) -> Result<Option<String>, TokenizerError> {
        let text = if self.tokenizer.0.table.is_some() {
            String::from_utf8_lossy(&self.bytes).into_owned()
        } else {
            self.unseen(&self.window)?
        };
        self.bytes.clear();
        self.window.clear();
        self.shown = 0;
        Ok((!text.is_empty()).then_some(text))
    }

    fn push_window(&mut self, id: u32) -> Result<String, TokenizerError> {
        let mut window = self.window.clone();
        window.push(id);
        let text = self.unseen(&window)?;
        let pending = window.len() - self.shown;
        self.window = window;
        if text.is_empty() || (text.ends_with(char::REPLACEMENT_CHARACTER) && pending < MAX_PENDING)
        {
            return Ok(String::new());
        }
        self.window.drain(..self.shown);
        self.shown = self.window.len();
        Ok(text)
    }

    /// What the tokens behind `shown` add to the text of those before.
    fn unseen(&self, window: &[u32]) -> Result<String, TokenizerError> {
        let before = self
            .tokenizer
            .decode(&window[..self.shown], self.specials)?;
        let all = self.tokenizer.decode(window, self.specials)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }
}

/// Takes all text out of `bytes` but an unfinished character at its end; what can never be one becomes U+FFFD.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        let (valid, bad) = match std::str::from_utf8(bytes) {
            Ok(all) => {
                text.push_str(all);
                bytes.clear();
                return text;
            }
            Err(error) => (error.valid_up_to(), error.error_len()),
        };
        text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
        bytes.drain(..valid + bad.unwrap_or(0));
        if bad.is_none() {
            return text;
        }
        text.push(char::REPLACEMENT_CHARACTER);
    }
}
