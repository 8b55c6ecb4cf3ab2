//! `weft bench train` and `weft bench decode`: whole models.

use clap::{ValueEnum, value_parser};
use weft_tensor::{DType, Device};
use weft_train::bench::{
    self, DecodeRow, Decoding, KernelTime, LastModel, Size, TrainRow, Training,
};
use weft_train::report::{bytes, plain, short};

use super::Common;
use crate::output;

use super::report::{bytes_per_second, flops_per_second, ms, percent};

const TRAIN_EXAMPLES: &str = "\
Examples:
  weft bench train
  weft bench train --layers \"3*gdn2 + attention\" --tokens 4096 --batch 4
  weft bench train --device cpu --layers gdn2 --d-model 128 --depth 4 --json

A step is forward, backward and AdamW on random tokens. Without options a transformer and a hybrid of the same size \
are measured; an option replaces its number in every row. MFU is the part of the GPU's datasheet, as in the log of \
weft train; 'of product' that of a large matrix product in this run.";

const DECODE_EXAMPLES: &str = "\
Examples:
  weft bench decode
  weft bench decode --batch 1 --weights bf16
  weft bench decode --layers gdn2 --position 32768 --json

A step is one token for each sequence. Without options a hybrid is measured at several batches, and it and a recurrent \
model early and late in a context: the recurrent one takes the same time at both. B/s counts the weights and the \
state, which a step reads once; 'recorded' says whether a step was sent to the GPU as a whole.";

#[derive(Clone, Copy, ValueEnum)]
enum Float {
    F32,
    Bf16,
}

impl From<Float> for DType {
    fn from(float: Float) -> DType {
        match float {
            Float::F32 => DType::F32,
            Float::Bf16 => DType::BF16,
        }
    }
}

/// What a model may be told to be.
#[derive(clap::Args)]
struct SizeArgs {
    /// The pattern of layers, such as "3*gdn2 + attention"
    #[arg(long, value_name = "PATTERN")]
    layers: Option<String>,
    /// Layers
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=4096))]
    depth: Option<u32>,
    /// Width of the residual stream
    #[arg(long, value_name = "D", value_parser = value_parser!(u32).range(1..=1 << 20))]
    d_model: Option<u32>,
    /// Rows of the embedding
    #[arg(long, value_name = "V", value_parser = value_parser!(u32).range(2..=1 << 22))]
    vocab: Option<u32>,
    /// Sequences
    #[arg(long, value_name = "B", value_parser = value_parser!(u32).range(1..=1 << 20))]
    batch: Option<u32>,
}

/// Put a number that was given in the place of another.
fn put(number: &mut usize, given: Option<u32>) {
    if let Some(given) = given {
        *number = given as usize;
    }
}

impl SizeArgs {
    fn put(&self, model: &mut Size, batch: &mut usize) {
        if let Some(layers) = &self.layers {
            model.layers.clone_from(layers);
        }
        put(&mut model.depth, self.depth);
        put(&mut model.d_model, self.d_model);
        put(&mut model.vocab, self.vocab);
        put(batch, self.batch);
    }
}

/// Rows that options have made equal are measured once; a model that cannot be is an error before anything is.
fn distinct<C: PartialEq>(cases: Vec<C>, model: fn(&C) -> &Size) -> anyhow::Result<Vec<C>> {
    let mut found: Vec<C> = vec![];
    for case in cases {
        model(&case).config()?;
        if !found.contains(&case) {
            found.push(case);
        }
    }
    Ok(found)
}

/// Time training steps: tokens per second and MFU
#[derive(clap::Args)]
#[command(after_help = TRAIN_EXAMPLES)]
pub struct TrainArgs {
    #[command(flatten)]
    size: SizeArgs,
    /// Tokens of a sequence
    #[arg(long, value_name = "T", value_parser = value_parser!(u32).range(1..=1 << 24))]
    tokens: Option<u32>,
    /// Dtype of the activations; master weights are f32
    #[arg(long, value_name = "DTYPE", value_enum)]
    compute: Option<Float>,
    /// Compute activations again in the backward pass instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// Also print where a step spends the GPU's time, kernel by kernel
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    common: Common,
}

/// Seconds for a row.
const SECONDS: f64 = 3.0;

impl TrainArgs {
    pub fn run(self) -> anyhow::Result<()> {
        let device: Device = self.common.device.open()?;
        let mut cases = bench::train(&device);
        for case in &mut cases {
            self.size.put(&mut case.model, &mut case.batch);
            put(&mut case.tokens, self.tokens);
            case.compute = self.compute.map_or(case.compute, DType::from);
            case.recompute = self.recompute;
            case.profile = self.profile;
        }
        let title = |c: &Training| format!("{}, B{} T{} {}", c.model, c.batch, c.tokens, c.compute);
        let cases = distinct(cases, |c| &c.model)?.into_iter();
        let cases = cases.map(|c| (title(&c), c)).collect();
        let report = self
            .common
            .measure(device, SECONDS, cases, |case, clock, ceilings| {
                case.measure(&device, clock, ceilings)
            })?;
        let headings = [
            ("layers", false),
            ("model", false),
            ("shape", false),
            ("compute", false),
            ("ms", true),
            ("tokens/s", true),
            ("FLOP/s", true),
            ("of product", true),
            ("MFU", true),
            MEMORY,
        ];
        report.show(self.common.json, &headings, train_cells)?;
        if !self.common.json {
            for row in &report.rows {
                print_kernels(row)?;
            }
        }
        Ok(())
    }
}

