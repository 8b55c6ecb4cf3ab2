//! Real child processes: killed with SIGKILL in the middle of writing, and stopped by a limit on what they may write.
//! A child is this test binary again, running one of the ignored tests below.
#![cfg(unix)]

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use weft_train::Error;
use weft_train::files::{Checkpoints, latest, write_atomic};

const FOLDER: &str = "WEFT_TEST_FOLDER";
/// What a child prints after each version.
const DONE: &str = "one version is written";

const BLOCK: usize = 64 << 10;

/// Large enough that most kills hit in the middle of it.
const BLOCKS: u8 = 96;

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).expect("set by the parent"))
}

/// The content of a version: blocks that all carry its number, written one at a time.
fn write_version(w: &mut dyn Write, version: u64) -> io::Result<()> {
    let block = version.to_le_bytes().repeat(BLOCK / 8);
    (0..BLOCKS).try_for_each(|_| w.write_all(&block))
}

/// The version of a file, after checking that all of it is of that version.
fn read_version(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(
        bytes.len(),
        BLOCK * usize::from(BLOCKS),
        "{} is cut off",
        path.display()
    );
    let version = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(
        bytes.chunks(8).all(|word| word == version.to_le_bytes()),
        "two versions are mixed"
    );
    version
}

/// `prefix` is shell code that runs in the child's process before it becomes the test `name`.
fn child(prefix: &str, name: &str, folder: &Path) -> Child {
    let test = std::env::current_exe().unwrap();
    Command::new("sh")
        .arg("-c")
        .arg(format!(
            "{prefix} exec \"$0\" --ignored --exact {name} --nocapture"
        ))
        .arg(test)
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the child of kills_never_damage_a_file"]
fn child_writes_one_file() {
    let path = folder().join("file");
    let first = if path.exists() {
        read_version(&path) + 1
    } else {
        0
    };
    for version in first.. {
        write_atomic(&path, |w| write_version(w, version)).unwrap();
        println!("{DONE}");
    }
}

#[test]
#[ignore = "the child of kills_never_damage_a_checkpoint"]
fn child_writes_checkpoints() {
    let run = Checkpoints::open(folder(), 2).unwrap();
    let last = latest(run.folder()).unwrap().checkpoint;
    for step in last.map_or(0, |checkpoint| checkpoint.step + 1).. {
        run.save(step, |folder| {
            write_atomic(folder.join("model"), |w| write_version(w, step))?;
            write_atomic(folder.join("optimizer"), |w| write_version(w, step))
        })
        .unwrap();
        println!("{DONE}");
    }
}

#[test]
#[ignore = "the child of a_full_disk_leaves_the_old_checkpoint"]
fn child_runs_out_of_room() {
    let run = Checkpoints::open(folder(), 1).unwrap();
    let failed = run.save(2, |folder| {
        write_atomic(folder.join("model"), |w| write_version(w, 2))
    });
    let error = failed.unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    std::fs::write(run.folder().join("error"), error.to_string()).unwrap();
}

/// Lets a child finish 1 to 3 versions and kills it at a moment within the next; 40 times. `look` checks the files
/// and tells how far they have come.
fn kill_often(name: &str, folder: &Path, look: impl Fn() -> Option<u64>) {
    let mut versions = 0;
    for round in 0..40 {
        let mut child = child("", name, folder);
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let finished = 1 + round % 3;
        let done = said
            .filter(|line| line.as_ref().unwrap().contains(DONE))
            .take(finished)
            .count();
        sleep(Duration::from_micros(round as u64 * 397 % 7000));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(done, finished, "the child stopped by itself");
        let found = look().expect("at least one version was written") + 1;
        assert!(
            found >= versions + finished as u64,
            "{found} after {versions} + {finished}"
        );
        versions = found;
    }
}

#[test]
fn kills_never_damage_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    kill_often("child_writes_one_file", folder.path(), || {
        path.exists().then(|| read_version(&path))
    });
}

#[test]
fn kills_never_damage_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    kill_often("child_writes_checkpoints", folder.path(), || {
        let found = latest(folder.path()).unwrap();
        assert!(found.refused.is_empty(), "{:?}", found.refused);
        let checkpoint = found.checkpoint?;
        for file in ["model", "optimizer"] {
            assert_eq!(read_version(&checkpoint.path.join(file)), checkpoint.step);
        }
        Some(checkpoint.step)
    });
    drop(Checkpoints::open(folder.path(), 2).unwrap());
    let names = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names
        .filter(|name| name.to_string_lossy().starts_with(".tmp-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = Checkpoints::open(folder.path(), 1).unwrap();
    run.save(1, |folder| {
        write_atomic(folder.join("model"), |w| write_version(w, 1))
    })
    .unwrap();
    drop(run);
    // A limit of 256 KiB a file; the signal is ignored, so that the write fails as on a full disk.
    let limit = "ulimit -f 512; trap '' XFSZ;";
    let status = child(limit, "child_runs_out_of_room", folder.path())
        .wait()
        .unwrap();
    assert!(status.success());
    let error = std::fs::read_to_string(folder.path().join("error")).unwrap();
    assert!(
        error.contains("model") && error.contains("free some space"),
        "{error}"
    );
    let found = latest(folder.path()).unwrap();
    assert_eq!(found.checkpoint.unwrap().step, 1);
    assert!(found.refused.is_empty());
    assert!(!folder.path().join("step-000002").exists());
}
