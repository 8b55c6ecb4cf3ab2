//! Files that are complete or not there at all.
//!
//! A file is written under a temporary name beside its place, synced to the disk, and renamed; the rename is synced
//! too. Whenever the process or the machine dies, the name holds either the old content or the new one. Temporary
//! names begin with [`TEMPORARY`]; nothing reads them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of unfinished files and folders begin.
pub const TEMPORARY: &str = ".tmp-";

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
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let temporary = temporary_beside(&path)?;
        let file = File::create_new(&temporary)?;
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
    pub fn commit(mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.committed = true;
        sync_folder(parent(&self.path))
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

/// A new temporary name in the folder of `path`, unlike that of any other writer.
///
/// # Errors
/// When `path` has no last part.
pub fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let kind = io::ErrorKind::InvalidInput;
        return Err(io::Error::new(kind, "this is no name for a file"));
    };
    let mut temporary = OsString::from(TEMPORARY);
    temporary.push(name);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!("-{}-{count}", std::process::id()));
    Ok(path.with_file_name(temporary))
}

/// The folder of a path; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes renames and new names in a folder durable, where the system can.
///
/// # Errors
/// When the disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
