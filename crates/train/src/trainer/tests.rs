use std::cell::Cell;

use serde_json::json;
use weft_mixers::{Init, Params, Scope};
use weft_models::tokenizer::Tokenizer;
use weft_models::{Config, LanguageModel, Run};
use weft_tensor::{DType, Device, Rng, Tensor};

use super::*;
use crate::Error;
use crate::evaluate::{EvalConfig, HeldOut, Score};
use crate::recipe::{Budget, Muon, Optimizer, Recipe};
use crate::schedule::Shape;

const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

fn language(run: Run) -> LanguageTask {
    let config = Config::new(256, 32, vec!["gdn2".into(), "attention".into()]);
    let tokenizer = Tokenizer::byte_level(&[]).unwrap();
    LanguageTask {
        model: LanguageModel::new(&config, 1, &Device::Cpu).unwrap(),
        held_out: Some(HeldOut::new(&[TEXT], &tokenizer).unwrap()),
        tokenizer,
        evaluation: EvalConfig::default(),
        run,
    }
}

/// Rows at random places of the text, repeated without end; batch n depends on the seed and n alone.
struct Text {
    rows: usize,
    next: u64,
    fail_at: Option<u64>,
}

impl Text {
    fn new(rows: usize) -> Self {
        Self {
            rows,
            next: 0,
            fail_at: None,
        }
    }
}

impl BatchSource for Text {
    fn next_batch(&mut self) -> Result<Tensor> {
        if Some(self.next) == self.fail_at {
            return Err(Error::Data("the disk is gone".into()));
        }
        let mut ids = Vec::new();
        for _ in 0..self.rows {
            let start = Rng::stream(5, self.next).below(TEXT.len() as u64) as usize;
            let bytes = TEXT.bytes().cycle().skip(start).take(25);
            ids.extend(bytes.map(i64::from));
            self.next += 1;
        }
        Ok(Tensor::from_vec(ids, &[self.rows, 25], &Device::Cpu)?)
    }
    fn position(&self) -> Result<Value> {
        Ok(json!(self.next))
    }
    fn seek(&mut self, position: &Value) -> Result<()> {
        self.next = position.as_u64().unwrap();
        Ok(())
    }
}

fn recipe(steps: u64) -> TrainRecipe {
    let text = r#"
        model = { d_model = 32, layers = "gdn2" }
        data.text = "."
        train = { steps = 1000, lr = 0.01, warmup = 5, checkpoint_every = 0 }
    "#;
    TrainRecipe {
        budget: Budget::Steps(steps),
        ..Recipe::parse(text, "test.toml").unwrap().train
    }
}

/// The same with Muon for the matrices.
fn muon(recipe: &TrainRecipe) -> TrainRecipe {
    let muon = Muon {
        adamw: recipe.optimizer.adamw().clone(),
        muon_lr: 0.02,
        muon_momentum: 0.95,
    };
    TrainRecipe {
        optimizer: Optimizer::Muon(muon),
        ..recipe.clone()
    }
}

fn place(folder: &Path) -> Place {
    Place {
        folder: folder.to_owned(),
        run: json!({"seed": 5}),
        start: Start::Continue,
        show: None,
    }
}

fn train(
    folder: &Path,
    task: &dyn Task,
    batches: &mut Text,
    recipe: &TrainRecipe,
) -> Result<Summary> {
    Trainer::open(place(folder), task, batches, recipe, 2)?.run(&AtomicBool::new(false))
}

fn values(task: &dyn Task) -> Vec<Vec<f32>> {
    let params = task.params().iter();
    params.map(|p| p.get().to_vec().unwrap()).collect()
}

/// The lines of the log, without what depends on the clock.
fn log(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("tokens_per_second");
        line
    };
    text.lines().map(line).collect()
}

