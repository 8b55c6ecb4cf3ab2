//! Checkpoint folders `step-000123/` that survive a kill at any moment and a full disk.
//!
//! A checkpoint is written into a temporary folder, synced, sealed with a manifest and renamed. The latest good one is
//! found by looking, never from a pointer that could lie. One run at a time may write to a folder: it holds a lock
//! that the system releases when the process ends, however it ends. Reading needs no lock.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest};
use crate::error::{Error, Result};
use weft_mixers::files::{TEMPORARY, parent, sync_folder, temporary_beside};

const LOCK: &str = ".lock";
const PREFIX: &str = "step-";

/// The checkpoints of one run, in the run's folder; holds the folder's lock.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    _lock: File,
}

/// One checkpoint folder whose manifest can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many training steps it holds the result of.
    pub step: u64,
    /// The folder.
    pub path: PathBuf,
}

/// What [`latest`] found.
#[derive(Debug, Default)]
pub struct Latest {
    /// The newest checkpoint that is complete and unaltered.
    pub checkpoint: Option<Checkpoint>,
    /// Why newer ones were passed over.
    pub refused: Vec<Error>,
}

impl Checkpoints {
    /// Opens the folder for one writer, creates it if needed, and removes what a killed run left unfinished.
    ///
    /// The newest `keep` checkpoints are kept, at least one.
    ///
    /// # Errors
    /// [`Error::Busy`] when another run holds the folder; else when it cannot be created or written.
    pub fn open(folder: impl AsRef<Path>, keep: usize) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let failed = Error::io("write to", &folder);
        std::fs::create_dir_all(&folder).map_err(&failed)?;
        let lock = File::create(folder.join(LOCK)).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: folder }),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        for entry in std::fs::read_dir(&folder).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                remove(&entry.path()).map_err(&failed)?;
            }
        }
        Ok(Self {
            folder,
            keep: keep.max(1),
            _lock: lock,
        })
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the checkpoint of `step`: `write` fills the empty folder that it is given. Older checkpoints beyond the
    /// number to keep are then removed. A good checkpoint of the same step is left as it is.
    ///
    /// # Errors
    /// What `write` returns, or [`Error::Full`], or another failure of the disk; earlier checkpoints then stay.
    pub fn save(&self, step: u64, write: impl FnOnce(&Path) -> Result<()>) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::at(&self.folder, step);
        if checkpoint.verify().is_ok() {
            return Ok(checkpoint);
        }
        let temporary =
            temporary_beside(&checkpoint.path).map_err(Error::io("write", &checkpoint.path))?;
        let written = self.write(&temporary, &checkpoint, write);
        if written.is_err() {
            let _ = remove(&temporary);
        }
        written?;
        self.remove_old(step)?;
        Ok(checkpoint)
    }

    /// Removes the checkpoints after `step`, for a run that goes on from an earlier one.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn discard_after(&self, step: u64) -> Result<()> {
        let later = complete(&self.folder)?
            .into_iter()
            .filter(|c| c.step > step);
        later
            .into_iter()
            .try_for_each(|checkpoint| self.discard(&checkpoint.path))
    }

    fn write(
        &self,
        temporary: &Path,
        checkpoint: &Checkpoint,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let failed = Error::io("write", &checkpoint.path);
        std::fs::create_dir(temporary).map_err(&failed)?;
        write(temporary)?;
        Manifest::seal(temporary, checkpoint.step)?;
        if checkpoint.path.exists() {
            self.discard(&checkpoint.path)?;
        }
        std::fs::rename(temporary, &checkpoint.path).map_err(&failed)?;
        sync_folder(&self.folder).map_err(failed)
    }

    /// Keeps the newest up to `step`, which was just written and is good. Later ones are another run's or damaged;
    /// they neither count nor go.
    fn remove_old(&self, step: u64) -> Result<()> {
        let mut checkpoints = complete(&self.folder)?;
        checkpoints.retain(|checkpoint| checkpoint.step <= step);
        let old = checkpoints.len().saturating_sub(self.keep);
        checkpoints[..old]
            .iter()
            .try_for_each(|checkpoint| self.discard(&checkpoint.path))
    }

    /// Renames before removing, so that a kill in between leaves nothing that looks like a checkpoint.
    fn discard(&self, path: &Path) -> Result<()> {
        let away = temporary_beside(path).map_err(Error::io("remove", path))?;
        std::fs::rename(path, &away)
            .and_then(|()| remove(&away))
            .map_err(Error::io("remove", path))
    }
}

