//! A training run that is killed with SIGKILL again and again ends with the same bits as one that is left alone:
//! weights, moments, place in the data, counters and log. The child is this test binary, running the ignored test.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_tensor::Device;
use weft_tensor::Rng;
use weft_train::checkpoint::{OPTIMIZER_FILE, TRAINING_FILE};
use weft_train::files::latest;
use weft_train::recipe::Recipe;
use weft_train::run;
use weft_train::trainer::{LOG_FILE, Outcome, Start, Summary};

const FOLDER: &str = "WEFT_TEST_FOLDER";
const STEPS: u64 = 120;
const SAVE_EVERY: u64 = 3;
const KILLS: u64 = 8;

fn train(folder: &Path) -> Summary {
    let text = r#"
        model = { d_model = 32, layers = "2*gdn2" }
        data = { text = ["DIR/tests/resume.rs", "DIR/tests/kill.rs"], tokenizer = "bpe:300", sequence = 32 }
        train = { steps = STEPS, batch = 2, accumulate = 2, optimizer = "muon", checkpoint_every = EVERY }
        eval = { every = 25, batches = 3 }
    "#;
    let text = text
        .replace("DIR", env!("CARGO_MANIFEST_DIR"))
        .replace("STEPS", &STEPS.to_string())
        .replace("EVERY", &SAVE_EVERY.to_string());
    let mut recipe = Recipe::parse(&text, "resume.toml").unwrap();
    recipe.out = folder.to_owned();
    let never = AtomicBool::new(false);
    run::train(&recipe, &Device::Cpu, Start::Continue, None, &never).unwrap()
}

#[test]
#[ignore = "the child of a_killed_run_ends_with_the_same_bits"]
fn child_trains() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("set by the parent"));
    assert_eq!(train(&folder).outcome, Outcome::Finished);
}

fn child(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_trains"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The step of the newest good checkpoint.
fn saved(folder: &Path) -> u64 {
    let found = latest(folder).unwrap();
    found.checkpoint.map_or(0, |checkpoint| checkpoint.step)
}

/// Lets a child write another checkpoint and kills it at a random moment after that.
fn run_and_kill(folder: &Path, rng: &mut Rng) {
    let before = saved(folder);
    let mut child = child(folder);
    let started = Instant::now();
    // While the child writes, a folder may go away as it is looked at: only steps count here.
    while latest(folder).is_ok_and(|l| l.checkpoint.map_or(0, |c| c.step) <= before) {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "the child does not get on"
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "the child stopped by itself"
        );
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_micros(rng.below(60_000)));
    child.kill().unwrap();
    child.wait().unwrap();
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The lines of the log, without what depends on the clock.
fn log(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(LOG_FILE)).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("tokens_per_second");
        line
    });
    lines.collect()
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    train(&whole);

    let mut rng = Rng::new(11);
    let mut kills = 0;
    while kills < KILLS && saved(&killed) + 12 * SAVE_EVERY < STEPS {
        run_and_kill(&killed, &mut rng);
        kills += 1;
    }
    assert!(kills >= 3, "the run is too short to be killed");
    assert!(child(&killed).wait().unwrap().success());
    assert_eq!(saved(&killed), STEPS);

    let last = |folder: &Path| folder.join(format!("step-{STEPS:06}"));
    for file in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        OPTIMIZER_FILE,
    ] {
        let bytes = |folder: &Path| std::fs::read(last(folder).join(file)).unwrap();
        assert!(bytes(&killed) == bytes(&whole), "{file} differs");
    }
    let training = |folder: &Path| {
        let mut training = json_of(&last(folder).join(TRAINING_FILE));
        training["progress"]
            .as_object_mut()
            .unwrap()
            .remove("seconds");
        training
    };
    assert_eq!(training(&killed), training(&whole));
    assert_eq!(log(&killed), log(&whole));
    assert_eq!(log(&whole).len() as u64, STEPS + 5);
}
