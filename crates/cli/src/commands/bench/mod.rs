//! `weft bench`: how fast kernels, training and decoding are here, beside what the device can do at most.

mod kernels;
mod models;
mod report;

use anyhow::bail;
use clap::Subcommand;
use serde::Serialize;
use weft_tensor::Device;
use weft_train::bench::{Ceilings, Clock};
use weft_train::{log::Progress, machine};

use super::Outcome;
use super::device::DeviceArg;
use report::{Failed, Report};

const EXAMPLES: &str = "\
Examples:
  weft bench kernels
  weft bench kernels --filter attention --json
  weft bench train --layers \"3*gdn2 + attention\" --batch 8 --tokens 512
  weft bench decode --device cpu --weights bf16

Times are the best of three medians, after a warm-up. The ceilings, a large copy and a large matrix product, are \
measured in the same run. Sizes suit the device: a CPU is done in about a minute.";

/// Measure kernels, training and decoding on this machine
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Kernels(kernels::Args),
    Train(models::TrainArgs),
    Decode(models::DecodeArgs),
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self.what {
            What::Kernels(args) => args.run()?,
            What::Train(args) => args.run()?,
            What::Decode(args) => args.run()?,
        }
        Ok(Outcome::Done)
    }
}

/// The options of all three.
#[derive(clap::Args)]
struct Common {
    /// Only rows whose name, shape and dtype contain this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// About how long each row is measured
    #[arg(long, value_name = "S", value_parser = super::positive)]
    seconds: Option<f64>,
    #[command(flatten)]
    device: DeviceArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Common {
    /// Measure the cases that pass the filter, one after the other; one that fails does not stop the others.
    fn measure<C, R: Serialize>(
        &self,
        device: Device,
        seconds: f64,
        mut cases: Vec<(String, C)>,
        mut measure: impl FnMut(&C, &Clock, &Ceilings) -> weft_train::Result<R>,
    ) -> anyhow::Result<Report<R>> {
        let passes = |title: &str| self.filter.iter().all(|text| title.contains(text.as_str()));
        let first = cases.first().map(|(title, _)| title.clone());
        cases.retain(|(title, _)| passes(title));
        if cases.is_empty() {
            let texts = self.filter.join("' and '");
            let first = first.unwrap_or_default();
            bail!(
                "no row contains '{texts}': give part of a row's words, such as those of '{first}'"
            );
        }
        let clock = Clock::new(device, self.seconds.unwrap_or(seconds));
        let mut progress = Progress::new("bench", cases.len() as u64);
        progress.update(0, "ceilings");
        let ceilings = Ceilings::measure(&device, &clock)?;
        let (mut rows, mut failed) = (vec![], vec![]);
        for (i, (title, case)) in cases.into_iter().enumerate() {
            progress.update(i as u64, &title);
            match measure(&case, &clock, &ceilings) {
                Ok(row) => rows.push(row),
                Err(e) => {
                    let error = crate::sentence::of_error(&anyhow::Error::from(e));
                    progress.note(&format!("{title}: {error}"));
                    failed.push(Failed { row: title, error });
                }
            }
        }
        progress.clear();
        Ok(Report {
            device: device.to_string(),
            machine: machine::describe(&device)?,
            versions: machine::versions(&device),
            threads: machine::threads(),
            ceilings,
            rows,
            failed,
        })
    }
}
