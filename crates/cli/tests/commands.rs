//! The commands end to end, as a user types them: train, interrupt, resume, generate, evaluate, explain, study.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn weft(args: &[&str], dir: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap()
}

/// Standard output of a command that must succeed.
fn ok(args: &[&str], dir: &Path) -> String {
    let out = weft(args, dir);
    assert!(
        out.status.success(),
        "weft {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// The one sentence of a command that must fail.
fn refused(args: &[&str], dir: &Path) -> String {
    let out = weft(args, dir);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "weft {args:?}: {said}");
    let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "weft {args:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    errors[0].to_string()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim().lines().last().unwrap()).unwrap()
}

fn text() -> String {
    (0..4000)
        .map(|i| format!("the number {} comes before {}.\n", i % 97, i % 97 + 1))
        .collect()
}

const RECIPE: &str = r#"
out = "run"
[model]
d_model = 32
layers = "gdn2 + attention"
[data]
text = ["text.txt"]
sequence = 32
[train]
steps = 6
batch = 2
checkpoint_every = 2
[eval]
every = 0
batches = 2
"#;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.txt"), text()).unwrap();
    std::fs::write(dir.path().join("recipe.toml"), RECIPE).unwrap();
    dir
}

#[test]
fn a_recipe_becomes_a_model_that_generates_and_is_measured() {
    let dir = folder();
    let d = dir.path();
    let trained = json(&ok(&["train", "recipe.toml", "--json"], d));
    assert_eq!(trained["summary"]["outcome"], "finished");
    let generate = [
        "generate",
        "run",
        "--prompt",
        "the number",
        "--tokens",
        "12",
        "--seed",
        "3",
        "--json",
    ];
    let (a, b) = (json(&ok(&generate, d)), json(&ok(&generate, d)));
    assert_eq!(a["text"], b["text"]);
    let score = json(&ok(&["eval", "run", "--text", "text.txt", "--json"], d));
    assert!(score["bits_per_byte"].as_f64().unwrap() < 8.1);
    let explained = json(&ok(&["explain", "run", "--json"], d));
    assert_eq!(explained["layers"].as_array().unwrap().len(), 2);
    // A state that was saved goes on like the text it stands for.
    ok(
        &[
            "generate",
            "run",
            "--prompt",
            "the number 5",
            "--tokens",
            "1",
            "--save-state",
            "s.state",
        ],
        d,
    );
    ok(
        &[
            "generate",
            "run",
            "--load-state",
            "s.state",
            "--prompt",
            " and",
            "--tokens",
            "3",
        ],
        d,
    );
    let e = refused(
        &[
            "generate",
            "run",
            "--prompt",
            "x",
            "--load-state",
            "text.txt",
        ],
        d,
    );
    assert!(e.contains("text.txt"), "{e}");
}

#[test]
fn a_study_is_resumable_and_sharded() {
    let dir = folder();
    let d = dir.path();
    let study = format!(
        "{RECIPE}\n[study.grid]\nmodel.layers = [\"gdn2\", \"attention\"]\ntrain.seed = [0, 1]\n"
    );
    std::fs::write(d.join("study.toml"), study).unwrap();
    let half = json(&ok(&["study", "study.toml", "--shard", "1/2", "--json"], d));
    assert_eq!(half["runs"].as_array().unwrap().len(), 2);
    let all = json(&ok(&["study", "study.toml", "--json"], d));
    assert_eq!(all["runs"].as_array().unwrap().len(), 4);
    assert_eq!(all["runs"][0], half["runs"][0]);
    assert!(d.join("run").join("report.html").is_file());
    let mixers = json(&ok(&["mixers", "--json"], d));
    for m in mixers.as_array().unwrap() {
        for key in ["name", "paper", "forms", "state_bytes", "devices"] {
            assert!(!m[key].is_null(), "{key} of {m}");
        }
    }
}

#[test]
fn quickstart_reports_what_scripts_rely_on() {
    let dir = folder();
    let said = ok(
        &[
            "quickstart",
            "--text",
            "text.txt",
            "--minutes",
            "0.05",
            "--out",
            "q",
            "--json",
        ],
        dir.path(),
    );
    let report = json(&said);
    for key in [
        "bits_per_byte",
        "bigram_bits_per_byte",
        "model_dir",
        "tokens_per_second",
        "parameters",
        "seconds",
    ] {
        assert!(!report[key].is_null(), "{key}");
    }
    assert!(
        !report["sample"].as_str().unwrap().is_empty(),
        "a sample is shown"
    );
    ok(
        &["generate", "q", "--prompt", "the", "--tokens", "2"],
        dir.path(),
    );
}

#[test]
fn bad_input_is_one_sentence() {
    let dir = folder();
    let d = dir.path();
    let with = |from: &str, to: &str| {
        std::fs::write(d.join("bad.toml"), RECIPE.replace(from, to)).unwrap()
    };
    with("d_model", "d_modle");
    let e = refused(&["train", "bad.toml"], d);
    assert!(e.contains("d_modle") && e.contains("d_model"), "{e}");
    with("text.txt", "absent.txt");
    assert!(refused(&["train", "bad.toml"], d).contains("absent.txt"));
    std::fs::write(d.join("empty.txt"), "").unwrap();
    with("text.txt", "empty.txt");
    assert!(refused(&["train", "bad.toml"], d).contains("empty.txt"));
    std::fs::write(d.join("latin.txt"), [b'a', 0xff, b'b']).unwrap();
    with("text.txt", "latin.txt");
    assert!(refused(&["train", "bad.toml"], d).contains("latin.txt"));
    std::fs::write(d.join("short.txt"), "short").unwrap();
    with("text.txt", "short.txt");
    refused(&["train", "bad.toml"], d);
    with("gdn2 +", "gdn3 +");
    assert!(refused(&["train", "bad.toml"], d).contains("gdn3"));
    refused(&["train", "nowhere.toml"], d);
    refused(&["generate", "nowhere", "--prompt", "x"], d);
    refused(&["eval", "nowhere", "--text", "text.txt"], d);
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint_and_the_run_goes_on() {
    let dir = folder();
    let d = dir.path();
    std::fs::write(
        d.join("long.toml"),
        RECIPE.replace("steps = 6", "steps = 100000"),
    )
    .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["train", "long.toml"])
        .current_dir(d)
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Long enough to be in the loop: the log has lines.
    let begin = std::time::Instant::now();
    let logged = || {
        std::fs::read_dir(d.join("run")).is_ok_and(|mut f| {
            f.any(|e| {
                e.unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("step-")
            })
        })
    };
    while !logged() && begin.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(logged(), "a checkpoint is there");
}
