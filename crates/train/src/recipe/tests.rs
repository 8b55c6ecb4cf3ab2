//! What is read, what is refused, and where the errors point.

use super::*;
use crate::schedule::Shape;

pub(super) const SMALL: &str = r#"
[model]
d_model = 128
layers = "3*gdn2 + attention"
[data]
text = "docs"
[train]
steps = 50
"#;

const FULL: &str = r#"
out = "runs/full"

[model]
d_model = 256
layers = ["2*(gdn2 + swa)", "attention"]
depth = 12
heads = 6
head_dim = 48
mlp = "gelu"
mlp_hidden = 700
vocab = 5000
tie_embeddings = false
dtype = "bf16"

[model.mixer.swa]
window = 64
scale = 0.5
names = ["a", "b"]

[data]
shards = ["a.bin", "more"]
tokenizer = "./tokenizer.json"
held_out = 0.05
sequence = 512

[train]
tokens = 1_000_000
batch = 16
accumulate = 4
optimizer = "muon"
lr = 3e-3
betas = [0.8, 0.99]
eps = 1e-9
weight_decay = 0
muon_lr = 0.01
muon_momentum = 0.9
schedule = "wsd"
decay = 0.3
warmup = 20
min_ratio = 0.05
clip = 0.5
seed = 7
checkpoint_every = 100
keep = 5
bf16 = true
recompute = true
nonfinite_limit = 3

[eval]
every = 50
batches = 8
"#;

pub(super) fn parse(text: &str) -> Result<Recipe> {
    Recipe::parse(text, "r.toml")
}

fn data(recipe: &Recipe) -> &DataRecipe {
    match &recipe.source {
        Source::Data(data) => data,
        Source::Task(task) => panic!("{task:?}"),
    }
}

/// The error of the small recipe with one line replaced.
pub(super) fn refused(line: &str, by: &str) -> String {
    assert!(SMALL.contains(line));
    parse(&SMALL.replace(line, by)).unwrap_err().to_string()
}

#[test]
fn defaults_are_filled_in() {
    let recipe = parse(SMALL).unwrap();
    assert_eq!(recipe.out, Path::new("runs/r"));
    let model = &recipe.model;
    assert_eq!((model.depth, model.heads, model.head_dim), (4, 2, 64));
    assert_eq!(
        (model.mlp, model.mlp_width),
        (Mlp::Swiglu, MlpWidth::Hidden(352))
    );
    assert_eq!(
        (model.vocab, model.tie_embeddings, model.dtype),
        (None, true, Dtype::F32)
    );
    let data = data(&recipe);
    assert_eq!(data.source, DataSource::Text(vec!["docs".into()]));
    assert_eq!(data.tokenizer, Some(TokenizerRecipe::Byte));
    assert_eq!((data.held_out, data.sequence), (0.1, 256));
    assert_eq!(
        (recipe.train.warmup, recipe.train.shape),
        (5, Shape::Cosine)
    );
    assert!(matches!(&recipe.train.optimizer, Optimizer::AdamW(adamw) if adamw.lr == 1e-3));
    let schedule = recipe.train.schedule(0.5, 50);
    assert_eq!(
        (schedule.peak, schedule.warmup, schedule.total),
        (0.5, 5, 50)
    );
}

#[test]
fn every_key_is_read() {
    let recipe = parse(FULL).unwrap();
    let model = &recipe.model;
    assert_eq!(
        model.layers.period(),
        ["gdn2", "swa", "gdn2", "swa", "attention"]
    );
    assert_eq!((model.depth, model.heads, model.head_dim), (12, 6, 48));
    assert_eq!(
        (model.mlp, model.mlp_width, model.vocab),
        (Mlp::Gelu, MlpWidth::Hidden(700), Some(5000))
    );
    assert_eq!((model.tie_embeddings, model.dtype), (false, Dtype::Bf16));
    let swa = serde_json::json!({"window": 64, "scale": 0.5, "names": ["a", "b"]});
    assert_eq!(model.mixer["swa"], swa);
    let data = data(&recipe);
    assert_eq!(
        data.source,
        DataSource::Shards(vec!["a.bin".into(), "more".into()])
    );
    assert_eq!(
        data.tokenizer,
        Some(TokenizerRecipe::Path("./tokenizer.json".into()))
    );
    let adamw = AdamW {
        lr: 3e-3,
        betas: [0.8, 0.99],
        eps: 1e-9,
        weight_decay: 0.0,
    };
    let expected = TrainRecipe {
        budget: Budget::Tokens(1_000_000),
        batch: 16,
        accumulate: 4,
        optimizer: Optimizer::Muon(Muon {
            adamw,
            muon_lr: 0.01,
            muon_momentum: 0.9,
        }),
        shape: Shape::Wsd { decay: 0.3 },
        warmup: 20,
        min_ratio: 0.05,
        clip: 0.5,
        seed: 7,
        checkpoint_every: 100,
        keep: 5,
        bf16: true,
        recompute: true,
        nonfinite_limit: 3,
    };
    assert_eq!(recipe.train, expected);
    let eval = EvalRecipe {
        every: 50,
        batches: 8,
        lengths: vec![],
        tail: None,
    };
    assert_eq!(recipe.eval, eval);
}

