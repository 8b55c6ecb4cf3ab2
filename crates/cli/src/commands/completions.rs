//! `weft completions SHELL`: the script that completes `weft` in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft completions bash > ~/.local/share/bash-completion/completions/weft
  weft completions zsh > \"${fpath[1]}/_weft\"
  weft completions fish > ~/.config/fish/completions/weft.fish";

/// Print the completion script of a shell
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "weft", &mut script);
        output::print(script)?;
        Ok(Outcome::Done)
    }
}
