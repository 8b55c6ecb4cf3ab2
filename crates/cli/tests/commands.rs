//! Every command for real, on models that train in a second.

mod common;

use std::path::Path;

use common::{arg, json, model, recipe, run, stderr, succeed, text};
use serde_json::Value;

fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {key} in {value}"))
}

#[test]
fn quickstart_trains_measures_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("quick");
    let result = json(&[
        "quickstart",
        "--text",
        &text(),
        "--minutes",
        "0.1",
        "--out",
        arg(&out),
        "--json",
    ]);
    for key in [
        "bits_per_byte",
        "bigram_bits_per_byte",
        "tokens_per_second",
        "parameters",
        "seconds",
    ] {
        assert!(number(&result, key) > 0.0, "{key}: {result}");
    }
    let models: Vec<&str> = result["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["layers"].as_str().unwrap())
        .collect();
    assert_eq!(models, ["3*gdn2 + attention", "attention", "gdn2"]);
    let sizes: Vec<f64> = result["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| number(m, "parameters"))
        .collect();
    assert!(
        sizes.iter().all(|s| (s / sizes[0] - 1.0).abs() < 0.01),
        "equal size: {sizes:?}"
    );
    assert!(!result["sample"].as_str().unwrap().is_empty());

    let folder = result["model_dir"].as_str().unwrap();
    let score = json(&["eval", folder, "--text", &text(), "--json"]);
    assert!(number(&score, "bits_per_byte") < 8.0, "{score}");
}

#[test]
fn train_prints_a_summary_and_leaves_a_model_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.toml");
    let out = dir.path().join("run");
    std::fs::write(&path, recipe(&dir.path().join("elsewhere"), 5, "")).unwrap();
    let result = json(&["train", arg(&path), "--out", arg(&out), "--json"]);
    assert_eq!(result["summary"]["progress"]["step"], 5, "{result}");
    assert_eq!(result["summary"]["outcome"], "finished", "{result}");
    assert_eq!(result["model_dir"], arg(&out));
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "log.jsonl",
        "recipe.toml",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(!dir.path().join("elsewhere").exists());
    assert!(succeed(&["train", arg(&path), "--out", arg(&out)]).contains("finished after 5 steps"));
}

#[test]
fn settings_on_the_command_line_win_over_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.toml");
    std::fs::write(&path, recipe(&dir.path().join("run"), 5, "")).unwrap();
    let set = [
        "--set",
        "train.steps=2",
        "--set",
        "model.layers=attention",
        "--set",
        "data.sequence = 32",
    ];
    let result = json(&[&["train", arg(&path), "--json"][..], &set].concat());
    assert_eq!(result["summary"]["progress"]["step"], 2);
    let written = std::fs::read_to_string(dir.path().join("run/recipe.toml")).unwrap();
    assert!(
        written.contains("layers = \"attention\"") && written.contains("sequence = 32"),
        "{written}"
    );
}

#[test]
fn weights_may_be_kept_in_bf16() {
    let score = |weights: &str| {
        let (model, text) = (arg(model()), text());
        let result = json(&[
            "eval",
            model,
            "--text",
            &text,
            "--weights",
            weights,
            "--json",
        ]);
        number(&result, "bits_per_byte")
    };
    let (exact, rounded) = (score("f32"), score("bf16"));
    assert!(
        exact != rounded && (exact / rounded - 1.0).abs() < 0.01,
        "{exact} {rounded}"
    );
    let args = [
        "generate",
        arg(model()),
        "--prompt",
        "let ",
        "--ignore-eos",
        "--tokens",
        "5",
        "--weights",
        "bf16",
        "--json",
    ];
    assert_eq!(
        json(&args)["generation"]["ids"].as_array().unwrap().len(),
        5
    );
}

#[test]
fn generation_is_fixed_by_its_seed() {
    let generate = |seed: &str| {
        json(&[
            "generate",
            arg(model()),
            "--prompt",
            "let ",
            "--tokens",
            "30",
            "--seed",
            seed,
            "--json",
        ])
    };
    let (one, again, other) = (generate("1"), generate("1"), generate("2"));
    assert_eq!(one["generation"]["ids"], again["generation"]["ids"]);
    assert_ne!(one["generation"]["ids"], other["generation"]["ids"]);
    let plain = succeed(&[
        "generate",
        arg(model()),
        "--prompt",
        "let ",
        "--tokens",
        "30",
        "--seed",
        "1",
    ]);
    assert_eq!(plain.strip_suffix('\n'), one["text"].as_str());
}