#[test]
fn a_written_recipe_reads_back() {
    let minutes = SMALL.replace("steps = 50", "minutes = 2.5");
    let bpe = SMALL.replace(
        "[train]",
        "tokenizer = \"bpe:1024\"\n[train]\nschedule = \"linear\"",
    );
    let equal = SMALL.replace("d_model = 128", "d_model = 128\nparameters = 100_000");
    let task = SMALL.replace(
        "[data]\ntext = \"docs\"",
        "[eval]\nlengths = [64, 128]\ntail = 0.125\n[task]\nname = \"mqar\"\npairs = 4",
    );
    for text in [SMALL, FULL, &minutes, &bpe, &equal, &task] {
        let recipe = parse(text).unwrap();
        let written = recipe.to_toml().unwrap();
        let again = Recipe::parse(&written, "other.toml").unwrap();
        assert_eq!(again, recipe, "{written}");
    }
}

#[test]
fn unknown_keys_are_named_with_line_and_nearest_key() {
    let cases = [
        (
            "d_model = 128",
            "d_modle = 128",
            "r.toml:3: unknown key `model.d_modle`, did you mean `model.d_model`?",
        ),
        (
            "d_model = 128",
            "d_model = 128\nhaeds = 2",
            "r.toml:4: unknown key `model.haeds`, did you mean `model.heads`?",
        ),
        (
            "[train]",
            "[trian]",
            "r.toml:7: unknown key `trian`, did you mean `train`?",
        ),
        (
            "steps = 50",
            "steps = 50\n[evla]",
            "r.toml:9: unknown key `evla`, did you mean `eval`?",
        ),
        (
            "steps = 50",
            "stpes = 50",
            "r.toml:8: unknown key `train.stpes`, did you mean `train.steps`?",
        ),
        (
            "text = \"docs\"",
            "text = \"docs\"\nzebra = 1",
            "r.toml:7: unknown key `data.zebra`, known here are text, shards, tokenizer, held_out, sequence",
        ),
        (
            "steps = 50",
            "steps = 50\n[extra]",
            "r.toml:9: unknown key `extra`, known here are out, model, data, task, train, eval",
        ),
    ];
    for (line, by, expected) in cases {
        assert_eq!(refused(line, by), expected);
    }
}

