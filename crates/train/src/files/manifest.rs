//! `manifest.json`: what a complete folder holds.
//!
//! It is written last, so a folder without one is unfinished; with the size and the CRC-32 of every file it tells a
//! good folder from one that was cut off or altered. Only names inside the folder are believed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::write_atomic;

pub(super) const FILE: &str = "manifest.json";

const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    pub(super) step: u64,
    files: Vec<Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    bytes: u64,
    crc32: u32,
}

impl Manifest {
    /// Syncs every file in `folder`, lists it, and writes the manifest.
    pub(super) fn seal(folder: &Path, step: u64) -> Result<()> {
        let mut files = Vec::new();
        list(folder, folder, &mut files)?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Self {
            format: FORMAT,
            step,
            files,
        };
        write_atomic(folder.join(FILE), |w| {
            serde_json::to_writer_pretty(&mut *w, &manifest)?;
            w.write_all(b"\n")
        })
    }

    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let mut json = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut json))
            .map_err(Error::io("read", &path))?;
        let manifest: Self = serde_json::from_slice(&json)
            .map_err(|error| Error::content(&path, format!("not a manifest: {error}")))?;
        if manifest.format != FORMAT {
            let reason = format!("format {}, expected {FORMAT}", manifest.format);
            return Err(Error::content(&path, reason));
        }
        for Entry { name, .. } in &manifest.files {
            let inside = |part| matches!(part, Component::Normal(_));
            if name.is_empty() || !Path::new(name).components().all(inside) {
                let reason = format!("it lists {name:?}, which is not inside the folder");
                return Err(Error::content(&path, reason));
            }
        }
        Ok(manifest)
    }

    /// Checks that every listed file is there with its size.
    pub(super) fn check_sizes(&self, folder: &Path) -> Result<()> {
        for Entry { name, bytes, .. } in &self.files {
            let path = folder.join(name);
            let found = path.metadata().map_err(Error::io("read", &path))?.len();
            if found != *bytes {
                let reason = format!("it has {found} bytes, but was written with {bytes}");
                return Err(Error::content(&path, reason));
            }
        }
        Ok(())
    }

    /// Checks every byte of every listed file.
    pub(super) fn check_contents(&self, folder: &Path) -> Result<()> {
        self.check_sizes(folder)?;
        for entry in &self.files {
            let path = folder.join(&entry.name);
            let file = File::open(&path).map_err(Error::io("read", &path))?;
            let (_, crc32) = checksum(file).map_err(Error::io("read", &path))?;
            if crc32 != entry.crc32 {
                return Err(Error::content(
                    &path,
                    "its content is not what was written (CRC-32)",
                ));
            }
        }
        Ok(())
    }
}

fn list(root: &Path, folder: &Path, files: &mut Vec<Entry>) -> Result<()> {
    let failed = Error::io("write", folder);
    for entry in std::fs::read_dir(folder).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        if path.is_dir() {
            list(root, &path, files)?;
            continue;
        }
        let name = path.strip_prefix(root).ok().and_then(relative_name);
        let Some(name) = name else {
            return Err(Error::content(&path, "its name is not UTF-8"));
        };
        let (bytes, crc32) = sync_and_sum(&path).map_err(Error::io("write", &path))?;
        files.push(Entry { name, bytes, crc32 });
    }
    weft_mixers::files::sync_folder(folder).map_err(failed)
}

/// `a/b` on every system.
fn relative_name(path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    Some(parts?.join("/"))
}

fn sync_and_sum(path: &Path) -> io::Result<(u64, u32)> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.sync_all()?;
    checksum(file)
}

/// Bytes and CRC-32 of what a reader gives.
fn checksum(mut from: impl Read) -> io::Result<(u64, u32)> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok((bytes, hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}
