//! From a recipe to a trained model folder: the tokenizer and the data or the synthetic task, the model and the
//! trainer's settings, put together in one place. `weft train`, `weft study` and `weft quickstart` all come through here.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use weft_models::tokenizer::{END_OF_TEXT, Specials, Tokenizer};
use weft_models::{LanguageModel, Run};
use weft_tensor::{DType, Device};

use crate::data::{Batches, Corpus, TextSource, Windows};
use crate::error::{Error, Result};
use crate::evaluate::answers::Exam;
use crate::evaluate::{EvalConfig, HeldOut};
use crate::model::model_config;
use crate::recipe::{
    DataRecipe, DataSource, Recipe, Source, TaskRecipe, TokenizerRecipe, TrainRecipe,
};
use crate::trainer::{
    AnswerTask, BatchSource, Draws, LanguageTask, Place, Start, Summary, Task, Trainer,
};

/// Everything that a recipe describes, ready to run.
pub struct Prepared {
    /// The model, and what it is evaluated on.
    pub task: Box<dyn Task>,
    /// What it is trained on.
    pub batches: Box<dyn BatchSource>,
    /// How it is trained.
    pub train: TrainRecipe,
    /// Steps between evaluations; 0 means only at the end.
    pub evaluate_every: u64,
    /// The run in one value: a checkpoint of another one is not continued.
    pub run: Value,
}

/// Read the data and build the model on a device.
///
/// # Errors
/// When the data is missing, too short or does not fit the tokenizer, or the model cannot be built.
pub fn prepare(recipe: &Recipe, device: &Device) -> Result<Prepared> {
    let (task, batches) = match &recipe.source {
        Source::Data(data) => prepare_text(recipe, data, device)?,
        Source::Task(task) => prepare_answers(recipe, task, device)?,
    };
    Ok(Prepared {
        task,
        batches,
        train: recipe.train.clone(),
        evaluate_every: recipe.eval.every,
        run: identity(recipe),
    })
}

/// A task and its batches.
type Lesson = (Box<dyn Task>, Box<dyn BatchSource>);

fn prepare_text(recipe: &Recipe, source: &DataRecipe, device: &Device) -> Result<Lesson> {
    let data = Data::load(recipe, source)?;
    let model = model(recipe, "the tokenizer", data.tokenizer.vocab_size(), device)?;
    let windows = data
        .corpus
        .train(source.sequence, model.config().vocab_size)?;
    let task = LanguageTask {
        model,
        tokenizer: data.tokenizer,
        held_out: data.held_out,
        evaluation: EvalConfig {
            // Beyond the length that it was trained on, attention says nothing about the model's quality there.
            context: Some(source.sequence),
            ..EvalConfig::default()
        },
        run: compute(recipe),
    };
    let batches = Batches::new(windows, recipe.train.batch, recipe.train.seed);
    Ok((Box::new(task), Box::new(batches)))
}

fn prepare_answers(recipe: &Recipe, source: &TaskRecipe, device: &Device) -> Result<Lesson> {
    let generator = source.generator()?;
    let TrainRecipe { batch, seed, .. } = recipe.train;
    let task = AnswerTask {
        model: model(recipe, "the task", generator.task().vocab(), device)?,
        generator,
        exam: Exam {
            length: source.length,
            lengths: recipe.eval.lengths.clone(),
            examples: (recipe.eval.batches as usize).saturating_mul(batch),
            batch,
            tail: recipe.eval.tail.unwrap_or(1.0),
        },
        run: compute(recipe),
    };
    Ok((Box::new(task), Box::new(Draws::new(source, batch, seed)?)))
}

/// The recipe's model, with room for the tokens of `whose`.
fn model(recipe: &Recipe, whose: &str, needed: usize, device: &Device) -> Result<LanguageModel> {
    let vocab = recipe.model.vocab.unwrap_or(needed);
    if vocab < needed {
        return Err(Error::Data(format!(
            "model.vocab is {vocab}, but {whose} has {needed} tokens: leave it out or give {needed} or more"
        )));
    }
    let config = model_config(&recipe.model, vocab)?;
    Ok(LanguageModel::new(&config, recipe.train.seed, device)?)
}

fn compute(recipe: &Recipe) -> Run {
    let compute = if recipe.train.bf16 {
        DType::BF16
    } else {
        DType::F32
    };
    Run {
        compute,
        checkpoint: recipe.train.recompute,
    }
}

/// Train what a recipe describes in its folder, on a device; `show` names the progress bar.
///
/// # Errors
/// As [`prepare`] and [`Trainer::run`].
pub fn train(
    recipe: &Recipe,
    device: &Device,
    start: Start,
    show: Option<String>,
    stop: &AtomicBool,
) -> Result<Summary> {
    train_prepared(prepare(recipe, device)?, &recipe.out, start, show, stop)
}

