//! A language model's memory as a value: one mixer state per layer. Cloning it is a snapshot: tensors are shared until
//! somebody writes.

use std::path::Path;

use weft_mixers::{State, state_file};
use weft_tensor::{Device, cuda};

use crate::error::{Error, Result};
use crate::lm::LanguageModel;

/// Positions in a file above this are refused: arithmetic on them must not overflow.
const MAX_POSITION: usize = 1 << 40;

/// The state of a [`LanguageModel`] for a batch of sequences.
#[derive(Clone, Debug)]
pub struct ModelState {
    layers: Vec<State>,
}

impl ModelState {
    pub(crate) fn new(layers: Vec<State>) -> ModelState {
        ModelState { layers }
    }

    /// The state of each layer's mixer.
    pub fn layers(&self) -> &[State] {
        &self.layers
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [State] {
        &mut self.layers
    }

    /// Where its tensors lie on a GPU.
    pub(crate) fn addresses(&self) -> Result<Vec<u64>> {
        let tensors = self.layers.iter().flat_map(State::tensors);
        Ok(tensors
            .map(|(_, t)| cuda::address(t))
            .collect::<Result<_, _>>()?)
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.layers.first().map_or(0, State::batch)
    }

    /// Tokens seen so far by each sequence.
    pub fn positions(&self) -> &[usize] {
        self.layers.first().map_or(&[], State::positions)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(State::bytes).sum()
    }

    /// `n` independent copies; nothing is copied before somebody writes.
    pub fn fork(&self, n: usize) -> Vec<ModelState> {
        vec![self.clone(); n]
    }

    /// The given rows as a batch, in this order; a row may be taken several times.
    ///
    /// # Errors
    /// When a row does not exist.
    pub fn select(&self, rows: &[usize]) -> Result<ModelState> {
        let layers = self.layers.iter().map(|s| s.select(rows));
        Ok(ModelState::new(layers.collect::<Result<_, _>>()?))
    }

    /// Check that this is a state of `model` for `batch` rows, whole in every layer.
    ///
    /// # Errors
    /// When it is another model's, has another batch, or an error has left its layers at different positions.
    pub fn expect(&self, model: &LanguageModel, batch: usize) -> Result<()> {
        let blocks = model.blocks();
        if self.layers.len() != blocks.len() {
            return Err(Error::Input(format!(
                "a state of {} layers does not fit a model of {}",
                self.layers.len(),
                blocks.len()
            )));
        }
        for (i, (state, block)) in self.layers.iter().zip(blocks).enumerate() {
            state.expect(block.mixer().name(), batch)?;
            if state.positions() != self.positions() {
                return Err(Error::Input(format!(
                    "the state is broken: layer {i} stands at {:?}, layer 0 at {:?}; start from an earlier snapshot",
                    state.positions(),
                    self.positions()
                )));
            }
        }
        Ok(())
    }

    /// Write to one file, beside it first and then renamed. The file says which model it belongs to.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, model: &LanguageModel) -> Result<()> {
        let layers: Vec<&State> = self.layers.iter().collect();
        Ok(state_file::save(path, &model.fingerprint()?, &layers)?)
    }

    /// Read a state that [`ModelState::save`] wrote for this model: the same config and the same weights.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or belongs to another model; it says so.
    pub fn load(path: &Path, model: &LanguageModel, device: &Device) -> Result<ModelState> {
        let layers = state_file::load(path, &model.fingerprint()?, device)?;
        let state = ModelState::new(layers);
        state
            .expect(model, state.batch())
            .map_err(|e| Error::file(path, e.to_string()))?;
        match state.positions().iter().find(|&&p| p > MAX_POSITION) {
            None => Ok(state),
            Some(p) => Err(Error::file(
                path,
                format!("a row stands at the absurd position {p}"),
            )),
        }
    }
}