#[test]
fn wrong_types_ranges_and_contradictions_give_one_sentence() {
    let (layers, text, steps) = (
        "layers = \"3*gdn2 + attention\"",
        "text = \"docs\"",
        "steps = 50",
    );
    let d_model = "d_model = 128";
    let with_steps = |line: &str| format!("{steps}\n{line}");
    let cases = [
        (
            d_model,
            "d_model = \"big\"".into(),
            "r.toml:3: `model.d_model` must be a whole number from 1 to 1048576, not the text \"big\"",
        ),
        (
            d_model,
            "d_model = 0".into(),
            "must be a whole number from 1",
        ),
        (d_model, "d_model = -4".into(), "not -4"),
        (d_model, "d_model = 12.5".into(), "not 12.5"),
        (
            d_model,
            "d_model = 99999999999999999999".into(),
            "too large a number",
        ),
        (
            d_model,
            "d_model = 1979-05-27".into(),
            "no key takes a date",
        ),
        (
            d_model,
            "".into(),
            "r.toml:2: the key `model.d_model` is missing",
        ),
        (
            d_model,
            "d_model = 100\nheads = 3".into(),
            "does not divide d_model 100: set head_dim",
        ),
        (
            d_model,
            "d_model = 128\nmlp = \"relu\"".into(),
            "must be one of \"swiglu\", \"gelu\", \"gelu_tanh\", not the text \"relu\"",
        ),
        (
            d_model,
            "d_model = 128\ntie_embeddings = 1".into(),
            "must be true or false, not 1",
        ),
        (
            d_model,
            "d_model = 128\ndepth = 5\nrepeat = 2".into(),
            "give one of them",
        ),
        (
            d_model,
            "d_model = 128\nrepeat = 5000".into(),
            "from 1 to 1024, not 5000",
        ),
        (
            d_model,
            "d_model = 128\nmixer.swa = 3".into(),
            "a table for each mixer",
        ),
        (
            d_model,
            "d_model = 128\nmixer = 3".into(),
            "a table for each mixer",
        ),
        (
            d_model,
            "d_model = 128\nmixer.swa.x = nan".into(),
            "not finite",
        ),
        (
            layers,
            "layers = \"3*gdn2 +\"".into(),
            "r.toml:4: `model.layers` cannot be read: layer pattern \"3*gdn2 +\" is wrong at column 9",
        ),
        (
            layers,
            "layers = []".into(),
            "must be a text or a list of texts, not a list",
        ),
        (
            layers,
            "layers = [1]".into(),
            "must be a text or a list of texts",
        ),
        (text, "".into(), "the key `data.text` is missing"),
        (
            text,
            "text = \"a\"\nshards = \"b\"".into(),
            "give one of them",
        ),
        (
            text,
            "shards = \"b\"\ntokenizer = \"bpe:1000\"".into(),
            "cannot be learned from shards",
        ),
        (
            text,
            "text = \"a\"\ntokenizer = \"bpe:100\"".into(),
            "asks for \"100\" BPE tokens",
        ),
        (
            text,
            "text = \"a\"\ntokenizer = \"bpe:\"".into(),
            "asks for \"\" BPE tokens",
        ),
        (
            text,
            "text = \"a\"\ntokenizer = \"bytes\"".into(),
            "or a path such as \"./bytes\"",
        ),
        (
            text,
            "text = \"a\"\nheld_out = 0.6".into(),
            "must be a number from 0.0 to 0.5, not 0.6",
        ),
        (steps, "".into(), "the key `train.steps` is missing"),
        (
            steps,
            with_steps("minutes = 2"),
            "r.toml:9: `train.minutes` is a second length of the run beside `train.steps`",
        ),
        (
            steps,
            "minutes = inf".into(),
            "`train.minutes` must be a number",
        ),
        (steps, with_steps("lr = nan"), "not NaN"),
        (steps, with_steps("betas = [0.9]"), "must be two numbers"),
        (
            steps,
            with_steps("betas = [0.9, 1.0]"),
            "must be two numbers",
        ),
        (
            steps,
            with_steps("optimizer = \"adam\""),
            "one of \"adamw\", \"muon\"",
        ),
        (
            steps,
            with_steps("muon_lr = 0.1"),
            "needs `train.optimizer = \"muon\"`",
        ),
        (
            steps,
            with_steps("muon_momentum = 0.1"),
            "`train.muon_momentum` needs",
        ),
        (
            steps,
            with_steps("decay = 0.1"),
            "needs `train.schedule = \"wsd\"`",
        ),
        (
            steps,
            with_steps("warmup = 51"),
            "(51) is longer than the run of 50 steps",
        ),
        (steps, with_steps("seed = -1"), "not -1"),
        (steps, with_steps("keep = 0"), "`train.keep` must be"),
        (steps, with_steps("eval = 3"), "unknown key `train.eval`"),
        (steps, "steps = 50\n[study]".into(), "use `weft study`"),
        (steps, "steps = ".into(), "r.toml:8: not valid TOML"),
        (
            steps,
            "steps = 50\nsteps = 51".into(),
            "r.toml:9: not valid TOML",
        ),
        ("[data]", "[data]\n[[data]]".into(), "not valid TOML"),
    ];
    for (line, by, part) in cases {
        let error = refused(line, &by);
        assert!(error.contains(part), "{by:?}: {error}");
        assert!(
            error.starts_with("r.toml:") && !error.contains('\n'),
            "{error}"
        );
    }
    assert!(
        parse("eval = 3\n")
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
    assert!(
        parse("model = 3\n")
            .unwrap_err()
            .to_string()
            .contains("must be a table, not 3")
    );
}

#[test]
fn parameters_choose_the_width_of_the_mlps() {
    let recipe = parse(&SMALL.replace("d_model = 128", "d_model = 128\nparameters = 9000"));
    assert_eq!(recipe.unwrap().model.mlp_width, MlpWidth::Parameters(9000));
    let both = refused(
        "d_model = 128",
        "d_model = 128\nparameters = 9\nmlp_hidden = 9",
    );
    assert!(both.contains("give one of them"), "{both}");
}

#[test]
fn hostile_files_are_refused() {
    let deep = format!("model = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(
        parse(&deep)
            .unwrap_err()
            .to_string()
            .contains("not valid TOML")
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.toml");
    std::fs::write(&path, " ".repeat(MAX_BYTES as usize + 1)).unwrap();
    assert!(
        Recipe::load(&path)
            .unwrap_err()
            .to_string()
            .contains("larger than 1 MiB")
    );
    std::fs::write(&path, b"out = \"\xFF\"").unwrap();
    assert!(
        Recipe::load(&path)
            .unwrap_err()
            .to_string()
            .contains("large.toml")
    );
    let absent = Recipe::load(folder.path().join("absent.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        absent.contains("cannot read") && absent.contains("absent.toml"),
        "{absent}"
    );
}
