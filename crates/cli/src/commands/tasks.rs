//! `weft tasks`: the synthetic tasks there are, and their knobs.

use serde::Serialize;
use serde_json::{Map, Value};
use weft_tasks::{Entry, TASKS};

use super::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft tasks
  weft tasks --json | jq '.[] | {name, knobs}'

A recipe with a [task] table trains on one of them: its name, seed, length and min_length, and these knobs. \
--set task.pairs=16 turns one of them from the command line.";

/// List the synthetic tasks and their knobs
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    title: &'static str,
    paper: &'static str,
    knobs: Map<String, Value>,
}

impl Line {
    fn new(entry: &Entry) -> Line {
        Line {
            name: entry.name,
            title: entry.title,
            paper: entry.paper,
            knobs: (entry.knobs)(),
        }
    }

    fn text(&self) -> String {
        let knobs = self.knobs.iter().map(|(knob, v)| format!("{knob} = {v}"));
        let knobs: Vec<String> = knobs.collect();
        let Line {
            name, title, paper, ..
        } = self;
        format!("{name}: {title}\n    {paper}\n    {}\n", knobs.join(", "))
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let lines: Vec<Line> = TASKS.iter().map(Line::new).collect();
        if self.json {
            output::json(&lines)?;
        } else {
            output::print(lines.iter().map(Line::text).collect::<String>())?;
        }
        Ok(Outcome::Done)
    }
}
