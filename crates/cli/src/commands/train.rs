//! `weft train`: a recipe becomes a model folder.

use std::path::PathBuf;

use serde_json::json;
use weft_train::recipe::Recipe;
use weft_train::run;
use weft_train::trainer::{self, Start};

use super::Outcome;
use super::device::DeviceArg;
use crate::{interrupt, output};

const EXAMPLES: &str = "\
Examples:
  weft train recipes/hybrid.toml
  weft train recipes/hybrid.toml --out runs/second
  weft train recipes/hybrid.toml --set train.lr=3e-4 --set model.layers=gdn2 --out runs/gdn2
  weft train recipes/hybrid.toml --anew

A run that was interrupted (Ctrl-C, a kill, a crash) goes on from its last checkpoint when the same command is given \
again, to the same bits as if it had never stopped. Ctrl-C writes a checkpoint first; the exit code is then 130.";

/// Train the model that a recipe describes
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The recipe (TOML)
    recipe: PathBuf,
    /// The folder of the run instead of the recipe's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Set a key of the recipe; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Remove checkpoints in the folder and begin again
    #[arg(long)]
    anew: bool,
    #[command(flatten)]
    device: DeviceArg,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let mut recipe = Recipe::load_with(&self.recipe, &self.set)?;
        if let Some(out) = self.out {
            recipe.out = out;
        }
        let start = if self.anew {
            Start::Anew
        } else {
            Start::Continue
        };
        let name = self
            .recipe
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned());
        let stop = interrupt::flag()?;
        let prepared = run::prepare(&recipe, &self.device.open()?)?;
        run::write_recipe(&recipe, &recipe.out)?;
        let parameters = prepared.task.params().count();
        let summary = run::train_prepared(prepared, &recipe.out, start, name, stop)?;
        if self.json {
            output::json(
                &json!({ "model_dir": recipe.out, "parameters": parameters, "summary": summary }),
            )?;
        } else {
            output::print(format!("{summary}\n{}\n", recipe.out.display()))?;
        }
        Ok(match summary.outcome {
            trainer::Outcome::Finished => Outcome::Done,
            trainer::Outcome::Interrupted => Outcome::Interrupted,
        })
    }
}