/// The kernels that take the most time of a step.
fn print_kernels(row: &TrainRow) -> anyhow::Result<()> {
    const MOST: usize = 30;
    let Some(kernels) = &row.kernels else {
        return Ok(());
    };
    let busy: f64 = kernels.iter().map(|k| k.ms).sum();
    let launches: usize = kernels.iter().map(|k| k.launches).sum();
    let mut text = format!(
        "\n{}, B{} T{}: the GPU is busy for {} ms in {launches} launches\n",
        row.layers,
        row.batch,
        row.tokens,
        ms(busy)
    );
    let headings = [
        ("operation", false),
        ("kernel", false),
        ("launches", true),
        ("ms", true),
        ("us each", true),
    ];
    let cells = |k: &KernelTime| {
        vec![
            k.op.clone(),
            k.kernel.clone(),
            k.launches.to_string(),
            ms(k.ms),
            ms(1e3 * k.ms / k.launches as f64),
        ]
    };
    text += &plain(&headings, kernels.iter().take(MOST).map(cells));
    output::print(text)
}

fn train_cells(row: &TrainRow) -> Vec<String> {
    vec![
        row.layers.clone(),
        model(row.depth, row.d_model, row.parameters),
        format!("B{} T{}", row.batch, row.tokens),
        row.compute.clone(),
        ms(row.ms),
        short(row.tokens_per_second),
        flops_per_second(row.flops_per_second),
        percent(row.share),
        row.mfu.map_or("–".into(), percent),
        memory(row.peak_bytes, row.driver_allocations),
    ]
}

/// Time decoding: milliseconds per token
#[derive(clap::Args)]
#[command(after_help = DECODE_EXAMPLES)]
pub struct DecodeArgs {
    #[command(flatten)]
    size: SizeArgs,
    /// Tokens before the first one that is timed
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1 << 24))]
    position: Option<u32>,
    /// Dtype of the weights' matrices
    #[arg(long, value_name = "DTYPE", value_enum)]
    weights: Option<Float>,
    #[command(flatten)]
    common: Common,
}

impl DecodeArgs {
    pub fn run(self) -> anyhow::Result<()> {
        let device: Device = self.common.device.open()?;
        let mut cases = bench::decode(&device);
        for case in &mut cases {
            self.size.put(&mut case.model, &mut case.batch);
            put(&mut case.position, self.position);
            case.weights = self.weights.map_or(case.weights, DType::from);
        }
        let title = |c: &Decoding| {
            let Decoding {
                model,
                batch,
                position,
                weights,
            } = c;
            format!("{model}, B{batch} at {position} {weights}")
        };
        let cases = distinct(cases, |c| &c.model)?.into_iter();
        let cases = cases.map(|c| (title(&c), c)).collect();
        let mut last = LastModel::default();
        let report = self
            .common
            .measure(device, SECONDS, cases, |case, clock, ceilings| {
                case.measure(&device, &mut last, clock, ceilings)
            })?;
        let headings = [
            ("layers", false),
            ("model", false),
            ("weights", false),
            ("batch", true),
            ("position", true),
            ("ms", true),
            ("tokens/s", true),
            ("B/s", true),
            ("of copy", true),
            ("recorded", false),
            ("state", true),
            MEMORY,
        ];
        report.show(self.common.json, &headings, decode_cells)
    }
}

fn decode_cells(row: &DecodeRow) -> Vec<String> {
    vec![
        row.layers.clone(),
        model(row.depth, row.d_model, row.parameters),
        row.weights.clone(),
        row.batch.to_string(),
        row.position.to_string(),
        ms(row.ms),
        short(row.tokens_per_second),
        bytes_per_second(row.bytes_per_second),
        percent(row.share),
        if row.recorded { "yes" } else { "no" }.into(),
        bytes(row.state_bytes),
        memory(row.peak_bytes, row.driver_allocations),
    ]
}

fn model(depth: usize, d_model: usize, parameters: usize) -> String {
    format!("{depth} x {d_model}, {}", short(parameters as f64))
}

/// The peak, and on a GPU the allocations that a step asked of the driver.
const MEMORY: (&str, bool) = ("memory (driver allocations)", true);

fn memory(peak: usize, driver_allocations: Option<usize>) -> String {
    let peak = bytes(peak);
    driver_allocations.map_or(peak.clone(), |n| format!("{peak} ({n})"))
}
