//! `weft kernels`: the CUDA kernels in this binary, compiled ahead or only checked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{anyhow, bail};
use clap::Subcommand;
use serde_json::json;
use weft_tensor::cuda::kernels::{self, Checked};
use weft_tensor::cuda::{self, Source};
use weft_train::{log::Progress, report};

use super::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  weft kernels list
  weft kernels build
  weft kernels check --arch sm_80,sm_90a,sm_100

Kernels are compiled for the GPU that is there when they are first needed, and kept in \
$XDG_CACHE_HOME/weft/kernels (~/.cache/weft/kernels). Compiling needs NVRTC, not a GPU: \
'pip install nvidia-cuda-nvrtc', and its folder in WEFT_NVRTC where it is not found.";

const BUILD_EXAMPLES: &str = "\
Examples:
  weft kernels build
  weft kernels build --arch sm_90      # on a machine without a GPU, for one that has it";

const CHECK_EXAMPLES: &str = "\
Examples:
  weft kernels check
  weft kernels check --arch sm_90a --json";

/// List, compile or check the CUDA kernels
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List the kernels' sources and how many variants each has
    List {
        /// Print a JSON array, with every variant
        #[arg(long)]
        json: bool,
    },
    /// Compile every kernel for a GPU, so that no later run has to
    #[command(after_help = BUILD_EXAMPLES)]
    Build {
        /// The architecture instead of that of the first GPU, such as sm_90
        #[arg(long, value_name = "ARCH")]
        arch: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Compile every kernel for some architectures and keep nothing; needs no GPU
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The architectures, separated by commas
        #[arg(
            long,
            value_name = "LIST",
            value_delimiter = ',',
            default_value = "sm_80,sm_90a,sm_100"
        )]
        arch: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The kernels of every crate.
fn sources() -> Vec<&'static Source> {
    let mut all = cuda::SOURCES.to_vec();
    all.extend(weft_mixers::KERNELS);
    all.push(&weft_train::optim::KERNELS);
    all
}

impl Args {
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self.what {
            What::List { json } => list(json)?,
            What::Build { arch, json } => build(arch, json)?,
            What::Check { arch, json } => check(&arch, json)?,
        }
        Ok(Outcome::Done)
    }
}

fn list(json: bool) -> anyhow::Result<()> {
    let sources = sources();
    if json {
        let object = |s: &&'static Source| {
            let variants: Vec<String> = s.all().iter().map(|v| v.describe()).collect();
            json!({ "source": s.name, "variants": variants })
        };
        return output::json(&sources.iter().map(object).collect::<Vec<_>>());
    }
    let rows = sources
        .iter()
        .map(|s| vec![s.name.to_string(), s.all().len().to_string()]);
    output::print(report::plain(
        &[("source", false), ("variants", true)],
        rows,
    ))
}

/// Run `work`, which calls back after each of `total` modules, under a progress bar.
fn with_progress<R>(
    what: &str,
    total: usize,
    work: impl FnOnce(&(dyn Fn() + Sync)) -> weft_tensor::Result<R>,
) -> weft_tensor::Result<R> {
    let bar = Mutex::new(Progress::new(what, total as u64));
    let count = AtomicU64::new(0);
    let done = || {
        let n = count.fetch_add(1, Ordering::Relaxed) + 1;
        // A poisoned lock only holds a bar.
        bar.lock().unwrap_or_else(|e| e.into_inner()).update(n, "");
    };
    let result = work(&done);
    let bar = bar.into_inner().unwrap_or_else(|e| e.into_inner());
    bar.clear();
    result
}

fn modules() -> usize {
    sources().iter().map(|s| s.all().len()).sum()
}

/// What was compiled, and in how many seconds.
fn show(found: &[Checked], start: Instant, json: bool) -> anyhow::Result<()> {
    let seconds = start.elapsed().as_secs_f64();
    let (major, minor) = kernels::version().map_err(|e| anyhow!(e))?;
    if json {
        let object =
            |c: &Checked| json!({ "arch": c.arch, "modules": c.modules, "bytes": c.bytes });
        let archs: Vec<_> = found.iter().map(object).collect();
        return output::json(
            &json!({ "nvrtc": format!("{major}.{minor}"), "seconds": seconds, "archs": archs }),
        );
    }
    let lines = found.iter().map(|c| {
        let size = report::bytes(c.bytes);
        format!("{}: {} modules, {size}\n", c.arch, c.modules)
    });
    output::print(lines.collect::<String>() + &format!("NVRTC {major}.{minor}, {seconds:.2} s\n"))
}

fn check(archs: &[String], json: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    let found = with_progress("check", modules() * archs.len(), |done| {
        kernels::check(&sources(), archs, done)
    })?;
    show(&found, start, json)
}

fn build(arch: Option<String>, json: bool) -> anyhow::Result<()> {
    let number = match arch {
        Some(name) => match name.strip_prefix("sm_").and_then(|d| d.parse().ok()) {
            Some(n) => n,
            None => bail!("--arch {name:?} is no architecture of a GPU: give a name like sm_90"),
        },
        None => match cuda::context(0) {
            Ok(c) => c.arch,
            Err(e) => bail!("{e}: name the architecture, such as --arch sm_90"),
        },
    };
    let start = Instant::now();
    let found = with_progress("build", modules(), |done| {
        kernels::build(&sources(), number, done)
    })?;
    show(&[found], start, json)?;
    if let (false, Some(folder)) = (json, kernels::cache_folder()) {
        output::print(format!("{}\n", folder.display()))?;
    }
    Ok(())
}