#[test]
fn a_prompt_in_a_file_and_stop_strings() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "let ").unwrap();
    let greedy = |more: &[&str]| {
        json(
            &[
                &[
                    "generate",
                    arg(model()),
                    "--temperature",
                    "0",
                    "--tokens",
                    "20",
                    "--json",
                ],
                more,
            ]
            .concat(),
        )
    };
    let from_file = greedy(&["--prompt-file", arg(&file)]);
    assert_eq!(from_file["text"], greedy(&["--prompt", "let "])["text"]);
    let text = from_file["text"].as_str().unwrap();
    let stop: String = text.chars().skip(3).take(2).collect();
    let stopped = greedy(&["--prompt", "let ", "--stop", &stop]);
    assert_eq!(stopped["text"].as_str(), text.split(&stop).next());
    assert_eq!(stopped["generation"]["finish"]["stop"], stop.as_str());
}

/// A prompt processed once, continued from the file of its state as if it had just been read.
#[test]
fn a_saved_state_goes_on_like_the_whole_text() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("prompt.state");
    let greedy = |more: &[&str]| {
        json(
            &[
                &["generate", arg(model()), "--temperature", "0", "--json"],
                more,
            ]
            .concat(),
        )
    };
    let start = "fn main() { let x = ";
    let first = greedy(&[
        "--prompt",
        start,
        "--tokens",
        "4",
        "--save-state",
        arg(&state),
    ]);
    let said = first["text"].as_str().unwrap();
    for end in ["1;", "vec![]"] {
        let forked = greedy(&[
            "--load-state",
            arg(&state),
            "--prompt",
            end,
            "--tokens",
            "12",
        ]);
        let whole = greedy(&["--prompt", &format!("{start}{said}{end}"), "--tokens", "12"]);
        assert_eq!(forked["text"], whole["text"], "{end}");
    }
}

#[test]
fn eval_gives_bits_per_byte_of_a_text() {
    let score = json(&["eval", arg(model()), "--text", &text(), "--json"]);
    let bits = number(&score, "bits_per_byte");
    assert!((1.0..8.0).contains(&bits), "{score}");
    assert!(
        (number(&score, "loss") / std::f64::consts::LN_2 - bits).abs() < 1e-6,
        "a token is a byte: {score}"
    );
    let plain = succeed(&["eval", arg(model()), "--text", &text()]);
    assert!(
        plain.starts_with(&format!("{bits:.4} bits per byte")),
        "{plain}"
    );
}

#[test]
fn mixers_lists_the_registry() {
    let list = json(&["mixers", "--width", "256", "--json"]);
    let list = list.as_array().unwrap();
    for mixer in list {
        assert!(
            !mixer["name"].as_str().unwrap().is_empty()
                && !mixer["paper"].as_str().unwrap().is_empty()
        );
        assert!(
            mixer["forms"]
                .as_array()
                .unwrap()
                .contains(&"reference".into()),
            "{mixer}"
        );
        assert_eq!(mixer["devices"][0], "cpu");
        let page = mixer["page"].as_str().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        assert!(root.join(page).is_file(), "{page}");
        assert!(
            number(mixer, "state_bytes") > 0.0 && number(mixer, "multiply_adds") > 0.0,
            "{mixer}"
        );
    }
    let grows =
        |name: &str| list.iter().find(|m| m["name"] == name).unwrap()["state_grows"].clone();
    assert_eq!(
        (grows("attention"), grows("gdn2")),
        (true.into(), false.into())
    );
    let table = succeed(&["mixers"]);
    for key in ["name", "paper", "page"] {
        let told = |m: &Value| table.contains(m[key].as_str().unwrap());
        assert!(list.iter().all(told), "{key}: {table}");
    }
}

