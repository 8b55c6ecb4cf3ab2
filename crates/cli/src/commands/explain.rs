//! `weft explain`: what runs in a model, layer by layer, and why.

use std::path::PathBuf;

use clap::value_parser;
use weft_models::{explain, folder};
use weft_train::report;

use super::Outcome;
use super::device::DeviceArg;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft explain runs/quickstart
  weft explain runs/quickstart --context 32768 --json";

/// Say which implementation runs in each layer, and why
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model folder
    model: PathBuf,
    /// Tokens seen so far, for state and cost
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = value_parser!(u32).range(1..))]
    context: u32,
    #[command(flatten)]
    device: DeviceArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let (device, why) = self.device.choose()?;
        let model = folder::load(&self.model, &device)?;
        let result = explain(&model, self.context as usize)?;
        if self.json {
            output::json(&result)?;
            return Ok(Outcome::Done);
        }
        let headings = [
            ("layer", true),
            ("mixer", false),
            ("training", false),
            ("prefill", false),
            ("decode", false),
            ("state", true),
            ("cost/token", true),
        ];
        let rows = result.layers.iter().map(|l| {
            vec![
                l.layer.to_string(),
                l.mixer.to_string(),
                l.training.form.to_string(),
                l.prefill.form.to_string(),
                l.decode.form.to_string(),
                report::bytes(l.state_bytes),
                report::short(l.cost_per_token as f64),
            ]
        });
        let mut text = report::plain(&headings, rows);
        let mut told: Vec<&str> = vec![];
        for layer in &result.layers {
            if !told.contains(&layer.mixer) {
                told.push(layer.mixer);
                text += &format!("\n{} ({})\n", layer.mixer, layer.title);
                for (when, plan) in [
                    ("training", &layer.training),
                    ("prefill", &layer.prefill),
                    ("decode", &layer.decode),
                ] {
                    text += &format!("  {when}: {}: {}\n", plan.form, plan.why);
                }
            }
        }
        text += &format!(
            "\n{} parameters in {} ({}), on {}; at {} tokens: state {}, {} multiply-adds per token\n",
            report::short(result.parameters as f64),
            result.dtype,
            report::bytes(result.parameter_bytes),
            result.device,
            result.context,
            report::bytes(result.state_bytes),
            report::short(result.cost_per_token as f64),
        );
        if let Some(why) = why {
            text += &format!("On the CPU, because of {why}\n");
        }
        output::print(text)?;
        Ok(Outcome::Done)
    }
}
