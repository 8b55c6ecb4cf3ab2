//! What the tests of the command share: calling it, a tiny recipe, and a model trained with it.
#![allow(
    dead_code,
    reason = "every test file is a program of its own and uses a part"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The command with its arguments, its log as quiet as by default.
pub fn weft(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("weft"));
    command.args(args).env_remove("WEFT_LOG");
    command
}

pub fn run(args: &[&str]) -> Output {
    weft(args).output().unwrap()
}

/// Runs it, which must succeed, and gives its stdout.
pub fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// Runs it, which must succeed, and gives the last line of stdout as JSON.
pub fn json(args: &[&str]) -> serde_json::Value {
    let text = succeed(args);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Runs it, which must fail with exit code 1 and one sentence without a panic; gives the sentence.
pub fn fail(args: &[&str]) -> String {
    one_sentence(&run(args), args)
}

pub fn one_sentence(output: &Output, args: &[&str]) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{args:?}: {text}");
    assert_eq!(
        text.lines().last(),
        errors.last().copied(),
        "{args:?}: {text}"
    );
    assert!(!text.contains("panicked"), "{args:?}: {text}");
    errors[0].to_string()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Real text of a useful size: the sources of the command itself.
pub fn text() -> String {
    format!("{}/src", env!("CARGO_MANIFEST_DIR"))
}

/// A recipe that trains in a second; `more` goes into `[train]`.
pub fn recipe(out: &Path, steps: u64, more: &str) -> String {
    format!(
        "out = {out:?}\n\
         [model]\nd_model = 32\nlayers = \"gdn2 + attention\"\n\
         [data]\ntext = [{:?}]\nsequence = 64\n\
         [train]\nsteps = {steps}\nbatch = 2\nlr = 3e-3\n{more}\n\
         [eval]\nevery = 0\nbatches = 2\n",
        text()
    )
}

/// A model folder, trained once for all tests of a file.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| train("model", ""))
}

/// Another model of the same shape with other weights.
pub fn other_model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| train("other", "seed = 1"))
}

fn train(name: &str, more: &str) -> PathBuf {
    let program = module_path!().split("::").next().unwrap_or("test");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{program}-{name}"));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("tiny.toml");
    std::fs::write(&path, recipe(&dir.join("run"), 20, more)).unwrap();
    succeed(&["train", path.to_str().unwrap()]);
    dir.join("run")
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
