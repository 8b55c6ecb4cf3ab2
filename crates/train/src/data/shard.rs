//! Token shards: our `.bin` files.
//!
//! ```text
//! byte  0  8 bytes  "WEFTTOKS"
//! byte  8  u32      version, 1
//! byte 12  u32      bytes per token, 2 or 4 (unsigned)
//! byte 16  u64      size of the vocabulary
//! byte 24  u64      number of tokens
//! byte 32  tokens, little endian like all numbers here, to the end of the file
//! ```

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::tokens::Width;
use crate::error::{Error, Result};
use crate::files::AtomicFile;

pub(super) const MAGIC: &[u8; 8] = b"WEFTTOKS";
const VERSION: u32 = 1;
const HEADER: usize = 32;

/// Where the tokens start, their width, their count and the vocabulary; or what is wrong, as the end of a sentence.
pub(super) fn header(file: &[u8]) -> Result<(usize, Width, usize, Option<u64>), String> {
    let Some(header) = file.first_chunk::<HEADER>() else {
        return Err("the header is cut off".to_owned());
    };
    let (words, _) = header.as_chunks::<4>();
    let (longs, _) = header.as_chunks::<8>();
    let version = u32::from_le_bytes(words[2]);
    if version != VERSION {
        return Err(format!(
            "shard version {version} is not known, expected {VERSION}"
        ));
    }
    let width = match u32::from_le_bytes(words[3]) {
        2 => Width::U16,
        4 => Width::U32,
        other => {
            return Err(format!(
                "its header claims {other} bytes a token, expected 2 or 4"
            ));
        }
    };
    let count = u64::from_le_bytes(longs[3]);
    let count = usize::try_from(count).map_err(|_| format!("its header claims {count} tokens"))?;
    Ok((HEADER, width, count, Some(u64::from_le_bytes(longs[2]))))
}

/// Writes one shard; it appears under its name when it is [finished](ShardWriter::finish).
///
/// ```
/// use weft_train::data::{ShardWriter, TokenStream};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("part-0.bin");
/// let mut shard = ShardWriter::create(&path, 50_257)?;
/// shard.write(&[1, 2, 50_256])?;
/// shard.finish()?;
/// assert_eq!(TokenStream::open(&path)?.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ShardWriter {
    file: AtomicFile,
    vocab: u64,
    count: u64,
}

impl ShardWriter {
    /// Begins a shard of tokens below `vocab`; a token takes 2 bytes when 65,536 suffice, else 4.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written.
    pub fn create(path: impl AsRef<Path>, vocab: u64) -> Result<Self> {
        let path = path.as_ref();
        let mut shard = Self {
            file: AtomicFile::create(path).map_err(Error::io("write", path))?,
            vocab,
            count: 0,
        };
        shard.put(&shard.header())?;
        Ok(shard)
    }

    /// How many tokens were written so far.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// When a token is outside the vocabulary (nothing is then written), or the disk is full or fails.
    pub fn write(&mut self, tokens: &[u32]) -> Result<()> {
        if let Some(bad) = tokens.iter().position(|&id| u64::from(id) >= self.vocab) {
            let (index, id, vocab) = (self.count + bad as u64, tokens[bad], self.vocab);
            let reason = format!("token {index} is {id}, outside the vocabulary of {vocab}");
            return Err(Error::content(self.file.path(), reason));
        }
        let bytes: Vec<u8> = match self.width() {
            2 => tokens
                .iter()
                .flat_map(|&id| (id as u16).to_le_bytes())
                .collect(),
            _ => tokens.iter().flat_map(|id| id.to_le_bytes()).collect(),
        };
        self.put(&bytes)?;
        self.count += tokens.len() as u64;
        Ok(())
    }

