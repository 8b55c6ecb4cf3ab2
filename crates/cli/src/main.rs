//! `weft`: parses a command line, calls a library, prints what came back.
//!
//! Results go to stdout, plain and without colour; progress and the log go to stderr. An error is one sentence on
//! stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C with everything saved.

mod commands;
mod interrupt;
mod logging;
mod output;
mod sentence;

use std::process::ExitCode;

use clap::Parser;

use commands::{Cli, Outcome};
use weft_tensor::in_pool;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match logging::init().and_then(|()| in_pool(|| cli.command.run())) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&sentence::of_error(&error));
            ExitCode::FAILURE
        }
    }
}

/// Help and version are results; everything else is a mistake in one sentence.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    match error.kind() {
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that closed the pipe has what it wanted.
            let _ = error.print();
        }
        _ => output::complain(&sentence::of_usage(
            error,
            &commands::meant(std::env::args().nth(1).as_deref()),
        )),
    }
    ExitCode::from(error.exit_code() as u8)
}
