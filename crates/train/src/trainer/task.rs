//! What a [`Trainer`](super::Trainer) trains, and what it feeds it with.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use weft_mixers::Params;
use weft_models::tokenizer::Tokenizer;
use weft_models::{LanguageModel, Run, folder};
use weft_tensor::{Device, Tensor};

use crate::data::{Batches, Cursor};
use crate::error::{Error, Result};
use crate::evaluate::{EvalConfig, HeldOut, Score, evaluate};

/// Parameters and the loss that they are to make small.
pub trait Task {
    /// The parameters, always the same ones.
    fn params(&self) -> &Params;

    /// The loss of every prediction of a batch, of any shape; its mean is minimised.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    fn loss(&self, batch: &Tensor) -> Result<Tensor>;

    /// Whether [`Task::loss`] does the same operations for every batch of a shape and reads nothing of it on the host, so
    /// that a recording of one step can stand for others.
    fn recordable(&self) -> bool {
        true
    }

    /// Tokens that a batch counts for in budgets and speeds.
    fn tokens(&self, batch: &Tensor) -> usize;

    /// Floating-point operations of a step on a batch, forward and backward, where that is known.
    fn operations(&self, _batch: &Tensor) -> Option<f64> {
        None
    }

    /// The score on held-out data, where there is some.
    ///
    /// # Errors
    /// When the held-out data does not fit the model.
    fn evaluate(&self) -> Result<Option<Score>>;

    /// Write the model into a folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Take the parameters from a folder that [`Task::save`] wrote, bit for bit.
    ///
    /// # Errors
    /// When the folder cannot be read or is of another model.
    fn load(&self, folder: &Path) -> Result<()>;
}

/// An endless sequence of batches that can be continued from any place.
pub trait BatchSource {
    /// The next batch: token ids [B, T + 1] for language models, ids and classes [2, B, T] for synthetic tasks.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn next_batch(&mut self) -> Result<Tensor>;

    /// Where the next batch is, order and random numbers included.
    ///
    /// # Errors
    /// When the place cannot be described.
    fn position(&self) -> Result<Value>;

    /// Go to a place that [`BatchSource::position`] gave.
    ///
    /// # Errors
    /// When the place does not exist in this data.
    fn seek(&mut self, position: &Value) -> Result<()>;
}

impl BatchSource for Batches {
    fn next_batch(&mut self) -> Result<Tensor> {
        let batch = Batches::next_batch(self)?;
        let shape = [batch.rows, batch.columns];
        Ok(Tensor::from_vec(batch.tokens, &shape, &Device::Cpu)?)
    }

    fn position(&self) -> Result<Value> {
        Ok(json!(self.cursor()))
    }

    fn seek(&mut self, position: &Value) -> Result<()> {
        let cursor = Cursor::deserialize(position)
            .map_err(|e| Error::Data(format!("{position} is no place in the data: {e}")))?;
        Batches::seek(self, cursor)
    }
}

/// Floating-point operations of a step on `rows` sequences: two for a multiply-add, and twice the forward for the
/// backward; what is computed again does not count. A token sees half of the sequence on average.
pub fn operations(model: &LanguageModel, rows: usize, tokens: usize) -> f64 {
    6.0 * (rows * tokens) as f64 * model.cost_per_token(tokens.div_ceil(2)) as f64
}

/// Next-token prediction.
pub struct LanguageTask {
    /// The model; its parameters are f32 masters.
    pub model: LanguageModel,
    /// The model's tokenizer, saved with it.
    pub tokenizer: Tokenizer,
    /// Text to evaluate on.
    pub held_out: Option<HeldOut>,
    /// How it is read.
    pub evaluation: EvalConfig,
    /// Dtype of activations, and whether they are computed again in the backward pass.
    pub run: Run,
}

impl Task for LanguageTask {
    fn params(&self) -> &Params {
        self.model.params()
    }

    fn loss(&self, batch: &Tensor) -> Result<Tensor> {
        Ok(self.model.loss(batch, &self.run)?)
    }

    fn tokens(&self, batch: &Tensor) -> usize {
        let rows = batch.shape().first().copied().unwrap_or(0);
        batch.count().saturating_sub(rows)
    }

    fn operations(&self, batch: &Tensor) -> Option<f64> {
        let [rows, columns] = batch.dims().ok()?;
        Some(operations(&self.model, rows, columns.checked_sub(1)?))
    }

    fn evaluate(&self) -> Result<Option<Score>> {
        let run = |held_out| evaluate(&self.model, held_out, &self.evaluation).map(Score::Text);
        self.held_out.as_ref().map(run).transpose()
    }

    fn save(&self, dir: &Path) -> Result<()> {
        Ok(folder::save(dir, &self.model, Some(&self.tokenizer))?)
    }

    fn load(&self, dir: &Path) -> Result<()> {
        load_parameters(&self.model, dir)
    }
}

/// Take a model's parameters from its folder, bit for bit.
pub(super) fn load_parameters(model: &LanguageModel, dir: &Path) -> Result<()> {
    if folder::load_config(dir)? != model.stored_config() {
        return Err(Error::content(
            &dir.join(folder::CONFIG_FILE),
            "it describes another model than the one to be trained: \
             choose another output folder, or remove this one to start anew",
        ));
    }
    let saved = folder::load(dir, &model.device())?;
    for (to, from) in model.params().iter().zip(saved.params().iter()) {
        to.set(&from.get())?;
    }
    Ok(())
}
