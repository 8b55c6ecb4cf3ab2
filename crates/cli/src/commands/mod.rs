//! The subcommands: one file each, registered in [`Command`].

mod bench;
mod completions;
mod device;
mod eval;
mod explain;
mod generate;
mod kernels;
mod man;
mod mixers;
mod model;
mod quickstart;
mod study;
mod tasks;
mod train;

use clap::{CommandFactory, Parser, Subcommand};

const AFTER: &str = "\
Every command explains itself: weft <command> --help.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C with everything saved.
Environment: WEFT_LOG chooses the log on stderr (info, debug, weft_train=debug, ...); NO_COLOR is respected.";

/// Sequence models woven from recurrence and attention: train, compare, measure, generate
#[derive(Parser)]
#[command(name = "weft", version, after_help = AFTER, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// `weft train` when the first word of the command line is `train`, `weft` when it is no command.
pub fn meant(word: Option<&str>) -> String {
    match Cli::command()
        .get_subcommands()
        .find(|c| Some(c.get_name()) == word)
    {
        Some(command) => format!("weft {}", command.get_name()),
        None => "weft".into(),
    }
}

/// How a command that did not fail ended.
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It was stopped by Ctrl-C and everything is saved.
    Interrupted,
}

#[derive(Subcommand)]
pub enum Command {
    Quickstart(quickstart::Args),
    Train(train::Args),
    Generate(generate::Args),
    Eval(eval::Args),
    Study(study::Args),
    Explain(explain::Args),
    Mixers(mixers::Args),
    Tasks(tasks::Args),
    Kernels(kernels::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self {
            Command::Quickstart(args) => args.run(),
            Command::Train(args) => args.run(),
            Command::Generate(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Study(args) => args.run(),
            Command::Explain(args) => args.run(),
            Command::Mixers(args) => args.run(),
            Command::Tasks(args) => args.run(),
            Command::Kernels(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

/// A number above 0, for options.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v > 0.0 && v.is_finite() => Ok(v),
        _ => Err("give a number above 0".into()),
    }
}