#[test]
fn the_loss_falls_in_f32_and_in_bf16_and_with_activations_computed_again() {
    let mut last = Vec::new();
    for (compute, checkpoint) in [
        (DType::F32, false),
        (DType::F32, true),
        (DType::BF16, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let task = language(Run {
            compute,
            checkpoint,
        });
        let summary = train(folder.path(), &task, &mut Text::new(4), &recipe(40)).unwrap();
        let first = log(folder.path())[0]["loss"].as_f64().unwrap();
        assert!((first - 256f64.ln()).abs() < 0.3, "{first}");
        assert!(summary.progress.loss < 0.5 * first, "{summary:?}");
        let evaluation = summary.progress.evaluation.clone().unwrap();
        assert!(evaluation.metrics()[0].1 < 5.0, "{evaluation:?}");
        assert!(summary.tokens_per_second > 0.0 && summary.times.backward > 0.0);
        assert_eq!(summary.progress.tokens, 40 * 4 * 24);
        last.push(values(&task));
    }
    assert_eq!(last[0], last[1], "computing again changes nothing");
    assert_ne!(last[0], last[2]);
}

#[test]
fn two_half_batches_make_the_step_of_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, halves) = (language(Run::default()), language(Run::default()));
    // Small and unclipped enough that a wrong average would show.
    let mut recipe = recipe(3);
    recipe.clip = 0.5;
    train(&folder.path().join("a"), &whole, &mut Text::new(4), &recipe).unwrap();
    recipe.accumulate = 2;
    train(
        &folder.path().join("b"),
        &halves,
        &mut Text::new(2),
        &recipe,
    )
    .unwrap();
    let (a, b) = (log(&folder.path().join("a")), log(&folder.path().join("b")));
    let steps = |lines: &[Value]| -> Vec<Value> {
        let steps = lines.iter().filter(|line| line.get("loss").is_some());
        steps.cloned().collect()
    };
    for (a, b) in steps(&a).iter().zip(&steps(&b)) {
        assert_eq!(a["tokens"], b["tokens"]);
        for key in ["loss", "grad_norm"] {
            let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((a / b - 1.0).abs() < 1e-4, "{key}: {a} and {b}");
        }
    }
    for (a, b) in values(&whole)
        .iter()
        .flatten()
        .zip(values(&halves).iter().flatten())
    {
        // Adam's first steps have size lr whatever the gradient: rounding decides the sign of those near zero.
        assert!((a - b).abs() < 3e-3, "{a} and {b}");
    }
}

#[test]
fn a_run_that_is_stopped_goes_on_to_the_same_bits() {
    for mut recipe in [recipe(9), muon(&recipe(9))] {
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        recipe.checkpoint_every = 4;
        let want = language(Run::default());
        let summary = train(&whole, &want, &mut Text::new(2), &recipe).unwrap();
        assert_eq!(summary.outcome, Outcome::Finished);

        // Killed in step 7: the checkpoint of step 4 is the last.
        let mut batches = Text::new(2);
        batches.fail_at = Some(12);
        let error = train(&parts, &language(Run::default()), &mut batches, &recipe).unwrap_err();
        assert_eq!(error.to_string(), "the disk is gone");
        // Asked to stop at once: nothing is lost, and nothing is done.
        let task = language(Run::default());
        let mut batches = Text::new(2);
        let mut trainer = Trainer::open(place(&parts), &task, &mut batches, &recipe, 2).unwrap();
        assert_eq!(trainer.progress().step, 4);
        let stopped = trainer.run(&AtomicBool::new(true)).unwrap();
        assert_eq!(
            (stopped.outcome, stopped.progress.step),
            (Outcome::Interrupted, 4)
        );
        drop(trainer);

        let got = language(Run::default());
        let resumed = train(&parts, &got, &mut Text::new(2), &recipe).unwrap();
        assert_eq!(values(&got), values(&want));
        assert_eq!(log(&parts), log(&whole));
        let state = |folder: &Path| {
            let path = folder.join("step-000009").join(checkpoint::OPTIMIZER_FILE);
            std::fs::read(path).unwrap()
        };
        assert_eq!(state(&parts), state(&whole));
        assert_eq!(resumed.progress.evaluation, summary.progress.evaluation);
        let model = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(model(&parts), model(&whole));
    }
}

