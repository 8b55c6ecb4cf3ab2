//! Decoding: one token for each sequence of a batch, the most likely one fed back, at a position of the context that
//! was reached in long pieces. On a GPU the host never waits for a token.
//!
//! A step reads every matrix but the embedding once, and the state: its floor is those bytes at the rate of a copy.

use serde::Serialize;
use weft_mixers::Call;
use weft_models::{Decoder, LanguageModel, ModelState};
use weft_tensor::{DType, Device, Rng, Tensor, no_grad};

use super::model::{HYBRID, LastModel, Size};
use super::{Ceilings, Clock};
use crate::error::{Error, Result};
use crate::machine;

/// Tokens of a piece of the context.
const PIECE: usize = 1024;
/// Steps before the first that is timed: on a GPU one of them is recorded.
const SETTLE: usize = 8;

/// Decoding to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// The model.
    pub model: Size,
    /// Sequences.
    pub batch: usize,
    /// Tokens before the first that is timed.
    pub position: usize,
    /// Dtype of the matrices.
    pub weights: DType,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct DecodeRow {
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
    /// Tokens before the first that was timed.
    pub position: usize,
    /// Dtype of the matrices.
    pub weights: String,
    /// Parameters.
    pub parameters: usize,
    /// Whether a step was sent to the GPU as a whole.
    pub recorded: bool,
    /// Milliseconds of a step: one token for each sequence.
    pub ms: f64,
    /// Tokens per second, of all sequences together.
    pub tokens_per_second: f64,
    /// Bytes that a step reads: matrices without the embedding, and the state.
    pub bytes: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// The part of a copy's rate.
    pub share: f64,
    /// Bytes of the state at the end.
    pub state_bytes: usize,
    /// The most bytes that tensors took.
    pub peak_bytes: usize,
    /// The most bytes that the process took meanwhile; `None` where the system does not say.
    pub peak_resident_bytes: Option<usize>,
    /// Allocations that the driver was asked for by a step after the warm-up. `None` on the CPU.
    pub driver_allocations: Option<usize>,
}

impl Decoding {
    /// Take the last row's model or build one, read the context and take the time of steps behind it.
    ///
    /// # Errors
    /// When the model cannot be built, memory is short or the logits are not finite.
    pub fn measure(
        &self,
        device: &Device,
        last: &mut LastModel,
        clock: &Clock,
        ceilings: &Ceilings,
    ) -> Result<DecodeRow> {
        let model = last.get(&self.model, self.weights, device)?;
        super::fresh_memory(device)?;
        let mut state = model.init_state(self.batch)?;
        let mut logits = self.context(model, &mut state)?;
        let mut decoder = Decoder::new(model, &mut state);
        let mut step = || {
            let ids = logits.argmax(-1, true)?;
            logits = decoder.step_on(&ids)?;
            Ok(())
        };
        for _ in 0..SETTLE {
            step()?;
        }
        let ms = clock.ms(&mut step)?;
        let before = super::driver_allocations(device)?;
        step()?;
        device.synchronize()?;
        let after = super::driver_allocations(device)?;
        if !logits.all_finite()? {
            let text = "the logits are not finite: decoding is wrong, so its time says nothing";
            return Err(Error::Data(text.into()));
        }
        let recorded = decoder.is_recorded();
        let bytes = (read_bytes(model) + state.bytes()) as f64;
        let Size {
            layers,
            depth,
            d_model,
            vocab,
        } = self.model.clone();
        Ok(DecodeRow {
            layers,
            depth,
            d_model,
            vocab,
            batch: self.batch,
            position: self.position,
            weights: self.weights.to_string(),
            parameters: model.params().count(),
            recorded,
            ms,
            tokens_per_second: 1e3 * self.batch as f64 / ms,
            bytes,
            bytes_per_second: 1e3 * bytes / ms,
            share: 1e3 * bytes / ms / ceilings.copy,
            state_bytes: state.bytes(),
            peak_bytes: super::peak_bytes(device)?,
            peak_resident_bytes: machine::peak_resident_bytes(),
            driver_allocations: after.zip(before).map(|(a, b)| a - b),
        })
    }

    /// Random tokens up to the position, in pieces; the logits behind the last.
    fn context(&self, model: &LanguageModel, state: &mut ModelState) -> Result<Tensor> {
        let mut rng = Rng::new(2);
        let mut at = 0;
        loop {
            let piece = PIECE.min(self.position - at).max(1);
            let vocab = self.model.vocab as i64;
            let ids = rng.integers(&[self.batch, piece], 0, vocab, &Device::Cpu)?;
            let logits = no_grad(|| model.forward_last(&ids, state, &Call::default()))?;
            at += piece;
            if at >= self.position {
                return Ok(logits);
            }
        }
    }
}

/// Bytes of all parameters but the embedding table, of which a token reads one row.
fn read_bytes(model: &LanguageModel) -> usize {
    let read = |name: &str| !name.contains("embed_tokens");
    let params = model.params().iter().filter(|p| read(p.name()));
    params.map(|p| p.get().bytes()).sum()
}

/// A hybrid at several batches; then the same hybrid, and a recurrent model alone, early and late in a context: the
/// recurrent one takes the same time at both.
pub(super) fn defaults(device: &Device) -> Vec<Decoding> {
    let gpu = *device != Device::Cpu;
    let [depth, d_model, vocab] = if gpu {
        [24, 1024, 32_000]
    } else {
        [12, 512, 2048]
    };
    let (batches, late) = if gpu {
        ([8, 64], 8192)
    } else {
        ([4, 16], 4096)
    };
    const EARLY: usize = 100;
    let row = |layers: &str, batch, position| Decoding {
        model: Size {
            layers: layers.into(),
            depth,
            d_model,
            vocab,
        },
        batch,
        position,
        weights: if gpu { DType::BF16 } else { DType::F32 },
    };
    vec![
        row(HYBRID, 1, EARLY),
        row(HYBRID, batches[0], EARLY),
        row(HYBRID, batches[1], EARLY),
        row(HYBRID, 1, late),
        row("gdn2", 1, EARLY),
        row("gdn2", 1, late),
    ]
}
