//! A corpus: token streams divided into training and held-out parts, and the windows over them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use weft_models::tokenizer::Tokenizer;

use super::{TextSource, TokenStream};
use crate::error::{Error, Result};

/// Tokens to train on and tokens held out; they never overlap.
#[derive(Clone, Debug)]
pub struct Corpus {
    train: Vec<Part>,
    held_out: Vec<Part>,
}

/// A range of a stream.
#[derive(Clone, Debug)]
struct Part {
    stream: Arc<TokenStream>,
    range: Range<usize>,
}

impl Corpus {
    /// Tokenizes text, split by [`TextSource::split`]. Each side becomes one stream in which every document is
    /// followed by the tokenizer's end-of-text token, if it has one.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn from_text(source: &TextSource, tokenizer: &Tokenizer, held_out: f64) -> Result<Self> {
        let (train, held) = source.split(held_out);
        let part = |name: &str, texts: Vec<&str>| {
            let stream = TokenStream::from_vec(name, tokenize(tokenizer, &texts)?);
            Ok::<_, Error>(vec![Part::all(stream)])
        };
        Ok(Self {
            train: part("training text", train)?,
            held_out: part("held-out text", held)?,
        })
    }

    /// Maps token shards, and the `.bin` and `.npy` files directly in folders in the order of their names. The last
    /// `held_out` of the tokens of every file are held out.
    ///
    /// # Errors
    /// When a path is missing, no shard is found, or a file is refused by [`TokenStream::open`].
    pub fn open_shards<P: AsRef<Path>>(paths: &[P], held_out: f64) -> Result<Self> {
        let mut corpus = Self {
            train: Vec::new(),
            held_out: Vec::new(),
        };
        for path in shard_files(paths)? {
            let stream = Arc::new(TokenStream::open(path)?);
            let all = stream.len();
            let cut = (all as f64 * (1.0 - held_out.clamp(0.0, 1.0))).round() as usize;
            let part = |range| Part {
                stream: stream.clone(),
                range,
            };
            corpus.train.push(part(0..cut.min(all)));
            corpus.held_out.push(part(cut.min(all)..all));
        }
        Ok(corpus)
    }

    /// How many tokens are trained on.
    pub fn train_tokens(&self) -> usize {
        self.train.iter().map(|part| part.range.len()).sum()
    }

    /// How many tokens are held out.
    pub fn held_out_tokens(&self) -> usize {
        self.held_out.iter().map(|part| part.range.len()).sum()
    }

    /// Windows over the training part for sequences of `sequence` tokens from a vocabulary of `vocab`.
    ///
    /// # Errors
    /// When the part is shorter than one sequence, or a shard was made with a larger vocabulary.
    pub fn train(&self, sequence: usize, vocab: usize) -> Result<Windows> {
        Windows::new(&self.train, "training", sequence, vocab)
    }

    /// Windows over the held-out part, as [`Corpus::train`].
    ///
    /// # Errors
    /// As [`Corpus::train`].
    pub fn held_out(&self, sequence: usize, vocab: usize) -> Result<Windows> {
        Windows::new(&self.held_out, "held-out", sequence, vocab)
    }
}

impl Part {
    fn all(stream: TokenStream) -> Self {
        Self {
            range: 0..stream.len(),
            stream: Arc::new(stream),
        }
    }
}

/// The windows of T + 1 tokens of a part of a corpus, numbered from 0. Window i + 1 of a stream begins with the last
/// token of window i. Tokens at a stream's end that fill no window are left out.
#[derive(Clone, Debug)]
pub struct Windows {
    parts: Vec<Part>,
    /// The number of the first window of each part, and the number of all windows.
    firsts: Vec<u64>,
    sequence: usize,
    vocab: usize,
}

impl Windows {
    fn new(parts: &[Part], what: &str, sequence: usize, vocab: usize) -> Result<Self> {
        if sequence == 0 {
            return Err(Error::Data(
                "a sequence of 0 tokens holds nothing to learn".into(),
            ));
        }
        let mut firsts = vec![0];
        for part in parts {
            let claimed = part.stream.vocab().unwrap_or(0);
            if claimed > vocab as u64 {
                let reason =
                    format!("its vocabulary of {claimed} is larger than the model's {vocab}");
                return Err(Error::content(part.stream.name(), reason));
            }
            let windows = part.range.len().saturating_sub(1) / sequence;
            firsts.push(firsts[firsts.len() - 1] + windows as u64);
        }
        let windows = Self {
            parts: parts.to_vec(),
            firsts,
            sequence,
            vocab,
        };
        if windows.is_empty() {
            let longest = parts.iter().map(|part| part.range.len()).max().unwrap_or(0);
            return Err(Error::Data(format!(
                "the {what} part has {longest} tokens in its longest stretch, a sequence of {sequence} needs {}: \
                 add text or shorten the sequence",
                sequence + 1
            )));
        }
        Ok(windows)
    }

    /// How many windows there are, at least one.
    pub fn len(&self) -> u64 {
        self.firsts[self.firsts.len() - 1]
    }

    /// Never true: a part without windows is refused when it is made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in a sequence, T; a window has one more.
    pub fn sequence(&self) -> usize {
        self.sequence
    }

    /// Appends the T + 1 tokens of window `index` to `out`.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, naming file and place; when there is no such window.
    pub fn read(&self, index: u64, out: &mut Vec<i64>) -> Result<()> {
        if index >= self.len() {
            return Err(Error::Data(format!(
                "there are {} windows, no number {index}",
                self.len()
            )));
        }
        let part = self.firsts.partition_point(|&first| first <= index) - 1;
        let Part { stream, range } = &self.parts[part];
        let start = range.start + (index - self.firsts[part]) as usize * self.sequence;
        stream.read(start, self.sequence + 1, self.vocab, out)
    }
}

