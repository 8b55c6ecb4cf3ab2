//! The subcommands: one file each, registered in [`Command`].

mod completions;
mod man;
mod mixers;

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
}

#[derive(Subcommand)]
pub enum Command {
    Mixers(mixers::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self {
            Command::Mixers(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}
