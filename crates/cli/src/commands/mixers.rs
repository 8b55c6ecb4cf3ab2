//! `weft mixers`: the sequence mixers there are, where they run, what they remember and what they cost.

use clap::{ArgAction, value_parser};
use serde::Serialize;
use weft_mixers::registry::MIXERS;
use weft_mixers::{Entry, Form, Options, Params, Scope};
use weft_tensor::{DType, Device, Tensor};
use weft_train::report;

use super::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft mixers
  weft mixers --width 1024 --context 32768
  weft mixers --json | jq '.[] | {name, state_bytes}'

The state is that of one sequence in one layer, in 32-bit floats, after --context tokens; '+' marks one \
that grows with the context. The cost is in multiply-adds of one layer for one token at that context.";

/// List the sequence mixers: paper, page, forms, devices, state and cost per token
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model width D
    #[arg(long, value_name = "D", default_value_t = 512, value_parser = value_parser!(u32).range(1..=1 << 16))]
    width: u32,
    /// Tokens seen so far
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = value_parser!(u32).range(1..))]
    context: u32,
    /// Print a JSON array
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    title: &'static str,
    paper: &'static str,
    page: &'static str,
    forms: &'static [Form],
    devices: &'static [&'static str],
    parameters: usize,
    state_bytes: usize,
    state_grows: bool,
    multiply_adds: usize,
}

impl Line {
    fn cells(&self) -> Vec<String> {
        let grows = if self.state_grows { " +" } else { "" };
        vec![
            self.name.to_string(),
            self.forms
                .iter()
                .map(Form::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            self.devices.join(" "),
            report::short(self.parameters as f64),
            format!("{}{grows}", report::bytes(self.state_bytes)),
            report::short(self.multiply_adds as f64),
            self.page.to_string(),
            self.paper.to_string(),
        ]
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let lines = MIXERS
            .iter()
            .map(|entry| self.line(entry))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if self.json {
            output::json(&lines)?;
            return Ok(Outcome::Done);
        }
        let headings = [
            ("name", false),
            ("forms", false),
            ("devices", false),
            ("parameters", true),
            ("state", true),
            ("cost/token", true),
            ("page", false),
            ("paper", false),
        ];
        output::print(report::plain(&headings, lines.iter().map(Line::cells)))?;
        Ok(Outcome::Done)
    }

    fn line(&self, entry: &'static Entry) -> anyhow::Result<Line> {
        let options = Options {
            d_model: self.width as usize,
            ..Options::default()
        };
        let context = self.context as usize;
        let mut params = Params::new();
        let mixer = (entry.build)(
            &options,
            &mut Scope::from_source(&mut params, &nothing, &Device::Cpu),
        )?;
        let state_bytes = mixer.state_bytes(context, DType::F32);
        Ok(Line {
            name: entry.name,
            title: entry.title,
            paper: entry.paper,
            page: entry.page,
            forms: entry.forms,
            devices: mixer.devices(),
            parameters: params.count(),
            state_bytes,
            state_grows: mixer.state_bytes(2 * context, DType::F32) > state_bytes,
            multiply_adds: mixer.cost_per_token(context),
        })
    }
}

/// A parameter that takes no memory: only the shapes matter here.
fn nothing(_: &str, shape: &[usize]) -> weft_mixers::Result<Tensor> {
    Ok(Tensor::zeros(&[], DType::F32, &Device::Cpu).broadcast_to(shape)?)
}
