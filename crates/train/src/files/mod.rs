//! Files and folders of a run that are complete or not there at all: [`AtomicFile`] and [`write_atomic`] for files,
//! [`Checkpoints`] for whole folders, which also removes what a killed run left behind.

mod checkpoints;
mod manifest;

use std::io::{self, Write};
use std::path::Path;

pub use checkpoints::{Checkpoint, Checkpoints, Latest, latest};
pub use weft_mixers::files::AtomicFile;

use crate::error::{Error, Result};

/// Replaces the content of `path` by what `write` writes, completely or not at all.
///
/// # Errors
/// When `write` fails, or the disk is full or fails; the old content then stays.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let replace = || {
        let mut file = AtomicFile::create(path)?;
        write(&mut file)?;
        file.commit()
    };
    replace().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_old_content_stays_until_the_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new content").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new content");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_failed_or_forgotten_write_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        drop(AtomicFile::create(&path).unwrap());
        let failed = write_atomic(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(io::Error::other("unplugged"))
        });
        assert!(failed.unwrap_err().to_string().contains("unplugged"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn errors_name_the_file() {
        for path in ["/no/such/folder/a.txt", "/"] {
            let error = write_atomic(path, |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write_atomic(&path, |_| {
            let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
            full.write_all(b"does not fit")
        });
        let error = failed.unwrap_err();
        assert!(matches!(error, Error::Full { .. }));
        let text = error.to_string();
        assert!(
            text.contains("a.txt") && text.contains("free some space"),
            "{text}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