impl Checkpoint {
    /// Opens one checkpoint folder by its path.
    ///
    /// # Errors
    /// When the folder has no manifest that can be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let step = Manifest::read(&path)?.step;
        Ok(Self { step, path })
    }

    /// Reads every file and compares it with the manifest.
    ///
    /// # Errors
    /// Naming the first file that is missing, cut off or altered.
    pub fn verify(&self) -> Result<()> {
        let manifest = Manifest::read(&self.path)?;
        if manifest.step != self.step {
            let reason = format!("it is of step {}, not {}", manifest.step, self.step);
            return Err(Error::content(&self.path.join(manifest::FILE), reason));
        }
        manifest.check_contents(&self.path)
    }

    fn at(folder: &Path, step: u64) -> Self {
        Self {
            step,
            path: folder.join(format!("{PREFIX}{step:06}")),
        }
    }

    fn is_complete(&self) -> bool {
        let sizes = |manifest: Manifest| manifest.check_sizes(&self.path);
        Manifest::read(&self.path).and_then(sizes).is_ok()
    }
}

/// The newest good checkpoint in a run's folder; every byte of it was checked.
///
/// # Errors
/// When the folder exists and cannot be read; a folder that is not there has no checkpoints.
pub fn latest(folder: impl AsRef<Path>) -> Result<Latest> {
    let mut found = Latest::default();
    for checkpoint in all(folder.as_ref())?.into_iter().rev() {
        match checkpoint.verify() {
            Ok(()) => {
                found.checkpoint = Some(checkpoint);
                break;
            }
            Err(reason) => found.refused.push(reason),
        }
    }
    Ok(found)
}

/// The checkpoints that have all their files in full length, oldest first.
fn complete(folder: &Path) -> Result<Vec<Checkpoint>> {
    let mut checkpoints = all(folder)?;
    checkpoints.retain(Checkpoint::is_complete);
    Ok(checkpoints)
}

