//! One JSON object a line; each line is with the system before the call returns.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A log of JSON lines. Objects about a training step carry its number under `step`.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    /// The length up to the last complete line.
    length: u64,
}

/// All that a resuming run wants to know of a line.
#[derive(Deserialize)]
struct Line {
    step: Option<u64>,
}

impl JsonLines {
    /// A new, empty log; an old one of that name is emptied.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = File::create(&path).map_err(Error::io("write", &path))?;
        Ok(Self {
            path,
            file,
            length: 0,
        })
    }

    /// Goes on with a log from after `step`: the first line of a later step and all behind it are removed, and so is
    /// a last line that a kill cut off. A log that does not exist is created.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let failed = Error::io("write", &path);
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = open.map_err(&failed)?;
        let length = length_up_to(&mut file, step).map_err(Error::io("read", &path))?;
        file.set_len(length).map_err(&failed)?;
        file.seek(SeekFrom::End(0)).map_err(&failed)?;
        Ok(Self { path, file, length })
    }

    /// Appends one object as a line.
    ///
    /// # Errors
    /// When the value has no JSON form, or the disk is full or fails; the log then ends with the line before.
    pub fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)
            .map_err(|error| Error::content(&self.path, format!("cannot write a line: {error}")))?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            let rewound = self.file.set_len(self.length);
            let _ = rewound.and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            return Err(Error::io("write", &self.path)(error));
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

fn length_up_to(file: &mut File, step: u64) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut length = 0;
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        if serde_json::from_slice::<Line>(&line).is_ok_and(|line| line.step > Some(step)) {
            break;
        }
        length += line.len() as u64;
        line.clear();
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(folder: &Path) -> PathBuf {
        let path = folder.join("log.jsonl");
        let mut log = JsonLines::create(&path).unwrap();
        log.write(&json!({"event": "start"})).unwrap();
        for step in [1, 2, 3, 10] {
            log.write(&json!({"step": step, "loss": 1.5})).unwrap();
        }
        log.write(&json!({"event": "end"})).unwrap();
        path
    }

    #[test]
    fn every_line_is_there_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 6);
        assert_eq!(text.lines().nth(1), Some(r#"{"step":1,"loss":1.5}"#));
    }

    #[test]
    fn resuming_removes_later_steps_and_goes_on() {
        for (step, kept) in [(0, 1), (1, 2), (3, 4), (9, 4), (10, 6), (99, 6)] {
            let folder = tempfile::tempdir().unwrap();
            let path = log(folder.path());
            let mut log = JsonLines::resume(&path, step).unwrap();
            log.write(&json!({"step": step + 1})).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), kept + 1, "resumed at {step}: {text}");
            assert!(text.ends_with(&format!("{{\"step\":{}}}\n", step + 1)));
        }
    }

    #[test]
    fn a_line_cut_off_by_a_kill_is_removed_and_foreign_lines_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        std::fs::write(&path, "not json\n{\"step\":1}\n[1]\n{\"step\":2,\"lo").unwrap();
        let mut log = JsonLines::resume(&path, 5).unwrap();
        log.write(&json!({"step": 6})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "not json\n{\"step\":1}\n[1]\n{\"step\":6}\n");
        let fresh = folder.path().join("new.jsonl");
        JsonLines::resume(&fresh, 5).unwrap();
        assert_eq!(fresh.metadata().unwrap().len(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_not_a_panic() {
        let mut log = JsonLines::create("/dev/full").unwrap();
        let error = log.write(&json!({"step": 1})).unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{error}");
    }
}
