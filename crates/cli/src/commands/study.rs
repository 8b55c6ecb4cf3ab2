//! `weft study`: a grid of small trainings, side by side.

use std::path::PathBuf;

use anyhow::Context;
use weft_train::recipe::Study;
use weft_train::study::{self, Shard, Words};
use weft_train::{machine, report};

use super::Outcome;
use super::device::DeviceArg;
use crate::{interrupt, output};

const EXAMPLES: &str = "\
Examples:
  weft study recipes/quick-study.toml
  weft study recipes/quick-study.toml --shard 2/4     # one job of an array of four
  weft study recipes/quick-study.toml --json

Finished runs are not run again and interrupted ones go on, so the same command continues a study. The folder of \
the study gets results.json, plots (SVG) and report.html, a page that needs nothing else.";

/// Train a grid of models and compare them
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The study (TOML): a recipe with a [study] grid
    recipe: PathBuf,
    /// Only the i-th of n shares of the runs
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// The folder of the study instead of the recipe's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
    /// Print the results as one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let mut study = Study::load(&self.recipe)?;
        let file = &self.recipe;
        let mut command = format!("weft study {}", file.display());
        if let Some(out) = self.out {
            command += &format!(" --out {}", out.display());
            for run in &mut study.runs {
                run.recipe.out = out.join(&run.name);
            }
            study.out = out;
        }
        let device = self.device.open()?;
        let words = Words {
            title: study.title.clone(),
            command,
            recipe: std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?,
            machine: machine::describe(&device)?,
            version: concat!("weft ", env!("CARGO_PKG_VERSION")).into(),
        };
        let Some(result) =
            study::run(&study, &device, self.shard, words, true, interrupt::flag()?)?
        else {
            return Ok(Outcome::Interrupted);
        };
        let written = report::write(&result, &study.out)?;
        if self.json {
            output::json(&result)?;
            return Ok(Outcome::Done);
        }
        let files: Vec<String> = written.iter().map(|p| p.display().to_string()).collect();
        output::print(format!(
            "{}\n{}\n",
            report::table(&result),
            files.join("\n")
        ))?;
        Ok(Outcome::Done)
    }
}
