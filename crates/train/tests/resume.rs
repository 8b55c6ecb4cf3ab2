//! A training run that is killed with SIGKILL again and again ends with the same bits as one that is left alone:
//! weights, moments, place in the data, counters and log. The child is this test binary, running the ignored test.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_models::tokenizer::Tokenizer;
use weft_models::{Config, LanguageModel, Run};
use weft_tensor::{Device, Rng};
use weft_train::checkpoint::{OPTIMIZER_FILE, TRAINING_FILE};
use weft_train::data::{Batches, Corpus, Document, TextSource};
use weft_train::evaluate::{EvalConfig, HeldOut};
use weft_train::files::latest;
use weft_train::optim::Rule;
use weft_train::trainer::{
    Budget, LOG_FILE, LanguageTask, Outcome, Place, Start, Summary, Trainer, TrainerConfig,
};

const FOLDER: &str = "WEFT_TEST_FOLDER";
const STEPS: u64 = 120;
const SAVE_EVERY: u64 = 3;
const KILLS: u64 = 8;

fn text() -> TextSource {
    let document = |(i, text): (usize, &str)| Document {
        path: PathBuf::from(format!("{i}.txt")),
        text: text.to_owned(),
    };
    let texts = [include_str!("resume.rs"), include_str!("kill.rs")];
    TextSource {
        documents: texts.into_iter().enumerate().map(document).collect(),
    }
}

fn train(folder: &Path) -> Summary {
    let tokenizer = Tokenizer::byte_level(&[]).unwrap();
    let text = text();
    let corpus = Corpus::from_text(&text, &tokenizer, 0.05).unwrap();
    let windows = corpus.train(32, tokenizer.vocab_size()).unwrap();
    let config = Config::new(256, 32, vec!["gdn2".into(), "attention".into()]);
    let (_, held_out) = text.split(0.05);
    let task = LanguageTask {
        model: LanguageModel::new(&config, 3, &Device::Cpu).unwrap(),
        held_out: Some(HeldOut::new(&held_out, &tokenizer).unwrap()),
        tokenizer,
        evaluation: EvalConfig::default(),
        run: Run::default(),
    };
    let mut config = TrainerConfig {
        budget: Budget::Steps(STEPS),
        save_every: Some(SAVE_EVERY),
        evaluate_every: Some(25),
        accumulate: 2,
        ..TrainerConfig::default()
    };
    config.optimizer.rule = Rule::Muon;
    let place = Place {
        folder: folder.to_owned(),
        run: json!("killed or not"),
        start: Start::Continue,
        show: None,
    };
    let mut batches = Batches::new(windows, 2, 7);
    let mut trainer = Trainer::open(place, &task, &mut batches, config).unwrap();
    trainer.run(&AtomicBool::new(false)).unwrap()
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