#[test]
fn tasks_are_listed_with_their_knobs_and_can_be_trained_on() {
    let list = json(&["tasks", "--json"]);
    let task = |name: &str| list.as_array().unwrap().iter().find(|t| t["name"] == name);
    assert_eq!(task("mqar").unwrap()["knobs"]["pairs"], 8);
    let table = succeed(&["tasks"]);
    assert!(
        table.contains("state_tracking") && table.contains("pairs = 8"),
        "{table}"
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("swaps.toml");
    let text = "[task]\nname = \"swaps\"\nlength = 15\n[model]\nd_model = 16\nlayers = \"gdn\"\n\
                [train]\nsteps = 4\nbatch = 2\n[eval]\nbatches = 2\nlengths = [25]\n";
    let out = dir.path().join("run");
    std::fs::write(&path, format!("out = {out:?}\n{text}")).unwrap();
    let result = json(&["train", arg(&path), "--json", "--set", "task.slots=3"]);
    let evaluation = &result["summary"]["progress"]["evaluation"];
    assert_eq!(evaluation["lengths"][0]["length"], 25, "{result}");
    assert!(number(evaluation, "accuracy") <= 1.0, "{result}");

    let grid = "[study.grid]\nmodel.mixer.gdn.allow_neg_eigval = [true, false]\n";
    std::fs::write(&path, format!("out = {out:?}\n{text}{grid}")).unwrap();
    let study = json(&["study", arg(&path), "--json"]);
    assert_eq!(study["metric"], "accuracy");
    assert!(number(&study["runs"][0]["metrics"], "accuracy@25") <= 1.0);
    assert!(number(&study["runs"][0], "state_bytes") > 0.0, "{study}");
    assert!(out.join("plots/accuracy-length.svg").is_file());
}

#[test]
fn explain_says_what_runs_and_why() {
    let result = json(&["explain", arg(model()), "--json"]);
    let layers = result["layers"].as_array().unwrap();
    let mixers: Vec<&str> = layers
        .iter()
        .map(|l| l["mixer"].as_str().unwrap())
        .collect();
    assert_eq!(mixers, ["gdn2", "attention"]);
    assert_eq!(
        (&layers[0]["prefill"]["form"], &layers[0]["decode"]["form"]),
        (&"chunk".into(), &"step".into())
    );
    assert!(
        layers
            .iter()
            .all(|l| !l["training"]["why"].as_str().unwrap().is_empty())
    );
    let plain = succeed(&["explain", arg(model())]);
    assert!(plain.contains("gdn2") && plain.contains("chunk"), "{plain}");
}

fn study(dir: &Path) -> String {
    let path = dir.join("grid.toml");
    let grid = "[study.grid]\nmodel.layers = [\"gdn2\", \"attention\"]\ntrain.seed = [0, 1]\n";
    std::fs::write(&path, recipe(&dir.join("grid"), 4, "") + grid).unwrap();
    arg(&path).to_string()
}

#[test]
fn a_study_in_shards_is_one_study() {
    let dir = tempfile::tempdir().unwrap();
    let path = study(dir.path());
    let half = json(&["study", &path, "--shard", "2/2", "--json"]);
    assert_eq!(
        (half["runs"].as_array().unwrap().len(), &half["planned"]),
        (2, &4.into())
    );
    let whole = json(&["study", &path, "--shard", "1/2", "--json"]);
    let runs = whole["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    assert!(
        runs.iter()
            .all(|r| number(&r["metrics"], "bits_per_byte") < 9.0)
    );
    assert!(
        runs.iter()
            .all(|r| !r["curves"]["bits_per_byte"].as_array().unwrap().is_empty()),
        "{}",
        runs[0]["curves"]
    );
    let out = dir.path().join("grid");
    let results: Value =
        serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["runs"].as_array().unwrap().len(), 4);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("gdn2") && page.contains("<svg"));
    assert!(out.join("plots/bits_per_byte.svg").is_file());
}

#[test]
fn a_study_goes_on_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = study(dir.path());
    let first = json(&["study", &path, "--json"]);
    let runs: Vec<String> = first["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap().to_string())
        .collect();
    let file = |name: &str| dir.path().join("grid").join(name).join("run.json");
    std::fs::remove_file(file(&runs[1])).unwrap();
    let time = |name: &str| std::fs::metadata(file(name)).unwrap().modified().unwrap();
    let kept = time(&runs[0]);
    let output = run(&["study", &path]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(time(&runs[0]), kept, "a finished run is not run again");
    assert!(file(&runs[1]).is_file());
    assert!(common::stdout(&output).contains("bits per byte"));
}
