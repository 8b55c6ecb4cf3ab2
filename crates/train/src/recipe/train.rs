//! The `[train]` and `[eval]` tables.

use serde::Serialize;

use super::Source;
use super::section::Section;
use super::task::MAX_LENGTH;
use crate::error::Result;
use crate::schedule::{Schedule, Shape};

/// How it is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainRecipe {
    /// How long: one of `steps`, `minutes`, `tokens`.
    #[serde(flatten)]
    pub budget: Budget,
    /// Sequences in a forward pass. Default 8.
    pub batch: usize,
    /// Passes whose gradients are added for one step. Default 1.
    pub accumulate: usize,
    /// `optimizer` and its numbers.
    #[serde(flatten)]
    pub optimizer: Optimizer,
    /// `schedule`, and for wsd its `decay`. Default cosine.
    #[serde(flatten)]
    pub shape: Shape,
    /// Steps of warm-up. Default a tenth of the steps, at most 100.
    pub warmup: u64,
    /// The last learning rate as a part of the highest. Default 0.1.
    pub min_ratio: f64,
    /// The greatest norm of the gradient; larger ones are scaled down, 0 leaves all as they are. Default 1.
    pub clip: f64,
    /// Seed of the weights and of the order of the data. Default 0.
    pub seed: u64,
    /// Steps between checkpoints; 0 means only at the end. Default 500.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept. Default 2.
    pub keep: usize,
    /// Compute in bf16 with f32 master weights. Default false.
    pub bf16: bool,
    /// Activations are computed again in the backward pass instead of kept. Default false.
    pub recompute: bool,
    /// Steps with a loss or gradient that is not finite are skipped; this many in a row end the run. Default 10.
    pub nonfinite_limit: u64,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// Optimiser steps.
    Steps(u64),
    /// Time in steps, evaluations not counted; the schedule follows the clock.
    Minutes(f64),
    /// Tokens trained on, rounded up to whole steps.
    Tokens(u64),
}

/// The optimisers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "optimizer", rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    AdamW(AdamW),
    /// Orthogonalised momentum for the matrices of the layers (Jordan et al. 2024), AdamW for all else.
    Muon(Muon),
}

impl Optimizer {
    /// The numbers of AdamW, which every optimiser uses for some parameters.
    pub fn adamw(&self) -> &AdamW {
        match self {
            Self::AdamW(adamw) => adamw,
            Self::Muon(muon) => &muon.adamw,
        }
    }
}

/// The numbers of AdamW.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdamW {
    /// The highest learning rate. Default 1e-3.
    pub lr: f64,
    /// Decay of the first and second moment. Default [0.9, 0.95].
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Weight decay of the matrices. Default 0.1.
    pub weight_decay: f64,
}

/// The numbers of Muon, and those of AdamW beside it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Muon {
    /// For what is no matrix of a layer.
    #[serde(flatten)]
    pub adamw: AdamW,
    /// The highest learning rate of the matrices. Default 0.02.
    pub muon_lr: f64,
    /// Their momentum. Default 0.95.
    pub muon_momentum: f64,
}

/// How it is evaluated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRecipe {
    /// Steps between evaluations; 0 means only at the end. Default 250.
    pub every: u64,
    /// Batches in an evaluation at most; of a task, as many at each length. Default 20.
    pub batches: u64,
    /// Lengths that a task is also evaluated at. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<usize>,
    /// The share of a task's answers that count in an evaluation, from the end of each example. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<f64>,
}

#[derive(Clone, Copy)]
enum Kind {
    AdamW,
    Muon,
}

const KINDS: [(&str, Kind); 2] = [("adamw", Kind::AdamW), ("muon", Kind::Muon)];

/// Without `decay`, which only wsd takes and is filled in.
const SHAPES: [(&str, Shape); 4] = [
    ("cosine", Shape::Cosine),
    ("wsd", Shape::Wsd { decay: 0.2 }),
    ("linear", Shape::Linear),
    ("constant", Shape::Constant),
];

/// TOML has no greater integers.
pub(super) const MAX: u64 = i64::MAX as u64;

impl TrainRecipe {
    pub(super) fn read(mut table: Section<'_>) -> Result<Self> {
        let budget = read_budget(&mut table)?;
        let warmup = match (budget, table.integer("warmup", 0..=MAX)?) {
            (Budget::Steps(steps), Some(warmup)) if warmup > steps => {
                let reason = format!("({warmup}) is longer than the run of {steps} steps");
                return Err(table.error("warmup", &reason));
            }
            (_, Some(warmup)) => warmup,
            (Budget::Steps(steps), None) => (steps / 10).min(100),
            (_, None) => 100,
        };
        let recipe = Self {
            budget,
            batch: table.size("batch", 1..=1 << 20)?.unwrap_or(8),
            accumulate: table.size("accumulate", 1..=1 << 20)?.unwrap_or(1),
            optimizer: read_optimizer(&mut table)?,
            shape: read_shape(&mut table)?,
            warmup,
            min_ratio: table.number("min_ratio", 0.0..=1.0)?.unwrap_or(0.1),
            clip: table.number("clip", 0.0..=1e9)?.unwrap_or(1.0),
            seed: table.integer("seed", 0..=MAX)?.unwrap_or(0),
            checkpoint_every: table.integer("checkpoint_every", 0..=MAX)?.unwrap_or(500),
            keep: table.size("keep", 1..=1 << 20)?.unwrap_or(2),
            bf16: table.flag("bf16")?.unwrap_or(false),
            recompute: table.flag("recompute")?.unwrap_or(false),
            nonfinite_limit: table.integer("nonfinite_limit", 1..=MAX)?.unwrap_or(10),
        };
        table.finish()?;
        Ok(recipe)
    }

