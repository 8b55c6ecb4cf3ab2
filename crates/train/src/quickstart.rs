//! The main job in one call: train a small hybrid on real text beside two baselines of equal size, measure all of
//! them and a bigram on held-out text, save the model, and let it write.
//!
//! The three models see the same batches for the same number of steps. That number is fixed from a short timing at
//! the start, so that everything together takes about the minutes that were asked for; it is in the report.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use weft_models::generate::Settings;
use weft_models::tokenizer::{END_OF_TEXT, Tokenizer};
use weft_models::{Config, LanguageModel, Run, Sampling, Session};
use weft_tensor::{Device, Tensor};

use crate::bigram::Bigram;
use crate::data::{Batches, Corpus, Document, TextSource};
use crate::error::{Error, Result};
use crate::evaluate::{EvalConfig, HeldOut, Score};
use crate::model::of_size;
use crate::optim::{Grads, Optimizer};
use crate::recipe::{self, AdamW, Budget, Muon, TrainRecipe};
use crate::schedule::Shape;
use crate::trainer::{LanguageTask, Outcome, Place, Start, Trainer};

/// The repository's own documents and sources, as (name, text).
static CORPUS: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/corpus.rs"));

// Sizes and rates that gave the fewest bits per byte after a minute of training a model on two cores: a small model that
// takes many steps beats a large one that takes few, and long tokens beat short ones.
const WIDTH: usize = 128;
const DEPTH: usize = 4;
const VOCAB: usize = 4096;
const SEQUENCE: usize = 128;
const BATCH: usize = 8;
const ADAMW_RATE: f64 = 2e-2;
const MUON_RATE: f64 = 1e-2;
/// Held-out bytes that are scored; enough for three digits.
const SCORED: usize = 60_000;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Text to learn from; none means the repository's own documents and sources.
    pub text: Vec<PathBuf>,
    /// About how long everything takes.
    pub minutes: f64,
    /// Where the models go.
    pub out: PathBuf,
    /// Seed of weights, data order and sample.
    pub seed: u64,
    /// Where the models are trained.
    pub device: Device,
    /// Whether to show progress on stderr.
    pub show: bool,
}

/// One trained model.
#[derive(Clone, Debug, Serialize)]
pub struct Trained {
    /// Its layers.
    pub layers: String,
    /// Trained parameters.
    pub parameters: usize,
    /// On held-out text.
    pub bits_per_byte: f64,
    /// On held-out text, per token.
    pub perplexity: f64,
    /// Training speed.
    pub tokens_per_second: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Where it is.
    pub model_dir: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of the hybrid, on held-out text.
    pub bits_per_byte: f64,
    /// Of a byte bigram of the same training text on the same held-out text.
    pub bigram_bits_per_byte: f64,
    /// The hybrid's model folder.
    pub model_dir: PathBuf,
    /// The hybrid's training speed.
    pub tokens_per_second: f64,
    /// The hybrid's parameters.
    pub parameters: usize,
    /// Wall-clock seconds of everything.
    pub seconds: f64,
    /// Steps that every model took.
    pub steps: u64,
    /// Bytes of text learned from.
    pub train_bytes: usize,
    /// Bytes of held-out text scored.
    pub held_out_bytes: usize,
    /// The hybrid, then its baselines.
    pub models: Vec<Trained>,
    /// The prompt of the sample.
    pub prompt: String,
    /// How the hybrid goes on from there, token by token through its state.
    pub sample: String,
}

