//! Wrong input of every kind: one sentence that says what to do, exit code 1, no panic.

mod common;

use std::path::{Path, PathBuf};

use common::{arg, fail, model, other_model, recipe, text};
use serde_json::Value;

/// `weft train` on the tiny recipe with a part replaced.
fn train_with(from: &str, to: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let text = recipe(&dir.path().join("run"), 5, "");
    assert!(text.contains(from), "{text}");
    let path = dir.path().join("tiny.toml");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    fail(&["train", arg(&path)])
}

fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn recipes() {
    says(
        &fail(&["train", "no/such.toml"]),
        &["no/such.toml", "cannot read"],
    );
    says(
        &train_with("d_model", "d_modle"),
        &["tiny.toml:3", "d_modle", "d_model"],
    );
    says(&train_with("[train]", "[trian]"), &["trian", "train"]);
    says(
        &train_with("steps = 5", "steps = \"many\""),
        &["tiny.toml:9", "steps"],
    );
    says(
        &train_with("steps = 5", "steps = "),
        &["tiny.toml:9", "not valid TOML"],
    );
    says(
        &train_with("[data]", "[task]\nname = \"mqra\"\n[data]"),
        &["tiny.toml", "`task`", "`data`"],
    );
    says(
        &train_with("gdn2 + attention", "gdn2 + atention"),
        &["atention", "attention"],
    );
    says(
        &train_with("[eval]", "[study.grid]\ntrain.seed = [0]\n[eval]"),
        &["weft study"],
    );
    let plain = tempfile::tempdir().unwrap();
    let path = plain.path().join("tiny.toml");
    std::fs::write(&path, recipe(&plain.path().join("run"), 5, "")).unwrap();
    says(&fail(&["study", arg(&path)]), &["tiny.toml", "weft train"]);
    says(
        &fail(&["train", arg(&path), "--set", "train.stepz=3"]),
        &["--set", "stepz", "steps"],
    );
    says(
        &fail(&["train", arg(&path), "--set", "train.steps"]),
        &["--set", "train.steps", "key=value"],
    );
}

#[test]
fn texts() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    };
    let empty = file("empty.txt", b"");
    let short = file("short.txt", b"too short");
    let bad = file("bad.txt", b"caf\xE9");
    for (path, parts) in [
        (
            "/no/such/text.txt",
            &["/no/such/text.txt", "cannot read"][..],
        ),
        (&empty, &["empty.txt", "no text in"]),
        (&short, &["64"]),
        (&bad, &["bad.txt", "byte 3", "not UTF-8"]),
    ] {
        says(&train_with(&text(), path), parts);
        if path != short {
            says(&fail(&["eval", arg(model()), "--text", path]), parts);
        }
        let out = dir.path().join("quick");
        let parts = if path == short { &[][..] } else { parts };
        says(
            &fail(&[
                "quickstart",
                "--text",
                path,
                "--minutes",
                "0.1",
                "--out",
                arg(&out),
            ]),
            parts,
        );
    }
    let lost = dir.path().join("lost.txt");
    says(
        &fail(&["generate", arg(model()), "--prompt-file", arg(&lost)]),
        &["cannot read", "lost.txt"],
    );
    says(
        &fail(&["generate", arg(model()), "--prompt-file", &bad]),
        &["bad.txt", "UTF-8"],
    );
}

#[test]
fn prompts_and_settings() {
    let generate = |more: &[&str]| fail(&[&["generate", arg(model())], more].concat());
    says(&generate(&["--prompt", ""]), &["prompt is empty"]);
    says(&generate(&[]), &["prompt is empty"]);
    says(
        &generate(&["--prompt", "a", "--tokens", "0"]),
        &["max_tokens", "1 or more"],
    );
    says(
        &generate(&["--prompt", "a", "--temperature", "NaN"]),
        &["temperature"],
    );
    says(
        &generate(&["--prompt", "a", "--top-p", "7"]),
        &["top_p", "(0, 1]"],
    );
    says(
        &generate(&["--prompt", "a", "--repetition-penalty=-1"]),
        &["repetition_penalty"],
    );
}

#[test]
fn states_of_other_models_and_damaged_ones() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a.state");
    common::succeed(&[
        "generate",
        arg(model()),
        "--prompt",
        "a",
        "--tokens",
        "2",
        "--save-state",
        arg(&state),
    ]);
    let load = |model: &Path, state: &Path| {
        fail(&[
            "generate",
            arg(model),
            "--prompt",
            "b",
            "--load-state",
            arg(state),
        ])
    };
    says(&load(other_model(), &state), &["a.state"]);
    let bytes = std::fs::read(&state).unwrap();
    for keep in [0, 1, 9, bytes.len() / 2, bytes.len() - 1] {
        let cut = dir.path().join("cut.state");
        std::fs::write(&cut, &bytes[..keep]).unwrap();
        says(&load(model(), &cut), &["cut.state"]);
    }
    says(
        &load(model(), &dir.path().join("none.state")),
        &["none.state"],
    );
    says(
        &fail(&[
            "generate",
            arg(model()),
            "--prompt",
            "b",
            "--tokens",
            "2",
            "--save-state",
            "/no/such/a.state",
        ]),
        &["/no/such"],
    );
}

/// A copy of the model folder to be damaged.
fn copy(dir: &Path) -> PathBuf {
    let to = dir.join("copy");
    std::fs::create_dir_all(&to).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(model().join(file), to.join(file)).unwrap();
    }
    to
}

/// The weights with another header, the data as it was.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], &header, &bytes[end..]].concat()
}