    /// Completes the shard and gives it its name.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn finish(mut self) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(Error::io("write", self.file.path()))?;
        self.put(&self.header())?;
        let path = self.file.path().to_owned();
        self.file.commit().map_err(Error::io("write", &path))
    }

    fn width(&self) -> u32 {
        if self.vocab <= 1 << 16 { 2 } else { 4 }
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&self.width().to_le_bytes());
        header[16..24].copy_from_slice(&self.vocab.to_le_bytes());
        header[24..].copy_from_slice(&self.count.to_le_bytes());
        header
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(Error::io("write", self.file.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TokenStream;

    fn write(path: &Path, vocab: u64, tokens: &[u32]) {
        let mut shard = ShardWriter::create(path, vocab).unwrap();
        for part in tokens.chunks(3) {
            shard.write(part).unwrap();
        }
        assert_eq!(shard.len(), tokens.len() as u64);
        shard.finish().unwrap();
    }

    fn read(stream: &TokenStream, start: usize, count: usize, vocab: usize) -> Result<Vec<i64>> {
        let mut out = Vec::new();
        stream.read(start, count, vocab, &mut out).map(|()| out)
    }

    #[test]
    fn tokens_come_back_in_both_widths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        for (vocab, high, bytes) in [(65_536, 65_535, 2), (65_537, 65_536, 4)] {
            let tokens = [7, 0, high, 1, 2, 3, 4];
            write(&path, vocab, &tokens);
            assert_eq!(path.metadata().unwrap().len(), 32 + 7 * bytes);
            let stream = TokenStream::open(&path).unwrap();
            assert_eq!((stream.len(), stream.vocab()), (7, Some(vocab)));
            assert_eq!(read(&stream, 0, 7, 1 << 17).unwrap(), tokens.map(i64::from));
            assert_eq!(read(&stream, 2, 2, 1 << 17).unwrap(), [i64::from(high), 1]);
            assert!(read(&stream, 5, 3, 1 << 17).is_err());
            assert!(read(&stream, usize::MAX, 2, 1 << 17).is_err());
        }
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_named_with_file_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, 1000, &[1, 2, 3, 999]);
        let stream = TokenStream::open(&path).unwrap();
        assert_eq!(read(&stream, 0, 3, 999).unwrap(), [1, 2, 3]);
        let error = read(&stream, 1, 3, 999).unwrap_err().to_string();
        assert!(error.contains("a.bin: token 3 (byte 38) is 999"), "{error}");
        let mut shard = ShardWriter::create(folder.path().join("b.bin"), 1000).unwrap();
        let error = shard.write(&[5, 1000]).unwrap_err().to_string();
        assert!(error.contains("b.bin: token 1 is 1000"), "{error}");
        drop(shard);
        assert!(!folder.path().join("b.bin").exists());
    }

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    #[test]
    fn npy_arrays_of_three_types_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let cases = [
            (
                "<u2",
                [1u16, 65_535].map(u16::to_le_bytes).concat(),
                [1, 65_535],
            ),
            (
                "<u4",
                [1u32, 70_000].map(u32::to_le_bytes).concat(),
                [1, 70_000],
            ),
            (
                "<i4",
                [1i32, 70_000].map(i32::to_le_bytes).concat(),
                [1, 70_000],
            ),
        ];
        for (descr, data, tokens) in cases {
            std::fs::write(&path, npy(descr, "(2,)", &data)).unwrap();
            let stream = TokenStream::open(&path).unwrap();
            assert_eq!(read(&stream, 0, 2, 100_000).unwrap(), tokens);
        }
        let negative = [1i32, -5].map(i32::to_le_bytes).concat();
        std::fs::write(&path, npy("<i4", "(2,)", &negative)).unwrap();
        let stream = TokenStream::open(&path).unwrap();
        let error = read(&stream, 0, 2, 100).unwrap_err().to_string();
        assert!(
            error.contains("a.npy: token 1 (byte") && error.contains("is -5"),
            "{error}"
        );
    }

    #[test]
    fn lying_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.bin");
        write(&path, 1000, &[1, 2, 3]);
        let good = std::fs::read(&path).unwrap();
        let altered = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "empty"),
            (b"hello world".to_vec(), "neither a token shard"),
            (good[..31].to_vec(), "cut off"),
            (
                good[..37].to_vec(),
                "claims 3 tokens of 2 bytes, but 5 bytes",
            ),
            (altered(8, 9), "version 9"),
            (altered(12, 3), "3 bytes a token"),
            (altered(31, 255), "claims"),
            (npy("<f4", "(2,)", &[0; 8]), "type is \"<f4\""),
            (npy("<u2", "(2, 2)", &[0; 8]), "one dimension"),
            (npy("<u2", "()", &[0; 2]), "one dimension"),
            (npy("<u2", "(3,)", &[0; 4]), "claims 3 tokens"),
            (
                npy("<u2", "(99999999999999999999999,)", &[0; 4]),
                "one dimension",
            ),
            (npy("<u2", &format!("({},)", usize::MAX), &[0; 4]), "claims"),
            (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "cut off"),
            (
                b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(),
                "more than any real one",
            ),
            (b"\x93NUMPY\x07\x00".to_vec(), "version 7"),
            (b"\x93NUMPY".to_vec(), "cut off"),
            (b"\x93NUMPY\x01\x00\x02\x00{}".to_vec(), "lacks 'descr'"),
        ];
        for (bytes, part) in cases {
            std::fs::write(&path, bytes).unwrap();
            let error = TokenStream::open(&path).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains("bad.bin"),
                "{part}: {error}"
            );
        }
        assert!(TokenStream::open(folder.path().join("absent.bin")).is_err());
    }
}