/// Train what [`prepare`] gave in a folder.
///
/// # Errors
/// As [`Trainer::run`].
pub fn train_prepared(
    prepared: Prepared,
    folder: &Path,
    start: Start,
    show: Option<String>,
    stop: &AtomicBool,
) -> Result<Summary> {
    let Prepared {
        task,
        mut batches,
        train,
        evaluate_every,
        run,
    } = prepared;
    let place = Place {
        folder: folder.to_path_buf(),
        run,
        start,
        show,
    };
    Trainer::open(place, &*task, &mut *batches, &train, evaluate_every)?.run(stop)
}

/// A recipe's data: tokens to train on, and text to evaluate on.
struct Data {
    tokenizer: Tokenizer,
    corpus: Corpus,
    held_out: Option<HeldOut>,
}

impl Data {
    fn load(recipe: &Recipe, data: &DataRecipe) -> Result<Data> {
        let share = data.held_out;
        match &data.source {
            DataSource::Text(paths) => {
                let source = TextSource::read(paths)?;
                let (train, held) = source.split(share);
                let tokenizer = tokenizer(data.tokenizer.as_ref(), &train)?;
                let corpus = Corpus::from_text(&source, &tokenizer, share)?;
                let bytes_per_token = train.iter().map(|t| t.len()).sum::<usize>() as f64
                    / corpus.train_tokens().max(1) as f64;
                let limit = evaluation_tokens(recipe) as f64 * bytes_per_token;
                let held = up_to(held, limit as usize);
                let held_out = match held.is_empty() {
                    true => None,
                    false => Some(HeldOut::new(&held, &tokenizer)?),
                };
                Ok(Data {
                    tokenizer,
                    corpus,
                    held_out,
                })
            }
            DataSource::Shards(paths) => {
                let Some(TokenizerRecipe::Path(path)) = &data.tokenizer else {
                    return Err(Error::Data(
                        "data.shards hold tokens of a tokenizer that is not named: \
                         give the path of its tokenizer.json as data.tokenizer"
                            .into(),
                    ));
                };
                let tokenizer = Tokenizer::load(path)?;
                let corpus = Corpus::open_shards(paths, share)?;
                let windows = corpus.held_out(data.sequence, tokenizer.vocab_size());
                let held_out = match windows {
                    Ok(windows) => Some(decoded(&windows, &tokenizer, evaluation_tokens(recipe))?),
                    // Shards without enough held-out tokens for one sequence are not evaluated.
                    Err(_) if share == 0.0 => None,
                    Err(e) => return Err(e),
                };
                Ok(Data {
                    tokenizer,
                    corpus,
                    held_out,
                })
            }
        }
    }
}

/// Tokens that an evaluation reads at most.
fn evaluation_tokens(recipe: &Recipe) -> usize {
    (recipe.eval.batches as usize)
        .saturating_mul(recipe.train.batch)
        .saturating_mul(recipe.source.sequence())
}

/// The beginnings of texts, `limit` bytes together: the same share of each, so that all kinds are read.
fn up_to(texts: Vec<&str>, limit: usize) -> Vec<&str> {
    let total: usize = texts.iter().map(|t| t.len()).sum();
    if total <= limit {
        return texts.into_iter().filter(|t| !t.is_empty()).collect();
    }
    let share = limit as f64 / total as f64;
    let cut = |t: &str| t.floor_char_boundary((t.len() as f64 * share) as usize);
    texts
        .into_iter()
        .map(|t| &t[..cut(t)])
        .filter(|t| !t.is_empty())
        .collect()
}

/// The text of held-out windows of tokens.
fn decoded(windows: &Windows, tokenizer: &Tokenizer, limit: usize) -> Result<HeldOut> {
    let mut texts = Vec::new();
    let (mut ids, mut tokens) = (Vec::new(), 0);
    for i in 0..windows.len() {
        if tokens >= limit {
            break;
        }
        ids.clear();
        windows.read(i, &mut ids)?;
        // Neighbouring windows share one token; it belongs to the first.
        let own: Vec<u32> = ids[..windows.sequence()]
            .iter()
            .map(|&t| t as u32)
            .collect();
        tokens += own.len();
        texts.push(tokenizer.decode(&own, Specials::Skip)?);
    }
    HeldOut::new(&texts, tokenizer)
}

/// The tokenizer that a recipe names; a learned one is learned from the training part only.
pub fn tokenizer(recipe: Option<&TokenizerRecipe>, train: &[&str]) -> Result<Tokenizer> {
    Ok(match recipe {
        None | Some(TokenizerRecipe::Byte) => Tokenizer::byte_level(&[END_OF_TEXT])?,
        Some(TokenizerRecipe::Bpe(size)) => {
            Tokenizer::train_bpe(train, *size, &[END_OF_TEXT], &mut |_| ())?
        }
        Some(TokenizerRecipe::Path(path)) => Tokenizer::load(path)?,
    })
}