#[test]
fn lying_weights() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy(dir.path());
    let path = folder.join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let embed = "model.embed_tokens.weight";
    let norm = "model.norm.weight";
    let mut long = good.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut beyond = good.clone();
    beyond[..8].copy_from_slice(&(good.len() as u64).to_le_bytes());
    let damaged = [
        ("truncated data", good[..good.len() - 5].to_vec()),
        ("truncated header", good[..20].to_vec()),
        ("nothing", vec![]),
        ("header of 2^64", long),
        ("header longer than the file", beyond),
        (
            "overlap",
            with_header(&good, |h| {
                h[norm]["data_offsets"] = h[embed]["data_offsets"].clone()
            }),
        ),
        (
            "dtype",
            with_header(&good, |h| h[norm]["dtype"] = "I32".into()),
        ),
        (
            "shape",
            with_header(&good, |h| {
                h[embed]["shape"] = serde_json::json!([1u64 << 40, 1u64 << 40])
            }),
        ),
        (
            "name",
            with_header(&good, |h| {
                let h = h.as_object_mut().unwrap();
                let tensor = h.remove(norm).unwrap();
                h.insert("model.nurm.weight".into(), tensor);
            }),
        ),
    ];
    for (what, bytes) in damaged {
        std::fs::write(&path, bytes).unwrap();
        for command in [
            &["generate", arg(&folder), "--prompt", "a"][..],
            &["explain", arg(&folder)],
            &["eval", arg(&folder), "--text", &text()],
        ] {
            let error = fail(command);
            assert!(
                error.contains("model.safetensors") || error.contains("model.n"),
                "{what}: {error}"
            );
        }
    }
    std::fs::remove_file(&path).unwrap();
    says(&fail(&["explain", arg(&folder)]), &["model.safetensors"]);
}

#[test]
fn folders_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    says(
        &fail(&["explain", arg(&dir.path().join("none"))]),
        &["none", "is not a folder"],
    );
    says(
        &fail(&["explain", arg(dir.path())]),
        &["config.json", "is missing"],
    );

    let folder = copy(dir.path());
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let change = |key: &str, value: Value| {
        let mut config: Value = serde_json::from_str(&config).unwrap();
        assert!(config.get(key).is_some(), "{key} is in {config}");
        config[key] = value;
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        fail(&["generate", arg(&folder), "--prompt", "a"])
    };
    says(&change("vocab_size", 100.into()), &["embed_tokens"]);
    says(
        &change("hidden_size", (1u64 << 40).into()),
        &["config.json"],
    );
    says(
        &change("layer_types", serde_json::json!(["gdn2", "atention"])),
        &["atention"],
    );
    std::fs::write(folder.join("config.json"), &config[..config.len() / 2]).unwrap();
    says(&fail(&["explain", arg(&folder)]), &["config.json"]);
    std::fs::write(folder.join("config.json"), &config).unwrap();

    // A vocabulary larger than the model's.
    let quick = dir.path().join("bpe.toml");
    let bpe = recipe(&dir.path().join("bpe"), 2, "")
        .replace("sequence", "tokenizer = \"bpe:300\"\nsequence");
    std::fs::write(&quick, bpe).unwrap();
    common::succeed(&["train", arg(&quick)]);
    std::fs::copy(
        dir.path().join("bpe/tokenizer.json"),
        folder.join("tokenizer.json"),
    )
    .unwrap();
    says(
        &fail(&["generate", arg(&folder), "--prompt", "a"]),
        &["tokenizer.json", "300", "257"],
    );
    std::fs::write(folder.join("tokenizer.json"), "{").unwrap();
    says(
        &fail(&["generate", arg(&folder), "--prompt", "a"]),
        &["tokenizer.json"],
    );
}

/// A token shard of our format: 20,000 tokens of two bytes each, one of them 60,000.
fn shard(vocabulary: u64) -> Vec<u8> {
    let tokens: Vec<u16> = (0..20_000)
        .map(|i| if i == 777 { 60_000 } else { i % 200 })
        .collect();
    let mut bytes = b"WEFTTOKS".to_vec();
    bytes.extend([1u32, 2].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(
        [vocabulary, tokens.len() as u64]
            .iter()
            .flat_map(|n| n.to_le_bytes()),
    );
    bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    bytes
}

#[test]
fn tokens_out_of_range() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.toml");
    let file = dir.path().join("tokens.bin");
    let source = format!("text = [{:?}]", common::text());
    let shards = format!(
        "shards = [{file:?}]\ntokenizer = {:?}",
        model().join("tokenizer.json")
    );
    let text = recipe(&dir.path().join("run"), 300, "");
    assert!(text.contains(&source), "{text}");
    std::fs::write(&path, text.replace(&source, &shards)).unwrap();
    let train = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        fail(&["train", arg(&path)])
    };
    says(&train(&shard(257)), &["tokens.bin", "60000"]);
    says(&train(&shard(65_000)), &["65000", "257"]);
    says(&train(&shard(257)[..39_000]), &["tokens.bin"]);
    says(
        &train(b"no shard at all"),
        &["tokens.bin", "neither a token shard"],
    );
}

#[test]
fn a_run_told_otherwise_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.toml");
    std::fs::write(&path, recipe(&dir.path().join("run"), 5, "")).unwrap();
    common::succeed(&["train", arg(&path)]);
    std::fs::write(&path, recipe(&dir.path().join("run"), 5, "seed = 9")).unwrap();
    fail(&["train", arg(&path)]);
    common::succeed(&["train", arg(&path), "--anew"]);
}