/// All texts as tokens, each followed by the end-of-text token; empty ones are left out.
fn tokenize(tokenizer: &Tokenizer, texts: &[&str]) -> Result<Vec<u32>> {
    let full = texts.par_iter().filter(|text| !text.is_empty());
    let tokens: Result<Vec<Vec<u32>>, _> = full
        .map(|text| {
            let mut tokens = tokenizer.encode(text)?;
            tokens.extend(tokenizer.eos());
            Ok::<_, Error>(tokens)
        })
        .collect();
    Ok(tokens?.concat())
}

fn shard_files<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        if !path.is_dir() {
            files.push(path.to_owned());
            continue;
        }
        let failed = Error::io("read", path);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).map_err(&failed)? {
            let file = entry.map_err(&failed)?.path();
            let hidden = file
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if !hidden
                && file
                    .extension()
                    .is_some_and(|name| name == "bin" || name == "npy")
            {
                found.push(file);
            }
        }
        if found.is_empty() {
            return Err(Error::content(
                path,
                "the folder has no .bin or .npy shards",
            ));
        }
        found.sort_unstable();
        files.extend(found);
    }
    if files.is_empty() {
        return Err(Error::Data("no token shards are named".into()));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use weft_models::tokenizer::{END_OF_TEXT, Specials};

    use super::*;
    use crate::data::{Document, ShardWriter};

    fn texts(texts: &[&str]) -> TextSource {
        let document = |text: &&str| Document {
            path: "x".into(),
            text: (*text).into(),
        };
        TextSource {
            documents: texts.iter().map(document).collect(),
        }
    }

    fn all(windows: &Windows) -> Vec<Vec<i64>> {
        let window = |i| {
            let mut out = Vec::new();
            windows.read(i, &mut out).map(|()| out)
        };
        (0..windows.len()).map(|i| window(i).unwrap()).collect()
    }

    #[test]
    fn text_becomes_windows_with_document_ends() {
        let tokenizer = Tokenizer::byte_level(&[END_OF_TEXT]).unwrap();
        let corpus = Corpus::from_text(&texts(&["abcdefghij", "klmno"]), &tokenizer, 0.2).unwrap();
        assert_eq!((corpus.train_tokens(), corpus.held_out_tokens()), (14, 5));
        let windows = all(&corpus.train(4, 257).unwrap());
        let text = |ids: &[i64]| {
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            tokenizer
                .decode(&ids, Specials::Keep)
                .unwrap()
                .replace(END_OF_TEXT, "|")
        };
        let read: Vec<String> = windows.iter().map(|window| text(window)).collect();
        assert_eq!(read, ["abcde", "efgh|", "|klmn"]);
        let held = all(&corpus.held_out(4, 257).unwrap());
        assert_eq!(text(&held[0]), "ij|o|");
    }

    #[test]
    fn too_little_text_says_how_much_is_needed() {
        let tokenizer = Tokenizer::byte_level(&[]).unwrap();
        let corpus = Corpus::from_text(&texts(&["abcdefghij"]), &tokenizer, 0.1).unwrap();
        assert_eq!(corpus.train(8, 256).unwrap().len(), 1);
        let error = corpus.train(9, 256).unwrap_err().to_string();
        assert!(
            error.contains("9 tokens") && error.contains("needs 10"),
            "{error}"
        );
        let error = corpus.held_out(8, 256).unwrap_err().to_string();
        assert!(error.contains("held-out part has 1 tokens"), "{error}");
        assert!(corpus.train(0, 256).is_err());
    }

    #[test]
    fn shards_are_split_file_by_file_and_never_joined() {
        let folder = tempfile::tempdir().unwrap();
        for (name, tokens) in [("b.bin", 100..110), ("a.bin", 0..21)] {
            let mut shard = ShardWriter::create(folder.path().join(name), 200).unwrap();
            shard.write(&tokens.collect::<Vec<u32>>()).unwrap();
            shard.finish().unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "no shard").unwrap();
        let corpus = Corpus::open_shards(&[folder.path()], 0.3).unwrap();
        assert_eq!(
            (corpus.train_tokens(), corpus.held_out_tokens()),
            (15 + 7, 6 + 3)
        );
        let train = all(&corpus.train(3, 200).unwrap());
        let starts: Vec<i64> = train.iter().map(|window| window[0]).collect();
        assert_eq!(starts, [0, 3, 6, 9, 100, 103]);
        assert_eq!(train[5], [103, 104, 105, 106]);
        let held = all(&corpus.held_out(2, 200).unwrap());
        assert_eq!(held, [[15, 16, 17], [17, 18, 19], [107, 108, 109]]);
        let windows = corpus.train(3, 200).unwrap();
        assert!(windows.read(6, &mut Vec::new()).is_err());
    }

    #[test]
    fn shards_of_another_vocabulary_and_missing_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut shard = ShardWriter::create(folder.path().join("a.bin"), 200).unwrap();
        shard.write(&[1; 50]).unwrap();
        shard.finish().unwrap();
        let corpus = Corpus::open_shards(&[folder.path().join("a.bin")], 0.1).unwrap();
        let error = corpus.train(4, 199).unwrap_err().to_string();
        assert!(
            error.contains("a.bin") && error.contains("vocabulary of 200"),
            "{error}"
        );
        let empty = tempfile::tempdir().unwrap();
        let error = Corpus::open_shards(&[empty.path()], 0.1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no .bin or .npy"), "{error}");
        assert!(Corpus::open_shards(&[empty.path().join("x.bin")], 0.1).is_err());
        assert!(Corpus::open_shards::<&str>(&[], 0.1).is_err());
    }
}
