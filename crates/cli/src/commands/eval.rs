//! `weft eval`: how well a model predicts a text.

use std::path::PathBuf;

use anyhow::bail;
use weft_train::data::TextSource;
use weft_train::evaluate::{EvalConfig, HeldOut, evaluate};

use super::Outcome;
use super::model::ModelArg;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft eval runs/quickstart --text README.md
  weft eval runs/quickstart --text docs/ --json
  weft eval runs/quickstart --text long.txt --context 1024

Every token is scored once, with the state carried from the beginning of each file, or started anew every \
--context tokens. Bits per byte do not depend on the tokenizer, so models with different ones can be compared.";

/// Score a model on text: bits per byte and perplexity
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// Files and folders of text
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// Start from an empty state every so many tokens
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        if self.context == Some(0) {
            bail!("--context is 0: give 1 or more tokens, or leave it out");
        }
        let (model, tokenizer) = self.model.load()?;
        let source = TextSource::read(&self.text)?;
        let texts: Vec<&str> = source.documents.iter().map(|d| d.text.as_str()).collect();
        let held_out = HeldOut::new(&texts, &tokenizer)?;
        let config = EvalConfig {
            context: self.context,
            ..EvalConfig::default()
        };
        let result = evaluate(&model, &held_out, &config)?;
        if self.json {
            output::json(&result)?;
        } else {
            output::print(format!(
                "{result} ({} tokens, {} bytes)\n",
                result.tokens, result.bytes
            ))?;
        }
        Ok(Outcome::Done)
    }
}
