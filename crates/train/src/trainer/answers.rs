//! Synthetic tasks as something to train on. A batch is a tensor [2, B, T]: ids, and the class asked for after each or
//! -1. The loss is that of the places that are asked about, and nothing else.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_mixers::Params;
use weft_models::{LanguageModel, Run, folder};
use weft_tasks::{Generator, NOTHING};
use weft_tensor::{Device, Tensor};

use super::task::{BatchSource, Task, load_parameters, operations};
use crate::error::{Error, Result};
use crate::evaluate::Score;
use crate::evaluate::answers::{Exam, answer};
use crate::recipe::TaskRecipe;

/// Answering the questions of a synthetic task.
pub struct AnswerTask {
    /// The model; its parameters are f32 masters.
    pub model: LanguageModel,
    /// Where held-out examples come from.
    pub generator: Generator,
    /// How many of them are asked.
    pub exam: Exam,
    /// Dtype of activations, and whether they are computed again in the backward pass.
    pub run: Run,
}

impl Task for AnswerTask {
    fn params(&self) -> &Params {
        self.model.params()
    }

    fn loss(&self, batch: &Tensor) -> Result<Tensor> {
        let [ids, classes] = [0, 1].map(|part| batch.narrow(0, part, 1)?.squeeze(0));
        let classes: Vec<i64> = classes?.to_vec()?;
        let asked = |place: &usize| classes[*place] != NOTHING;
        let places: Vec<usize> = (0..classes.len()).filter(asked).collect();
        let classes: Vec<i64> = places.iter().map(|&place| classes[place]).collect();
        let logits = self.model.logits_at(&ids?, &places, &self.run)?;
        let classes = Tensor::from_vec(classes, &[places.len()], &self.model.device())?;
        Ok(logits.cross_entropy(&classes)?)
    }

    /// Which places are asked about is read on the host, and differs from batch to batch.
    fn recordable(&self) -> bool {
        false
    }

    fn tokens(&self, batch: &Tensor) -> usize {
        batch.shape().iter().skip(1).product()
    }

    fn operations(&self, batch: &Tensor) -> Option<f64> {
        let [_, rows, tokens] = batch.dims().ok()?;
        Some(operations(&self.model, rows, tokens))
    }

    fn evaluate(&self) -> Result<Option<Score>> {
        let answers = answer(&self.model, &self.generator, &self.exam)?;
        Ok(Some(Score::Answers(answers)))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        Ok(folder::save(dir, &self.model, None)?)
    }

    fn load(&self, dir: &Path) -> Result<()> {
        load_parameters(&self.model, dir)
    }
}

/// The training batches of a task: fresh examples without end.
pub struct Draws {
    generator: Generator,
    lengths: std::ops::RangeInclusive<usize>,
    rows: usize,
    place: Place,
}

/// Where the next batch is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    seed: u64,
    batch: u64,
}

impl Draws {
    /// Batches of `rows` examples of a task from the beginning; the seed is that of the run.
    ///
    /// # Errors
    /// When the recipe's task does not exist or has other knobs, which reading the recipe rules out.
    pub fn new(recipe: &TaskRecipe, rows: usize, seed: u64) -> Result<Self> {
        Ok(Self {
            generator: recipe.generator()?,
            lengths: recipe.min_length..=recipe.length,
            rows,
            place: Place { seed, batch: 0 },
        })
    }
}

impl BatchSource for Draws {
    fn next_batch(&mut self) -> Result<Tensor> {
        let Place { seed, batch } = self.place;
        let batch = self
            .generator
            .train(seed, batch, self.rows, self.lengths.clone())?;
        self.place.batch += 1;
        let shape = [2, batch.rows, batch.columns];
        let both = [batch.ids, batch.targets].concat();
        Ok(Tensor::from_vec(both, &shape, &Device::Cpu)?)
    }

    fn position(&self) -> Result<Value> {
        Ok(json!(self.place))
    }

    fn seek(&mut self, position: &Value) -> Result<()> {
        self.place = Place::deserialize(position)
            .map_err(|e| Error::Data(format!("{position} is no place in a task: {e}")))?;
        Ok(())
    }
}