/// What makes a run the same run: the recipe without its place, its length, and what only watches it. So a run can be
/// made longer; its schedule is from then on that of the longer run.
fn identity(recipe: &Recipe) -> Value {
    const FREE: [&str; 6] = [
        "steps",
        "minutes",
        "tokens",
        "warmup",
        "checkpoint_every",
        "keep",
    ];
    let mut train = json!(recipe.train);
    if let Value::Object(train) = &mut train {
        FREE.iter().for_each(|key| drop(train.remove(*key)));
    }
    json!({ "model": recipe.model, "source": recipe.source, "train": train })
}

/// The recipe of a run folder's model, written beside it so that the run can be repeated.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_recipe(recipe: &Recipe, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join("recipe.toml");
    let text = recipe.to_toml()?;
    crate::files::write_atomic(&path, |out| out.write_all(text.as_bytes()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Score;
    use crate::trainer::{LOG_FILE, Outcome};

    fn recipe(model: &str, train: &str) -> Recipe {
        let text = r#"
            model = { d_model = 16, layers = "gdn2" MODEL }
            data = { text = "TEXT", sequence = 16 }
            train = { batch = 2, TRAIN }
            eval.batches = 2
        "#;
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bigram.rs");
        let text = text
            .replace("MODEL", model)
            .replace("TRAIN", train)
            .replace("TEXT", here);
        Recipe::parse(&text, "r.toml").unwrap()
    }

    #[test]
    fn a_finished_run_can_be_made_longer_but_not_another() {
        let out = tempfile::tempdir().unwrap();
        let never = AtomicBool::new(false);
        let run = |train: &str, steps: u64| {
            let mut recipe = recipe("", train);
            recipe.out = out.path().to_owned();
            let summary = super::train(&recipe, &Device::Cpu, Start::Continue, None, &never)?;
            assert_eq!(
                (summary.outcome, summary.progress.step),
                (Outcome::Finished, steps)
            );
            Ok::<_, Error>(())
        };
        run("steps = 3", 3).unwrap();
        run("steps = 5", 5).unwrap();
        run("tokens = 224, keep = 1", 7).unwrap();
        let error = run("steps = 9, lr = 0.5", 9).unwrap_err().to_string();
        assert!(error.contains("other settings"), "{error}");
    }

    #[test]
    fn what_cannot_be_built_is_one_sentence() {
        let refuse = |model: &str, part: &str| {
            let error = prepare(&recipe(model, "steps = 1"), &Device::Cpu)
                .err()
                .unwrap();
            let error = error.to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        };
        refuse(", vocab = 100", "give 257 or more");
        refuse(
            ", mixer.attention.num_heads = 2",
            "mixer that no layer uses",
        );
        refuse(", mixer.gdn2.num_hats = 2", "num_hats");
    }

    #[test]
    fn a_task_is_trained_and_asked_at_other_lengths() {
        let out = tempfile::tempdir().unwrap();
        let text = r#"
            model = { d_model = 16, layers = "gdn" }
            task = { name = "state_tracking", group = "Z2", length = 12, min_length = 4 }
            train = { steps = 40, batch = 8, lr = 1e-2 }
            eval = { every = 20, batches = 2, lengths = [24] }
        "#;
        let mut recipe = Recipe::parse(text, "r.toml").unwrap();
        recipe.out = out.path().to_owned();
        let never = AtomicBool::new(false);
        let run =
            |recipe: &Recipe| super::train(recipe, &Device::Cpu, Start::Continue, None, &never);
        let summary = run(&recipe).unwrap();
        let Some(Score::Answers(answers)) = summary.progress.evaluation.clone() else {
            panic!("{summary:?}")
        };
        assert_eq!((answers.trained.length, answers.trained.answers), (12, 192));
        assert_eq!((answers.lengths[0].length, answers.chance), (24, 0.5));
        assert!(answers.trained.accuracy > 0.55, "{answers:?}");
        // Every token counts: lengths from 4 to 12, 8 is their mean.
        let mean = summary.progress.tokens as f64 / (40.0 * 8.0);
        assert!((mean - 8.0).abs() < 1.5, "{mean}");
        let log = std::fs::read_to_string(out.path().join(LOG_FILE)).unwrap();
        assert_eq!(log.matches("\"accuracy\"").count(), 2 * 2, "{log}");
        assert_eq!(run(&recipe).unwrap().progress, summary.progress);
        if let Source::Task(task) = &mut recipe.source {
            task.knobs["group"] = json!("Z3");
        }
        assert!(run(&recipe).is_err(), "another task is another run");
    }
}