#[test]
fn a_finished_run_is_not_trained_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = train(
        folder.path(),
        &language(Run::default()),
        &mut Text::new(2),
        &recipe(3),
    )
    .unwrap();
    let again = train(
        folder.path(),
        &language(Run::default()),
        &mut Text::new(2),
        &recipe(3),
    )
    .unwrap();
    assert_eq!(first.progress, again.progress);
    assert_eq!(again.times.training(), 0.0);
    assert_eq!(
        log(folder.path()).len(),
        5,
        "three steps, evaluations after 2 and 3"
    );
}

#[test]
fn checkpoints_of_other_runs_and_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    train(
        folder.path(),
        &language(Run::default()),
        &mut Text::new(2),
        &recipe(2),
    )
    .unwrap();
    let refuse = |task: &LanguageTask, run: Value, recipe: &TrainRecipe| {
        let mut batches = Text::new(2);
        let place = Place {
            run,
            ..place(folder.path())
        };
        let open = Trainer::open(place, task, &mut batches, recipe, 2);
        open.err().unwrap().to_string()
    };
    let same = json!({"seed": 5});
    let error = refuse(&language(Run::default()), json!({"seed": 6}), &recipe(4));
    assert!(error.contains("other settings"), "{error}");
    let mut other = language(Run::default());
    let config = Config::new(256, 48, vec!["gdn2".into()]);
    other.model = LanguageModel::new(&config, 1, &Device::Cpu).unwrap();
    let error = refuse(&other, same.clone(), &recipe(4));
    assert!(error.contains("another model"), "{error}");
    let error = refuse(&language(Run::default()), same, &muon(&recipe(4)));
    assert!(error.contains("momentum"), "{error}");
}

/// The square of one parameter, not finite at given calls: through the loss, or through the gradient alone.
struct Fragile {
    params: Params,
    calls: Cell<u32>,
    bad_loss: Vec<u32>,
    bad_gradient: Vec<u32>,
}

impl Fragile {
    fn new(bad_loss: &[u32], bad_gradient: &[u32]) -> Self {
        let mut params = Params::new();
        let mut scope = Scope::random(&mut params, 0, DType::F32, &Device::Cpu);
        scope.weight("a.weight", &[1], Init::Const(2.0)).unwrap();
        scope.weight("b.weight", &[1], Init::Const(1.0)).unwrap();
        Self {
            params,
            calls: Cell::new(0),
            bad_loss: bad_loss.to_vec(),
            bad_gradient: bad_gradient.to_vec(),
        }
    }
}

impl Task for Fragile {
    fn params(&self) -> &Params {
        &self.params
    }
    fn loss(&self, _: &Tensor) -> Result<Tensor> {
        let call = self.calls.get() + 1;
        self.calls.set(call);
        let [a, b] = ["a.weight", "b.weight"].map(|n| self.params.get(n).unwrap().get());
        let loss = a.square()?.add(&b.square()?)?;
        if self.bad_loss.contains(&call) {
            return Ok(loss.mul_scalar(f64::NAN)?);
        }
        if self.bad_gradient.contains(&call) {
            // sqrt(0) has an infinite slope.
            return Ok(loss.add(&b.sub(&b.detach())?.sqrt()?)?);
        }
        Ok(loss)
    }
    fn tokens(&self, _: &Tensor) -> usize {
        1
    }
    fn evaluate(&self) -> Result<Option<Score>> {
        Ok(None)
    }
    fn save(&self, _: &Path) -> Result<()> {
        Ok(())
    }
    fn load(&self, _: &Path) -> Result<()> {
        Ok(())
    }
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let task = Fragile::new(&[2, 3], &[5]);
    let summary = train(folder.path(), &task, &mut Text::new(1), &recipe(6)).unwrap();
    let progress = summary.progress;
    assert_eq!(
        (progress.step, progress.skipped, progress.skipped_in_a_row),
        (6, 3, 0)
    );
    let lines = log(folder.path());
    let skipped: Vec<u64> = lines
        .iter()
        .map(|l| l["skipped"].as_u64().unwrap())
        .collect();
    assert_eq!(skipped, [0, 1, 2, 2, 3, 3]);
    // The losses say where the parameters stood: unchanged by the skipped steps.
    assert_eq!(lines[1]["loss"], Value::Null);
    assert_eq!(lines[4]["grad_norm"], Value::Null);
    let loss = |i: usize| lines[i]["loss"].as_f64().unwrap();
    assert!(loss(3) < loss(0) && loss(4) < loss(3));
    assert_eq!(loss(5), loss(4));
}