/// Run it. `Ok(None)` when `stop` was set before the end.
///
/// # Errors
/// When the text is missing or too short, or the folder cannot be written.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Option<Report>> {
    let begin = Instant::now();
    let source = read(&options.text)?;
    let (train, held) = source.split(0.1);
    let vocab = VOCAB.min(257 + source.bytes() / 64);
    let tokenizer = Tokenizer::train_bpe(&train, vocab, &[END_OF_TEXT], &mut |_| ())?;
    let corpus = Corpus::from_text(&source, &tokenizer, 0.1)?;
    let windows = corpus.train(SEQUENCE, tokenizer.vocab_size())?;
    let held = beginnings(&held, SCORED);
    let bytes = |texts: &[&'_ str]| texts.iter().map(|t| t.len()).sum::<usize>();
    let bigram = Bigram::train(train.iter().map(|t| t.as_bytes()));
    let bigram = bigram.bits_per_byte(held.iter().map(|t| t.as_bytes()));

    let hybrid = LanguageModel::new(
        &config("3*gdn2 + attention", &tokenizer)?,
        options.seed,
        &options.device,
    )?;
    let mut models = vec![("3*gdn2 + attention", options.out.clone(), hybrid)];
    for name in ["attention", "gdn2"] {
        let size = models[0].2.params().count();
        let config = of_size(config(name, &tokenizer)?, size)?;
        let model = LanguageModel::new(&config, options.seed, &options.device)?;
        models.push((name, options.out.join("baselines").join(name), model));
    }

    let mut batches = Batches::new(windows.clone(), BATCH, options.seed);
    let mut per_step = 0.0;
    for (_, _, model) in &models {
        per_step += seconds_per_step(model, &mut batches, &train_recipe(1, options.seed))?;
    }
    let seconds = options.minutes * 60.0 - begin.elapsed().as_secs_f64();
    // What is left over goes into evaluating, saving and the sample.
    let steps = ((0.9 * seconds / per_step) as u64).max(1);

    let mut trained = Vec::new();
    let mut sample = None;
    for (layers, folder, model) in models {
        let task = LanguageTask {
            model,
            tokenizer: tokenizer.clone(),
            held_out: Some(HeldOut::new(&held, &tokenizer)?),
            evaluation: EvalConfig {
                context: Some(SEQUENCE),
                ..EvalConfig::default()
            },
            run: Run::default(),
        };
        let parameters = task.model.params().count();
        let mut batches = Batches::new(windows.clone(), BATCH, options.seed);
        let place = Place {
            folder: folder.clone(),
            run: json!({ "quickstart": layers, "seed": options.seed }),
            start: Start::Anew,
            show: options.show.then(|| layers.to_string()),
        };
        let train = train_recipe(steps, options.seed);
        let summary = Trainer::open(place, &task, &mut batches, &train, 0)?.run(stop)?;
        if summary.outcome == Outcome::Interrupted {
            return Ok(None);
        }
        let Some(Score::Text(score)) = summary.progress.evaluation else {
            let reason = "the model was not evaluated: there is no held-out text";
            return Err(Error::Data(reason.into()));
        };
        if sample.is_none() {
            sample = Some(continuation(&task.model, &tokenizer, &held, options.seed)?);
        }
        trained.push(Trained {
            layers: layers.into(),
            parameters,
            bits_per_byte: score.bits_per_byte,
            perplexity: score.perplexity,
            tokens_per_second: summary.tokens_per_second,
            seconds: summary.progress.seconds,
            model_dir: folder,
        });
    }
    let (prompt, sample) = sample.unwrap_or_default();
    Ok(Some(Report {
        bits_per_byte: trained[0].bits_per_byte,
        bigram_bits_per_byte: bigram,
        model_dir: trained[0].model_dir.clone(),
        tokens_per_second: trained[0].tokens_per_second,
        parameters: trained[0].parameters,
        seconds: begin.elapsed().as_secs_f64(),
        steps,
        train_bytes: bytes(&train),
        held_out_bytes: bytes(&held),
        models: trained,
        prompt,
        sample,
    }))
}

fn read(paths: &[PathBuf]) -> Result<TextSource> {
    if !paths.is_empty() {
        return TextSource::read(paths);
    }
    let document = |&(name, text): &(&str, &str)| Document {
        path: name.into(),
        text: text.into(),
    };
    Ok(TextSource {
        documents: CORPUS.iter().map(document).collect(),
    })
}

