//! Training steps: forward, backward and AdamW on random tokens, without clipping, as the peers do it. On a GPU the
//! host never waits between steps.
//!
//! Operations are those of the log: six per multiply-add of a forward token, half of the sequence seen on average. What
//! is computed again does not count.

use serde::Serialize;
use weft_models::Run;
use weft_tensor::{DType, Device, Rng, cuda};

use super::model::{HYBRID, Size};
use super::{Ceilings, Clock, optimizer};
use crate::error::{Error, Result};
use crate::optim::{Grads, Optimizer};
use crate::trainer::operations;
use crate::{machine, recipe};

/// A training step to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// The model.
    pub model: Size,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Dtype of the activations; masters are f32.
    pub compute: DType,
    /// Activations are computed again in the backward pass.
    pub recompute: bool,
    /// Sum up the time of every kernel of one more step. On a GPU only.
    pub profile: bool,
}

/// The time of a kernel in one step.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTime {
    /// The operation that sent it.
    pub op: String,
    /// Its name.
    pub kernel: String,
    /// How often it ran.
    pub launches: usize,
    /// Milliseconds of all launches.
    pub ms: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct TrainRow {
    /// The pattern of layers.
    pub layers: String,
    /// Layers.
    pub depth: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Dtype of the activations.
    pub compute: String,
    /// Parameters, embedding and head included.
    pub parameters: usize,
    /// Milliseconds of a step.
    pub ms: f64,
    /// Tokens trained on per second.
    pub tokens_per_second: f64,
    /// Floating-point operations of a step.
    pub flops: f64,
    /// Operations per second.
    pub flops_per_second: f64,
    /// The part of a large matrix product's rate, measured in this run.
    pub share: f64,
    /// The part of the datasheet's rate, as in the log of a training; `None` where that is not known.
    pub mfu: Option<f64>,
    /// Nats per token at the end: a check that something was learned with.
    pub loss: f64,
    /// The most bytes that tensors took.
    pub peak_bytes: usize,
    /// The most bytes that the process took meanwhile; `None` where the system does not say.
    pub peak_resident_bytes: Option<usize>,
    /// Allocations that the driver was asked for by a step after the warm-up: 0 in a steady state. `None` on the CPU.
    pub driver_allocations: Option<usize>,
    /// The kernels of a step, the longest first, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<KernelTime>>,
}

impl Training {
    /// Build the model and take the time of its steps.
    ///
    /// # Errors
    /// When the model cannot be built, memory is short or the loss is not finite.
    pub fn measure(&self, device: &Device, clock: &Clock, ceilings: &Ceilings) -> Result<TrainRow> {
        super::fresh_memory(device)?;
        let Training { batch, tokens, .. } = *self;
        let model = self.model.build(device)?;
        let rule = recipe::Optimizer::AdamW(optimizer::adamw());
        let mut optimizer = Optimizer::new(model.params(), &rule)?;
        let mut rng = Rng::new(1);
        let run = Run {
            compute: self.compute,
            checkpoint: self.recompute,
        };
        let mut last = None;
        let mut step = || {
            let vocab = self.model.vocab as i64;
            let ids = rng.integers(&[batch, tokens + 1], 0, vocab, &Device::Cpu)?;
            let loss = model.loss(&ids, &run)?.mean_all()?;
            let mut grads = loss.backward()?;
            last = Some(loss.detach());
            optimizer.step(&Grads::take(model.params(), &mut grads), 1.0, 1.0)
        };
        let ms = clock.ms(&mut step)?;
        let before = super::driver_allocations(device)?;
        step()?;
        device.synchronize()?;
        let after = super::driver_allocations(device)?;
        let kernels = match (self.profile, *device) {
            (false, _) => None,
            (true, Device::Cuda(ordinal)) => Some(profile(ordinal, &mut step)?),
            (true, _) => {
                let text = "a profile sums up the kernels of a GPU: give --device cuda";
                return Err(Error::Data(text.into()));
            }
        };
        let loss = last.map_or(Ok(f64::NAN), |l| l.item_f64())?;
        if !loss.is_finite() {
            let text = "the loss is not finite: the training is wrong, so its time says nothing";
            return Err(Error::Data(text.into()));
        }
        let flops = operations(&model, batch, tokens);
        let flops_per_second = 1e3 * flops / ms;
        let Size {
            layers,
            depth,
            d_model,
            vocab,
        } = self.model.clone();
        Ok(TrainRow {
            layers,
            depth,
            d_model,
            vocab,
            batch,
            tokens,
            compute: self.compute.to_string(),
            parameters: model.params().count(),
            ms,
            tokens_per_second: 1e3 * (batch * tokens) as f64 / ms,
            flops,
            flops_per_second,
            share: flops_per_second / ceilings.product(self.compute),
            mfu: machine::peak(device).map(|peak| flops_per_second / peak),
            loss,
            peak_bytes: super::peak_bytes(device)?,
            peak_resident_bytes: machine::peak_resident_bytes(),
            driver_allocations: after.zip(before).map(|(a, b)| a - b),
            kernels,
        })
    }
}

fn profile(ordinal: usize, step: impl FnOnce() -> Result<()>) -> Result<Vec<KernelTime>> {
    let (done, lines) = cuda::profile(ordinal, step)?;
    done?;
    let line = |l: cuda::Line| KernelTime {
        op: l.op.into(),
        kernel: l.kernel.into(),
        launches: l.launches,
        ms: l.ms,
    };
    Ok(lines.into_iter().map(line).collect())
}

/// The transformer and the hybrid, at the sizes of `docs/benchmarks.md`.
pub(super) fn defaults(device: &Device) -> Vec<Training> {
    let gpu = *device != Device::Cpu;
    let [depth, d_model, vocab] = if gpu {
        [12, 768, 32_000]
    } else {
        [6, 256, 2048]
    };
    let shapes: &[[usize; 2]] = if gpu {
        &[[16, 1024], [4, 4096]]
    } else {
        &[[8, 256]]
    };
    let row = |layers: &str, [batch, tokens]: [usize; 2]| Training {
        model: Size {
            layers: layers.into(),
            depth,
            d_model,
            vocab,
        },
        batch,
        tokens,
        compute: if gpu { DType::BF16 } else { DType::F32 },
        recompute: false,
        profile: false,
    };
    let pair = |&shape| ["attention", HYBRID].map(|layers| row(layers, shape));
    shapes.iter().flat_map(pair).collect()
}
