//! Files that are complete or not there at all.
//!
//! A file is written under a temporary name beside its place, synced to the disk, and renamed; the rename is synced
//! too. Whenever the process or the machine dies, the name holds either the old content or the new one. Temporary
//! names begin with `.tmp-`; nothing reads them, and [`Checkpoints::open`] removes what a killed run left behind.
//!
//! [`Checkpoints`] does the same for whole folders.

mod checkpoints;
mod manifest;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use checkpoints::{Checkpoint, Checkpoints, Latest, latest};

use crate::error::{Error, Result};

/// How the names of unfinished files and folders begin.
const TEMPORARY: &str = ".tmp-";

/// A file that appears under its name only by [`commit`](AtomicFile::commit); dropped before, it leaves no trace.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    committed: bool,
}

impl AtomicFile {
    /// Begins to write `path`; what is there now stays until the commit.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let temporary = temporary_beside(&path)?;
        let file = File::create_new(&temporary).map_err(Error::io("write", &path))?;
        Ok(Self {
            path,
            temporary,
            writer: BufWriter::new(file),
            committed: false,
        })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// When the disk is full or fails; the old content then stays.
    pub fn commit(mut self) -> Result<()> {
        let finish = |this: &mut Self| {
            this.writer.flush()?;
            this.writer.get_ref().sync_all()?;
            std::fs::rename(&this.temporary, &this.path)?;
            this.committed = true;
            sync_folder(parent(&this.path))
        };
        finish(&mut self).map_err(Error::io("write", &self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Replaces the content of `path` by what `write` writes, completely or not at all.
///
/// # Errors
/// When `write` fails, or the disk is full or fails; the old content then stays.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file).map_err(Error::io("write", &file.path))?;
    file.commit()
}

/// A new temporary name in the folder of `path`, unlike that of any other writer.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::content(path, "this is no name for a file"));
    };
    let mut temporary = OsString::from(TEMPORARY);
    temporary.push(name);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!("-{}-{count}", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes renames and new names in a folder durable, where the system can.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
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
            let error = AtomicFile::create(path).unwrap_err().to_string();
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