/// Every folder with the name of a checkpoint, oldest first.
fn all(folder: &Path) -> Result<Vec<Checkpoint>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", folder))?,
    };
    let mut checkpoints = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("read", folder))?.file_name();
        let step = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let named = step.map(|step| Checkpoint::at(folder, step));
        checkpoints.extend(named.filter(|checkpoint| checkpoint.path.ends_with(&name)));
    }
    checkpoints.sort_by_key(|checkpoint| checkpoint.step);
    Ok(checkpoints)
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        std::fs::remove_dir_all(path)?;
    } else {
        std::fs::remove_file(path)?;
    }
    sync_folder(parent(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::write_atomic;

    fn write(text: &str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| {
            std::fs::create_dir(folder.join("model")).unwrap();
            write_atomic(folder.join("model/weights"), |w| {
                w.write_all(text.as_bytes())
            })?;
            write_atomic(folder.join("state"), |w| w.write_all(b"state"))
        }
    }

    fn steps(folder: &Path) -> Vec<u64> {
        all(folder)
            .unwrap()
            .iter()
            .map(|checkpoint| checkpoint.step)
            .collect()
    }

    fn newest(folder: &Path) -> Option<u64> {
        latest(folder)
            .unwrap()
            .checkpoint
            .map(|checkpoint| checkpoint.step)
    }

    #[test]
    fn the_newest_are_kept_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/of/today");
        assert_eq!(newest(&path), None);
        let run = Checkpoints::open(&path, 2).unwrap();
        for step in [5, 100, 1_000_000, 2_000_000] {
            let saved = run.save(step, write("w")).unwrap();
            assert_eq!(
                std::fs::read(saved.path.join("model/weights")).unwrap(),
                b"w"
            );
            assert_eq!(newest(&path), Some(step));
        }
        assert_eq!(steps(&path), [1_000_000, 2_000_000]);
        assert_eq!(
            Checkpoint::open(path.join("step-2000000")).unwrap().step,
            2_000_000
        );
        run.discard_after(1_000_000).unwrap();
        assert_eq!(newest(&path), Some(1_000_000));
    }

    #[test]
    fn altered_cut_and_unfinished_ones_are_passed_over_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let run = Checkpoints::open(folder.path(), 10).unwrap();
        for step in 1..=4 {
            run.save(step, write("weights")).unwrap();
        }
        let file = |step: u64, name: &str| folder.path().join(format!("step-{step:06}/{name}"));
        std::fs::write(file(4, "model/weights"), "Weights").unwrap();
        std::fs::write(file(3, "model/weights"), "weigh").unwrap();
        std::fs::remove_file(file(2, "manifest.json")).unwrap();
        let found = latest(folder.path()).unwrap();
        assert_eq!(found.checkpoint.unwrap().step, 1);
        let reasons: Vec<String> = found.refused.iter().map(ToString::to_string).collect();
        assert!(
            reasons[0].contains("step-000004") && reasons[0].contains("CRC-32"),
            "{reasons:?}"
        );
        assert!(
            reasons[1].contains("5 bytes, but was written with 7"),
            "{reasons:?}"
        );
        assert!(reasons[2].contains("step-000002"), "{reasons:?}");
        for step in 2..=4 {
            run.save(step, write("again")).unwrap();
            assert_eq!(newest(folder.path()), Some(step));
        }
    }

    #[test]
    fn the_last_good_one_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let run = Checkpoints::open(folder.path(), 0).unwrap();
        run.save(1, write("good")).unwrap();
        let failed = run.save(2, |path| {
            write("half")(path)?;
            Err(Error::Data("stopped".into()))
        });
        assert_eq!(failed.unwrap_err().to_string(), "stopped");
        assert_eq!(newest(folder.path()), Some(1));
        assert_eq!(
            run.save(1, |_| panic!("it is there already")).unwrap().step,
            1
        );
        run.save(2, write("good")).unwrap();
        assert_eq!(steps(folder.path()), [2]);
    }

    #[test]
    fn a_damaged_later_one_does_not_push_good_ones_out() {
        let folder = tempfile::tempdir().unwrap();
        let run = Checkpoints::open(folder.path(), 1).unwrap();
        run.save(4, write("weights")).unwrap();
        std::fs::write(folder.path().join("step-000004/state"), "rotte").unwrap();
        run.save(1, write("weights")).unwrap();
        run.save(2, write("weights")).unwrap();
        assert_eq!(steps(folder.path()), [2, 4]);
        assert_eq!(newest(folder.path()), Some(2));
    }

    #[test]
    fn one_writer_at_a_time_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join(".tmp-step-000007-1-2/model")).unwrap();
        std::fs::write(folder.path().join(".tmp-log-1-2"), "x").unwrap();
        std::fs::write(folder.path().join("step-1.txt"), "no checkpoint").unwrap();
        let run = Checkpoints::open(folder.path(), 1).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let error = Checkpoints::open(folder.path(), 1).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        drop(run);
        Checkpoints::open(folder.path(), 1).unwrap();
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = Checkpoints::open(folder.path(), 1).unwrap();
        let saved = run.save(3, write("w")).unwrap();
        let entry = |name: &str| {
            format!(r#"{{"format":1,"step":3,"files":[{{"name":"{name}","bytes":1,"crc32":0}}]}}"#)
        };
        let cases = [
            ("{".to_owned(), "not a manifest"),
            (r#"{"format":2,"step":3,"files":[]}"#.to_owned(), "format 2"),
            (
                r#"{"format":1,"step":4,"files":[]}"#.to_owned(),
                "of step 4",
            ),
            (entry("../../secret"), "not inside the folder"),
            (entry("/etc/hostname"), "not inside the folder"),
            (entry("absent"), "absent"),
        ];
        for (json, part) in cases {
            std::fs::write(saved.path.join("manifest.json"), json).unwrap();
            let error = saved.verify().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