    /// The schedule of a learning rate with this peak, over a run of `total` steps.
    pub fn schedule(&self, peak: f64, total: u64) -> Schedule {
        Schedule {
            shape: self.shape,
            peak,
            warmup: self.warmup.min(total),
            total,
            min_ratio: self.min_ratio,
        }
    }
}

impl EvalRecipe {
    pub(super) fn read(mut table: Section<'_>, source: &Source) -> Result<Self> {
        let recipe = Self {
            every: table.integer("every", 0..=MAX)?.unwrap_or(250),
            batches: table.integer("batches", 1..=MAX)?.unwrap_or(20),
            lengths: table.sizes("lengths", 1..=MAX_LENGTH)?.unwrap_or_default(),
            tail: table.number("tail", 1e-9..=1.0)?,
        };
        match source {
            Source::Data(_) if !recipe.lengths.is_empty() => {
                return Err(table.error("lengths", "needs a [task]"));
            }
            Source::Data(_) if recipe.tail.is_some() => {
                return Err(table.error("tail", "needs a [task]"));
            }
            Source::Data(_) => (),
            Source::Task(task) => {
                let generator = task.generator()?;
                for &length in &recipe.lengths {
                    let fits = generator.check_length(length);
                    fits.map_err(|e| table.wrong("lengths", e.to_string()))?;
                }
            }
        }
        table.finish()?;
        Ok(recipe)
    }
}

fn read_budget(table: &mut Section<'_>) -> Result<Budget> {
    let steps = table.integer("steps", 1..=MAX)?.map(Budget::Steps);
    let minutes = table.number("minutes", 1e-3..=1e6)?.map(Budget::Minutes);
    let tokens = table.integer("tokens", 1..=MAX)?.map(Budget::Tokens);
    let lengths = [("steps", steps), ("minutes", minutes), ("tokens", tokens)];
    let mut given = lengths
        .into_iter()
        .filter_map(|(key, budget)| Some((key, budget?)));
    match (given.next(), given.next()) {
        (None, _) => Err(table.missing("steps")),
        (Some((_, budget)), None) => Ok(budget),
        (Some((first, _)), Some((second, _))) => {
            let reason = format!("is a second length of the run beside `train.{first}`: give one");
            Err(table.error(second, &reason))
        }
    }
}

fn read_optimizer(table: &mut Section<'_>) -> Result<Optimizer> {
    let kind = table.choice("optimizer", &KINDS)?.unwrap_or(Kind::AdamW);
    let adamw = AdamW {
        lr: table.number("lr", 1e-12..=100.0)?.unwrap_or(1e-3),
        betas: table.pair("betas", 0.0..=0.999_999)?.unwrap_or([0.9, 0.95]),
        eps: table.number("eps", 1e-30..=1.0)?.unwrap_or(1e-8),
        weight_decay: table.number("weight_decay", 0.0..=100.0)?.unwrap_or(0.1),
    };
    let lr = table.number("muon_lr", 1e-12..=100.0)?;
    let momentum = table.number("muon_momentum", 0.0..=0.999_999)?;
    match (kind, lr, momentum) {
        (Kind::Muon, ..) => Ok(Optimizer::Muon(Muon {
            adamw,
            muon_lr: lr.unwrap_or(0.02),
            muon_momentum: momentum.unwrap_or(0.95),
        })),
        (Kind::AdamW, None, None) => Ok(Optimizer::AdamW(adamw)),
        (Kind::AdamW, lr, _) => {
            let key = if lr.is_some() {
                "muon_lr"
            } else {
                "muon_momentum"
            };
            Err(table.error(key, "needs `train.optimizer = \"muon\"`"))
        }
    }
}

fn read_shape(table: &mut Section<'_>) -> Result<Shape> {
    let shape = table.choice("schedule", &SHAPES)?.unwrap_or(Shape::Cosine);
    match (shape, table.number("decay", 0.0..=1.0)?) {
        (shape, None) => Ok(shape),
        (Shape::Wsd { .. }, Some(decay)) => Ok(Shape::Wsd { decay }),
        (_, Some(_)) => Err(table.error("decay", "needs `train.schedule = \"wsd\"`")),
    }
}
