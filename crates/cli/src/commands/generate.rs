//! `weft generate`: a model goes on from a prompt, one token at a time through its state.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;
use weft_models::generate::Settings;
use weft_models::{ModelState, Sampling, Session};

use super::Outcome;
use super::model::ModelArg;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft generate runs/quickstart --prompt \"fn \" --tokens 200
  weft generate runs/quickstart --prompt-file README.md --temperature 0 --json
  weft generate runs/quickstart --prompt \"fn \" --weights bf16
  weft generate runs/quickstart --prompt-file long.txt --tokens 1 --save-state long.state
  weft generate runs/quickstart --load-state long.state --prompt \"And then\" --tokens 100";

/// Continue a text with a model
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The text to continue
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// A file with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    tokens: usize,
    /// Seed of the random choices
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Logits are divided by it; 0 takes the most likely token
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    temperature: f64,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the most likely tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Keep tokens at least this many times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f64,
    /// Make tokens that have occurred less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the end of a document
    #[arg(long)]
    ignore_eos: bool,
    /// Begin from a state that --save-state wrote
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Write the state after the last token
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let prompt = match &self.prompt_file {
            Some(file) => {
                let bytes = std::fs::read(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                String::from_utf8(bytes)
                    .with_context(|| format!("{} is not UTF-8 text", file.display()))?
            }
            None => self.prompt.clone().unwrap_or_default(),
        };
        let (model, tokenizer) = self.model.load()?;
        let mut session = match &self.load_state {
            Some(file) => {
                let state = ModelState::load(file, &model, &model.device())?;
                Session::from_state(&model, &tokenizer, state)?
            }
            None => Session::new(&model, &tokenizer)?,
        };
        session.prompt(&prompt)?;
        let settings = Settings {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            max_tokens: self.tokens,
            stop: self.stop,
            ignore_eos: self.ignore_eos,
        };
        let mut closed = None;
        let generated = session.generate(&settings, &mut |text| {
            if self.json {
                return ControlFlow::Continue(());
            }
            match output::print(text) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    closed = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(e) = closed {
            return Err(e);
        }
        if let Some(file) = &self.save_state {
            session.prefill()?;
            session.state().save(file, &model)?;
        }
        if self.json {
            output::json(
                &json!({ "prompt": prompt, "generation": generated, "text": generated.text, "seed": self.seed }),
            )?;
        } else {
            output::print("\n")?;
        }
        Ok(Outcome::Done)
    }
}