#[test]
fn too_many_in_a_row_end_the_run_with_the_tensors_named() {
    let folder = tempfile::tempdir().unwrap();
    let task = Fragile::new(&[], &[4, 5, 6, 7]);
    let mut recipe = recipe(20);
    recipe.nonfinite_limit = 3;
    recipe.checkpoint_every = 1;
    let error = train(folder.path(), &task, &mut Text::new(1), &recipe).unwrap_err();
    let text = error.to_string();
    for part in [
        "3 steps in a row",
        "last one step 6",
        "b.weight",
        "lower learning rate",
        DUMP_FILE,
    ] {
        assert!(text.contains(part), "{text}");
    }
    let dump = std::fs::read(folder.path().join(DUMP_FILE)).unwrap();
    let dump: Value = serde_json::from_slice(&dump).unwrap();
    assert_eq!(dump[0]["gradient"]["infinite"], 0);
    assert_eq!(dump[1]["parameter"], "b.weight");
    assert_eq!(dump[1]["gradient"]["infinite"], 1);
    assert_eq!(dump[1]["value"]["nan"], 0);
}

#[test]
fn a_budget_of_tokens_or_minutes_ends_with_the_step_that_spends_it() {
    let folder = tempfile::tempdir().unwrap();
    let task = Fragile::new(&[], &[]);
    let recipe = TrainRecipe {
        budget: Budget::Tokens(5),
        ..recipe(1)
    };
    let summary = train(folder.path(), &task, &mut Text::new(1), &recipe).unwrap();
    assert_eq!((summary.progress.step, summary.progress.tokens), (5, 5));
    let recipe = TrainRecipe {
        budget: Budget::Minutes(0.001),
        ..recipe
    };
    let other: PathBuf = folder.path().join("minutes");
    let summary = train(&other, &task, &mut Text::new(1), &recipe).unwrap();
    assert!(
        (0.06..1.0).contains(&summary.progress.seconds),
        "{summary:?}"
    );
    assert!(summary.progress.step > 1);
}

#[test]
fn a_spent_budget_is_one_and_rates_follow_what_is_spent() {
    let progress = Progress {
        step: 25,
        tokens: 500,
        seconds: 30.0,
        ..Progress::default()
    };
    for budget in [
        Budget::Steps(100),
        Budget::Tokens(2000),
        Budget::Minutes(2.0),
    ] {
        assert_eq!(budget.spent(&progress), 0.25);
        let recipe = TrainRecipe {
            budget,
            shape: Shape::Linear,
            min_ratio: 0.0,
            ..recipe(1)
        };
        // Warm-up 5, then 95 steps down to 0: 20 of them are done.
        let want = 75.0 / 95.0;
        assert!((recipe.rate(&progress) - want).abs() < 1e-12);
        assert!((recipe.rate(&Progress::default()) - 1.0 / 6.0).abs() < 1e-12);
    }
    assert_eq!(Budget::Steps(10).spent(&progress), 1.0);
    assert_eq!(Budget::Steps(0).spent(&Progress::default()), 1.0);
}
