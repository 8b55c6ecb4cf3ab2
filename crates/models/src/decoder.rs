//! Decoding one token after another. On a GPU a step of many small kernels takes the host longer to send than the GPU to
//! run, so after a few steps one is recorded ([`weft_tensor::cuda::Graph`]) and from then on sent as a whole.
//!
//! A recorded step reads and writes the state's tensors where they are, and takes positions from a clock on the GPU. It
//! is recorded anew when a cache has no room left; a model with a mixer that cannot be recorded is run as ever.

use weft_mixers::Call;
use weft_mixers::shared::cache_rows::tick;
use weft_tensor::cuda::{Graph, Input};
use weft_tensor::{Device, Tensor, no_grad};

use crate::error::{Error, Result};
use crate::lm::LanguageModel;
use crate::state::ModelState;

/// Steps before one is recorded, which costs as much as several.
const BEFORE: usize = 4;

/// Decodes tokens of a batch of sequences on a state that it borrows.
pub struct Decoder<'a> {
    model: &'a LanguageModel,
    state: &'a mut ModelState,
    steps: usize,
    recorded: Option<Recorded>,
    /// Something in the model cannot be recorded.
    refused: bool,
}

struct Recorded {
    graph: Graph,
    ids: Input,
    logits: Tensor,
    /// The position that the state has room for, exclusively.
    room: usize,
    /// Whether the state's positions already count the next replay.
    counted: bool,
}

impl<'a> Decoder<'a> {
    /// A decoder that goes on from a state.
    pub fn new(model: &'a LanguageModel, state: &'a mut ModelState) -> Decoder<'a> {
        Decoder {
            model,
            state,
            steps: 0,
            recorded: None,
            refused: false,
        }
    }

    /// The state behind the tokens decoded so far.
    pub fn state(&self) -> &ModelState {
        self.state
    }

    /// Whether the last step was sent as a whole.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// The logits [B, V] after one more token of each sequence. They are valid until the next step.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or their number is not that of the sequences.
    pub fn step(&mut self, ids: &[i64]) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, &[ids.len(), 1], &Device::Cpu)?;
        self.step_on(&ids)
    }

    /// The same for tokens [B, 1] i64 that may be on the model's device already: then nothing is waited for, and a bad
    /// one is an error at the next wait.
    ///
    /// # Errors
    /// As [`Decoder::step`].
    pub fn step_on(&mut self, ids: &Tensor) -> Result<Tensor> {
        let [batch, _] = self.model.check_ids(ids, None)?;
        self.state.expect(self.model, batch)?;
        let device = self.model.device();
        let ids = ids.to_device(&device)?;
        let position = self.state.positions().iter().copied().max().unwrap_or(0);
        let room = self.recorded.as_ref().map_or(0, |r| r.room);
        if position >= room {
            self.recorded = None;
            let due = self.steps >= BEFORE && device != Device::Cpu && !self.refused;
            // A step without a recording comes first wherever a cache must grow.
            let fits = self.room()?.is_some_and(|room| position < room);
            if due && fits {
                self.recorded = self.record(&ids)?;
                self.refused = self.recorded.is_none();
            }
        }
        self.steps += 1;
        let Some(recorded) = &mut self.recorded else {
            let call = Call::default();
            return no_grad(|| self.model.forward_last(&ids, self.state, &call));
        };
        recorded.ids.set(&ids)?;
        recorded.graph.replay()?;
        // The recording has counted its own token.
        if !std::mem::take(&mut recorded.counted) {
            let one = vec![1; self.state.batch()];
            for layer in self.state.layers_mut() {
                layer.advance(&one);
            }
        }
        Ok(recorded.logits.clone())
    }

    /// The position that every layer's state has room for, exclusively, if all can be recorded.
    fn room(&self) -> Result<Option<usize>> {
        let layers = self.model.blocks().iter().zip(self.state.layers());
        let mut least = Some(usize::MAX);
        for (block, state) in layers {
            least = least.zip(block.mixer().room(state)?).map(|(a, b)| a.min(b));
        }
        Ok(least)
    }

    /// Record a step from the state's position on; `None` where something in it cannot be recorded.
    fn record(&mut self, ids: &Tensor) -> Result<Option<Recorded>> {
        let Device::Cuda(ordinal) = self.model.device() else {
            return Ok(None);
        };
        let room = self.room()?.unwrap_or(0);
        let positions: Vec<i64> = self.state.positions().iter().map(|&p| p as i64).collect();
        let clock = || Tensor::from_slice(&positions, &[positions.len()], &ids.device());
        // Once on a copy: then everything is compiled and loaded, and what cannot be done is known.
        if let Err(e) = run(self.model, ids, &mut self.state.clone(), &clock()?) {
            tracing::debug!("decoding step by step: {e}");
            return Ok(None);
        }
        let (own, clock) = (Input::new(ids)?, clock()?);
        let addresses = self.state.addresses()?;
        let recorded = Graph::record(ordinal, || {
            run(self.model, own.tensor(), self.state, &clock)
                .map_err(|e| weft_tensor::Error::Custom(e.to_string()))
        });
        for layer in self.state.layers_mut() {
            layer.set_clock(None);
        }
        let (graph, logits) = recorded?;
        if self.state.addresses()? != addresses {
            let moved =
                "decoding: a mixer did not keep its state where it was while a step was recorded";
            return Err(Error::Input(moved.into()));
        }
        Ok(Some(Recorded {
            graph,
            ids: own,
            logits,
            room,
            counted: true,
        }))
    }
}

/// A step at the clock, which moves on.
fn run(
    model: &LanguageModel,
    ids: &Tensor,
    state: &mut ModelState,
    clock: &Tensor,
) -> Result<Tensor> {
    for layer in state.layers_mut() {
        layer.set_clock(Some(clock.clone()));
    }
    let logits = no_grad(|| model.forward_last(ids, state, &Call::default()))?;
    tick(clock)?;
    Ok(logits)
}
