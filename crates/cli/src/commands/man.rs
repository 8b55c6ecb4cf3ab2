//! `weft man [DIR]`: the manual pages.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;

use super::{Cli, Outcome};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft man | man -l -
  weft man ~/.local/share/man/man1";

/// Print the manual page, or write the page of every command into a folder
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder for weft.1, weft-train.1, ... (created when missing)
    dir: Option<PathBuf>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self.dir {
            Some(dir) => {
                let cannot = || format!("cannot write manual pages into {}", dir.display());
                std::fs::create_dir_all(&dir).with_context(cannot)?;
                clap_mangen::generate_to(Cli::command(), &dir).with_context(cannot)?;
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut page)?;
                output::print(page)?;
            }
        }
        Ok(Outcome::Done)
    }
}
