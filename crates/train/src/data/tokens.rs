//! A stream of token ids, in memory or in a memory-mapped file.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{npy, shard};
use crate::error::{Error, Result};

/// One stretch of tokens; windows never reach from one stream into another.
#[derive(Debug)]
pub struct TokenStream {
    /// The file, or what the tokens were made from.
    name: PathBuf,
    store: Store,
    /// The vocabulary size that the file claims.
    vocab: Option<u64>,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<u32>),
    Mapped {
        bytes: Mmap,
        start: usize,
        width: Width,
        count: usize,
    },
}

/// How a token is stored in a file; always little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    U16,
    U32,
    I32,
}

impl Width {
    pub(super) fn bytes(self) -> usize {
        match self {
            Width::U16 => 2,
            Width::U32 | Width::I32 => 4,
        }
    }
}

impl TokenStream {
    /// Tokens in memory; `name` is what errors call them.
    pub fn from_vec(name: impl Into<PathBuf>, tokens: Vec<u32>) -> Self {
        Self {
            name: name.into(),
            store: Store::Memory(tokens),
            vocab: None,
        }
    }

    /// Maps a shard: `.bin` as [`ShardWriter`](super::ShardWriter) makes it, or a one-dimensional `.npy` of u16, u32
    /// or i32. Nothing is read but the header; the tokens are checked as they are used.
    ///
    /// The file must not be cut while it is mapped (the system would end the process).
    ///
    /// # Errors
    /// When the file is missing, of another format, or its header and length disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = Error::io("read", path);
        let file = File::open(path).map_err(&failed)?;
        if file.metadata().map_err(&failed)?.len() == 0 {
            return Err(Error::content(path, "the file is empty"));
        }
        // SAFETY: the map is read only. Its bytes are read as plain integers that may have any value, so a change by
        // another process gives other tokens, which are checked against the vocabulary at every use.
        let bytes = unsafe { Mmap::map(&file) }.map_err(&failed)?;
        let (start, width, count, vocab) = if bytes.starts_with(shard::MAGIC) {
            shard::header(&bytes)
        } else if bytes.starts_with(npy::MAGIC) {
            npy::header(&bytes).map(|(start, width, count)| (start, width, count, None))
        } else {
            Err("neither a token shard (WEFTTOKS) nor a .npy file".to_owned())
        }
        .map_err(|reason| Error::content(path, reason))?;
        let held = bytes.len() - start;
        if count.checked_mul(width.bytes()) != Some(held) {
            let reason = format!(
                "its header claims {count} tokens of {} bytes, but {held} bytes follow",
                width.bytes()
            );
            return Err(Error::content(path, reason));
        }
        Ok(Self {
            name: path.to_owned(),
            store: Store::Mapped {
                bytes,
                start,
                width,
                count,
            },
            vocab,
        })
    }

    /// The file, or what the tokens were made from.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Memory(tokens) => tokens.len(),
            Store::Mapped { count, .. } => *count,
        }
    }

    /// True when there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of the vocabulary that the tokens were made with, where the file says it.
    pub fn vocab(&self) -> Option<u64> {
        self.vocab
    }

    /// Appends the `count` tokens from `start` on to `out`.
    ///
    /// # Errors
    /// Naming the file and the place of a token outside `0..vocab`, or a range beyond the end.
    pub fn read(&self, start: usize, count: usize, vocab: usize, out: &mut Vec<i64>) -> Result<()> {
        let end = start.checked_add(count).filter(|&end| end <= self.len());
        let Some(end) = end else {
            let reason = format!(
                "it has {} tokens, {count} from {start} on were asked for",
                self.len()
            );
            return Err(Error::content(&self.name, reason));
        };
        let first = out.len();
        match &self.store {
            Store::Memory(tokens) => out.extend(tokens[start..end].iter().map(|&id| i64::from(id))),
            Store::Mapped {
                bytes,
                start: offset,
                width,
                ..
            } => {
                let bytes = &bytes[offset + start * width.bytes()..offset + end * width.bytes()];
                widen(bytes, *width, out);
            }
        }
        match out[first..]
            .iter()
            .position(|&id| id < 0 || id >= vocab as i64)
        {
            None => Ok(()),
            Some(bad) => Err(self.out_of_range(out[first + bad], start + bad, vocab)),
        }
    }

    fn out_of_range(&self, id: i64, index: usize, vocab: usize) -> Error {
        let place = match &self.store {
            Store::Memory(_) => String::new(),
            Store::Mapped { start, width, .. } => {
                format!(" (byte {})", start + index * width.bytes())
            }
        };
        let reason = format!("token {index}{place} is {id}, outside the vocabulary of {vocab}");
        Error::content(&self.name, reason)
    }
}

fn widen(bytes: &[u8], width: Width, out: &mut Vec<i64>) {
    let (pairs, _) = bytes.as_chunks::<2>();
    let (quads, _) = bytes.as_chunks::<4>();
    match width {
        Width::U16 => out.extend(pairs.iter().map(|&b| i64::from(u16::from_le_bytes(b)))),
        Width::U32 => out.extend(quads.iter().map(|&b| i64::from(u32::from_le_bytes(b)))),
        Width::I32 => out.extend(quads.iter().map(|&b| i64::from(i32::from_le_bytes(b)))),
    }
}
