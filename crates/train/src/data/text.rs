//! Text from files and folders.
//!
//! Folders are searched for files with a known text extension, names in byte order, so that the same tree gives the
//! same text everywhere. Hidden files, build and package folders, symbolic links to folders, and files that hold a
//! zero byte near their beginning are passed over. A file named directly is always read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Files that are taken for text when a folder is searched.
const EXTENSIONS: [&str; 42] = [
    "adoc", "bash", "c", "cc", "cpp", "cs", "css", "cu", "cuh", "go", "h", "hpp", "hs", "htm",
    "html", "ini", "java", "jl", "js", "kt", "lua", "md", "markdown", "ml", "org", "php", "pl",
    "py", "r", "rb", "rs", "rst", "scala", "sh", "sql", "swift", "tex", "toml", "ts", "txt",
    "yaml", "yml",
];

/// Folders of generated files or of other people's packages.
const SKIPPED_FOLDERS: [&str; 4] = ["target", "node_modules", "__pycache__", "venv"];

/// A file with a zero byte in this many first bytes is binary.
const BINARY_PROBE: usize = 8192;

/// One text file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it was read.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

/// The documents of a data set, in a fixed order. They are held in memory: for more text than that, write token
/// shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextSource {
    /// Every document with some text.
    pub documents: Vec<Document>,
}

impl TextSource {
    /// Reads files and, recursively, folders; a file that is reached twice is read once.
    ///
    /// # Errors
    /// When a path is missing, a file is not UTF-8 (naming the byte), or all of it together is empty.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut source = Self::default();
        let mut seen = HashSet::new();
        for path in paths {
            source.visit(path.as_ref(), true, &mut seen)?;
        }
        if source.documents.is_empty() {
            let paths: Vec<String> = paths
                .iter()
                .map(|path| path.as_ref().display().to_string())
                .collect();
            return Err(Error::Data(format!(
                "no text in {}: name files with text, or folders of files such as .txt and .md",
                paths.join(", ")
            )));
        }
        Ok(source)
    }

    /// The length of all documents together.
    pub fn bytes(&self) -> usize {
        self.documents
            .iter()
            .map(|document| document.text.len())
            .sum()
    }

    /// Cuts every document in two: the first part for training, the last `held_out` of its bytes for evaluation, at
    /// the nearest earlier character. The parts never overlap, and since equal documents are cut at the same place,
    /// copies of a document do not leak either.
    pub fn split(&self, held_out: f64) -> (Vec<&str>, Vec<&str>) {
        let cut = |document: &Document| {
            let at = document.text.len() as f64 * (1.0 - held_out.clamp(0.0, 1.0));
            document.text.floor_char_boundary(at.round() as usize)
        };
        let halves = self
            .documents
            .iter()
            .map(|document| document.text.split_at(cut(document)));
        halves.unzip()
    }

    fn visit(&mut self, path: &Path, named: bool, seen: &mut HashSet<PathBuf>) -> Result<()> {
        let failed = Error::io("read", path);
        let real = path.canonicalize().map_err(&failed)?;
        if !seen.insert(real) {
            return Ok(());
        }
        if !path.is_dir() {
            return self.read_file(path, named);
        }
        let entries = std::fs::read_dir(path).map_err(&failed)?;
        let entries: Result<Vec<_>, _> = entries.collect();
        let mut entries = entries.map_err(&failed)?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            if is_wanted(&path, entry.path().is_dir(), path.is_symlink()) {
                self.visit(&path, false, seen)?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, named: bool) -> Result<()> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        if !named && bytes[..bytes.len().min(BINARY_PROBE)].contains(&0) {
            return Ok(());
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[at];
            let reason =
                format!("byte {at} (0x{byte:02X}) is not UTF-8: convert the file or leave it out");
            Error::content(path, reason)
        })?;
        if !text.trim().is_empty() {
            self.documents.push(Document {
                path: path.to_owned(),
                text,
            });
        }
        Ok(())
    }
}

/// Whether something found in a folder is looked at.
fn is_wanted(path: &Path, folder: bool, link: bool) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with('.') {
        return false;
    }
    if folder {
        return !link && !SKIPPED_FOLDERS.contains(&&*name);
    }
    let extension = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    path.is_file() && EXTENSIONS.contains(&&*extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn names(source: &TextSource, root: &Path) -> Vec<String> {
        let name = |document: &Document| {
            document
                .path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned()
        };
        source.documents.iter().map(name).collect()
    }

    #[test]
    fn folders_give_their_text_files_in_order() {
        let folder = tree(&[
            ("b.txt", b"b"),
            ("a/z.MD", b"z"),
            ("a/a.rs", b"a"),
            ("c.txt", b" \n"),
            ("picture.png", b"png"),
            ("binary.txt", b"a\0b"),
            (".hidden/x.txt", b"x"),
            ("target/doc/x.txt", b"x"),
            ("noextension", b"x"),
        ]);
        let source = TextSource::read(&[folder.path()]).unwrap();
        assert_eq!(names(&source, folder.path()), ["a/a.rs", "a/z.MD", "b.txt"]);
        assert_eq!(source.bytes(), 3);
        let named = [folder.path().join("noextension"), folder.path().to_owned()];
        let source = TextSource::read(&named).unwrap();
        assert_eq!(
            names(&source, folder.path()),
            ["noextension", "a/a.rs", "a/z.MD", "b.txt"]
        );
        let twice = TextSource::read(&[
            folder.path().join("b.txt"),
            folder.path().join("a/../b.txt"),
        ]);
        assert_eq!(twice.unwrap().documents.len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_are_not_followed() {
        let folder = tree(&[("a/a.txt", b"a")]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("a/broken.txt")).unwrap();
        assert_eq!(
            TextSource::read(&[folder.path()]).unwrap().documents.len(),
            1
        );
    }

    #[test]
    fn errors_name_the_file_and_the_byte() {
        let folder = tree(&[("bad.txt", b"caf\xE9 au lait"), ("empty.txt", b"")]);
        let read = |name: &str| {
            TextSource::read(&[folder.path().join(name)])
                .unwrap_err()
                .to_string()
        };
        let error = read("bad.txt");
        assert!(
            error.contains("bad.txt: byte 3 (0xE9) is not UTF-8"),
            "{error}"
        );
        let error = read("absent.txt");
        assert!(
            error.contains("cannot read") && error.contains("absent.txt"),
            "{error}"
        );
        let error = read("empty.txt");
        assert!(
            error.contains("no text in") && error.contains("empty.txt"),
            "{error}"
        );
        assert!(TextSource::read::<&str>(&[]).is_err());
    }

    #[test]
    fn the_split_loses_nothing_and_keeps_characters_whole() {
        let text = |text: &str| Document {
            path: "x".into(),
            text: text.into(),
        };
        let source = TextSource {
            documents: vec![text("0123456789"), text("ééé"), text("a")],
        };
        let (train, held_out) = source.split(0.2);
        assert_eq!(train, ["01234567", "éé", "a"]);
        assert_eq!(held_out, ["89", "é", ""]);
        for held_out in [0.0, 0.1, 0.5, 0.9, 1.0, 7.0, -1.0] {
            let (train, held) = source.split(held_out);
            for (i, document) in source.documents.iter().enumerate() {
                assert_eq!(format!("{}{}", train[i], held[i]), document.text);
            }
        }
        assert_eq!(source.split(0.0).1, ["", "", ""]);
    }
}