/// The same share of the beginning of each text, `limit` bytes together at most.
fn beginnings<'a>(texts: &[&'a str], limit: usize) -> Vec<&'a str> {
    let total: usize = texts.iter().map(|t| t.len()).sum();
    let share = (limit as f64 / total.max(1) as f64).min(1.0);
    let cut = |t: &&'a str| &t[..t.floor_char_boundary((t.len() as f64 * share) as usize)];
    texts.iter().map(cut).filter(|t| !t.is_empty()).collect()
}

fn config(pattern: &str, tokenizer: &Tokenizer) -> Result<Config> {
    let layers = pattern
        .parse::<weft_models::pattern::Pattern>()
        .and_then(|p| p.layers(DEPTH))
        .map_err(|e| Error::Data(e.to_string()))?;
    Ok(Config::new(tokenizer.vocab_size(), WIDTH, layers))
}

/// The time of one training step, after a first one that pays for memory. The learning rate is 0: the model stays as it
/// is, bit for bit.
fn seconds_per_step(
    model: &LanguageModel,
    batches: &mut Batches,
    recipe: &TrainRecipe,
) -> Result<f64> {
    const TIMED: u32 = 2;
    let mut optimizer = Optimizer::new(model.params(), &recipe.optimizer)?;
    let mut step = || -> Result<()> {
        let batch = batches.next_batch()?;
        let ids = Tensor::from_vec(batch.tokens, &[batch.rows, batch.columns], &Device::Cpu)?;
        let loss = model.loss(&ids, &Run::default())?.mean_all()?;
        let mut gradients = loss.backward()?;
        drop(loss);
        let grads = Grads::take(model.params(), &mut gradients);
        optimizer.step(&grads, 0.0, 1.0)?;
        Ok(model.device().synchronize()?)
    };
    step()?;
    let begin = Instant::now();
    (0..TIMED).try_for_each(|_| step())?;
    Ok(begin.elapsed().as_secs_f64() / f64::from(TIMED))
}

/// How every model is trained.
fn train_recipe(steps: u64, seed: u64) -> TrainRecipe {
    let adamw = AdamW {
        lr: ADAMW_RATE,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
    };
    TrainRecipe {
        budget: Budget::Steps(steps),
        batch: BATCH,
        accumulate: 1,
        optimizer: recipe::Optimizer::Muon(Muon {
            adamw,
            muon_lr: MUON_RATE,
            muon_momentum: 0.95,
        }),
        shape: Shape::Linear,
        warmup: (steps / 20).min(20),
        min_ratio: 0.02,
        clip: 1.0,
        seed,
        checkpoint_every: 0,
        keep: 1,
        bf16: false,
        recompute: false,
        nonfinite_limit: 10,
    }
}

/// The first line or so of a held-out text, and how the model goes on.
fn continuation(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    held: &[&str],
    seed: u64,
) -> Result<(String, String)> {
    let text = held.iter().copied().max_by_key(|t| t.len()).unwrap_or("\n");
    let prompt = text[..text.floor_char_boundary(80)].to_string();
    let mut session = Session::new(model, tokenizer)?;
    session.prompt(&prompt)?;
    let sampling = Sampling {
        temperature: 0.7,
        top_p: 0.95,
        seed,
        ..Sampling::default()
    };
    let settings = Settings {
        sampling,
        max_tokens: 160,
        // The sample is to show writing: a model that ends the document at once goes on with another one.
        ignore_eos: true,
        ..Settings::default()
    };
    let generated = session.generate(&settings, &mut |_| ControlFlow::Continue(()))?;
    Ok((prompt, generated.text))
}

/// What to type next, for a model folder.
pub fn next_steps(model: &Path) -> String {
    let m = model.display();
    format!(
        "weft generate {m} --prompt \"fn \" --tokens 200\n\
         weft eval {m} --text README.md\n\
         weft explain {m}\n\
         weft study recipes/quick-study.toml\n"
    )
}
