//! Ctrl-C, `kill -9` and a full disk in the middle of a training.
#![cfg(unix)]

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{arg, one_sentence, recipe, succeed, weft};

/// A recipe of some seconds in a folder of its own; with a checkpoint every ten steps.
fn prepare(dir: &Path, name: &str, steps: u64) -> String {
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(
        &path,
        recipe(&dir.join(name), steps, "checkpoint_every = 10\nseed = 7"),
    )
    .unwrap();
    arg(&path).to_string()
}

fn start(recipe: &str) -> Child {
    weft(&["train", recipe])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the log of the run has passed a step.
fn wait_for_step(child: &mut Child, folder: &Path, step: u64) {
    let begin = Instant::now();
    let passed = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        line["step"].as_u64().is_some_and(|s| s >= step)
    };
    while !std::fs::read_to_string(folder.join("log.jsonl"))
        .is_ok_and(|log| log.lines().any(passed))
    {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before step {step}"
        );
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "no step {step} after two minutes"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

fn end(mut child: Child) -> (ExitStatus, String) {
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (child.wait().unwrap(), text)
}

/// Killed, killed again, interrupted, finished: the same bits as without any of it.
#[test]
fn an_interrupted_run_ends_as_the_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (
        prepare(dir.path(), "whole", 150),
        prepare(dir.path(), "broken", 150),
    );
    let folder = dir.path().join("broken");
    for step in [15, 33] {
        let mut child = start(&broken);
        wait_for_step(&mut child, &folder, step);
        signal(&child, "-KILL");
        assert_eq!(end(child).0.code(), None);
    }
    let mut child = start(&broken);
    wait_for_step(&mut child, &folder, 57);
    signal(&child, "-INT");
    let (status, text) = end(child);
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("stopping after this step"), "{text}");
    assert!(text.contains("continuing from"), "{text}");

    succeed(&["train", &broken]);
    succeed(&["train", &whole]);
    let weights =
        |name: &str| std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    assert!(weights("broken") == weights("whole"), "the weights differ");
    let steps = |name: &str| {
        let log = std::fs::read_to_string(dir.path().join(name).join("log.jsonl")).unwrap();
        let lines = log
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines
            .filter_map(|l| Some((l["step"].as_u64()?, l["loss"].as_f64()?)))
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("broken"), steps("whole"));
}

#[test]
fn a_second_ctrl_c_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepare(dir.path(), "long", 100_000);
    let mut child = start(&path);
    wait_for_step(&mut child, &dir.path().join("long"), 2);
    for _ in 0..50 {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        signal(&child, "-INT");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(end(child).0.code(), Some(130));
}

#[test]
fn an_interrupted_study_exits_with_130() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grid.toml");
    let text =
        recipe(&dir.path().join("grid"), 100_000, "") + "[study.grid]\ntrain.seed = [0, 1]\n";
    std::fs::write(&path, text).unwrap();
    let mut child = weft(&["study", arg(&path)])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_step(&mut child, &dir.path().join("grid/seed-0"), 2);
    signal(&child, "-TERM");
    let (status, text) = end(child);
    assert_eq!(status.code(), Some(130), "{text}");
}

/// A limit on the size of files stands in for a full disk: no write goes through beyond 16 KiB.
#[test]
fn a_full_disk_is_one_sentence_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepare(dir.path(), "full", 20);
    succeed(&["train", &path]);
    let folder = dir.path().join("full");
    let before = std::fs::read(folder.join("model.safetensors")).unwrap();
    let program = assert_cmd::cargo::cargo_bin!("weft");
    let script = format!(
        "trap '' XFSZ; ulimit -f 32; exec {} train {path} --anew",
        program.display()
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .env_remove("WEFT_LOG")
        .output()
        .unwrap();
    let text = one_sentence(&output, &["train --anew on a full disk"]);
    assert!(text.contains("cannot be written: File too large"), "{text}");
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        before
    );
    let names = std::fs::read_dir(&folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.contains(".tmp")).collect();
    assert!(left.is_empty(), "half-written files: {left:?}");
}
