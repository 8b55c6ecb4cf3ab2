//! `weft quickstart`: from text to a model that writes, in a few minutes.

use std::path::PathBuf;

use weft_train::{quickstart, report};

use super::Outcome;
use super::device::DeviceArg;
use crate::{interrupt, output};

const EXAMPLES: &str = "\
Examples:
  weft quickstart
  weft quickstart --text book.txt notes/ --minutes 10
  weft quickstart --json --out /tmp/first | tail -1

Trains a hybrid (3*gdn2 + attention) and two baselines of equal size (attention only, gdn2 only) for the same \
number of steps, and scores them and a byte bigram on held-out text.";

/// Train a small hybrid on text beside two baselines, score them, and let it write
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Files and folders of text; without any, the repository's own documents and sources
    #[arg(long, value_name = "PATH", num_args = 1..)]
    text: Vec<PathBuf>,
    /// About how long everything takes
    #[arg(long, value_name = "N", default_value_t = 3.0, value_parser = super::positive)]
    minutes: f64,
    /// The folder of the models
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    out: PathBuf,
    /// Seed of weights, data order and sample
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArg,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let options = quickstart::Options {
            text: self.text,
            minutes: self.minutes,
            out: self.out,
            seed: self.seed,
            device: self.device.open()?,
            show: true,
        };
        let Some(result) = quickstart::run(&options, interrupt::flag()?)? else {
            return Ok(Outcome::Interrupted);
        };
        if self.json {
            output::json(&result)?;
            return Ok(Outcome::Done);
        }
        let headings = [
            ("model", false),
            ("parameters", true),
            ("bits per byte", true),
            ("tokens/s", true),
            ("seconds", true),
        ];
        let bigram = [
            "byte bigram".into(),
            "-".into(),
            format!("{:.3}", result.bigram_bits_per_byte),
            "-".into(),
            "-".into(),
        ];
        let rows = result.models.iter().map(|m| {
            [
                m.layers.clone(),
                report::short(m.parameters as f64),
                format!("{:.3}", m.bits_per_byte),
                format!("{:.0}", m.tokens_per_second),
                format!("{:.0}", m.seconds),
            ]
        });
        let table = report::plain(&headings, rows.chain([bigram]).map(Vec::from));
        let text = format!(
            "{table}\nHeld out: {} bytes; trained on {} bytes for {} steps each.\n\n\
             The hybrid goes on from a held-out text, token by token through its state:\n\n{}|{}\n\n\
             Saved in {}. Next:\n{}",
            result.held_out_bytes,
            result.train_bytes,
            result.steps,
            result.prompt,
            result.sample,
            result.model_dir.display(),
            quickstart::next_steps(&result.model_dir)
        );
        output::print(text)?;
        Ok(Outcome::Done)
    }
}
