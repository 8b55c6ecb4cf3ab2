//! The training loop: batches -> loss -> gradients -> clip -> step, with logs, evaluations and checkpoints.
//!
//! A run lives in a folder. [`Trainer::open`] continues what it finds there, bit for bit as if it had never stopped:
//! parameters, moments, data order, counters, and the log up to the checkpoint. Everything random comes from the
//! position in the data, so a run by steps or tokens gives the same bits each time.

mod answers;
mod budget;
mod faults;
mod journal;
mod memory;
mod progress;
mod recorded;
mod task;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::Value;
use weft_tensor::{Device, Tensor};

pub use answers::{AnswerTask, Draws};
pub use faults::DUMP_FILE;
pub use journal::{EVENTS_FOLDER, LOG_FILE};
pub use progress::{Outcome, Progress, Summary, Times};
pub use task::{BatchSource, LanguageTask, Task, operations};

use crate::checkpoint::{self, Training};
use crate::error::Result;
use crate::files::{Checkpoint, Checkpoints, latest};
use crate::optim::{Grads, Optimizer};
use crate::recipe::TrainRecipe;
use crate::{log, machine};
use journal::{Journal, StepLine};
use memory::{Memory, Meter};
use recorded::Recorder;

/// Trains a [`Task`] on batches from a [`BatchSource`].
pub struct Trainer<'a> {
    task: &'a dyn Task,
    batches: &'a mut dyn BatchSource,
    recipe: TrainRecipe,
    evaluate_every: u64,
    run: Value,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    journal: Journal,
    bar: Option<log::Progress>,
    progress: Progress,
    times: Times,
    /// Operations per second that the device could do at most, where that is known.
    peak: Option<f64>,
    recorder: Recorder,
    /// On a GPU.
    meter: Option<Meter>,
}

/// Where a run lives, and how it is begun and shown.
#[derive(Clone, Debug)]
pub struct Place {
    /// The run's folder: log and checkpoints, and in the end the model.
    pub folder: PathBuf,
    /// What the run is told to do. A checkpoint of a run that was told otherwise is not continued.
    pub run: Value,
    /// What to do about checkpoints in the folder.
    pub start: Start,
    /// The run's name on stderr, or `None` to show nothing.
    pub show: Option<String>,
}

/// What a [`Trainer`] does about checkpoints that it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Go on from the newest good one, if there is one.
    #[default]
    Continue,
    /// Remove them.
    Anew,
}

impl<'a> Trainer<'a> {
    /// A new run, or the one that is found in the place. It is evaluated every so many steps, or if that is 0 only at
    /// the end.
    ///
    /// # Errors
    /// When the folder is in use or cannot be written, a parameter is not f32, or the checkpoint is of another run.
    pub fn open(
        place: Place,
        task: &'a dyn Task,
        batches: &'a mut dyn BatchSource,
        recipe: &TrainRecipe,
        evaluate_every: u64,
    ) -> Result<Self> {
        let checkpoints = Checkpoints::open(&place.folder, recipe.keep)?;
        let mut optimizer = Optimizer::new(task.params(), &recipe.optimizer)?;
        let mut progress = Progress::default();
        let mut notes = Vec::new();
        if place.start == Start::Continue {
            let found = latest(&place.folder)?;
            let damaged = |reason| format!("passing over a damaged checkpoint: {reason}");
            notes.extend(found.refused.iter().map(damaged));
            if let Some(Checkpoint { path, .. }) = found.checkpoint {
                let training = checkpoint::read(&path, task, &mut optimizer, &place.run)?;
                batches.seek(&training.data)?;
                progress = training.progress;
                notes.push(format!("continuing from {}", path.display()));
            }
        }
        checkpoints.discard_after(progress.step)?;
        let (done, total) = recipe.budget.count(&progress);
        let first = task.params().iter().next();
        let device = first.map_or(Device::Cpu, |p| p.get().device());
        let bar = place.show.map(|name| {
            let mut bar = log::Progress::new(&name, total);
            notes.iter().for_each(|note| bar.note(note));
            bar.update(done, "");
            bar
        });
        Ok(Self {
            task,
            batches,
            recipe: recipe.clone(),
            evaluate_every,
            run: place.run,
            optimizer,
            journal: Journal::open(&place.folder, progress.step)?,
            checkpoints,
            bar,
            progress,
            times: Times::default(),
            peak: machine::peak(&device),
            recorder: Recorder::default(),
            meter: Meter::new(&device),
        })
    }

    /// How far the run has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Train until the budget is spent or `stop` is set. Either way a checkpoint is written; when the budget is spent,
    /// the model is evaluated too, and the run's folder is a model folder.
    ///
    /// # Errors
    /// [`Error::Diverged`](crate::Error::Diverged) after too many steps in a row that were not finite; else when data
    /// cannot be read or a file cannot be written. The last checkpoint stays.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<Summary> {
        let tokens = self.progress.tokens;
        let outcome = self.train(stop)?;
        let tokens = self.progress.tokens - tokens;
        let summary = Summary {
            outcome,
            progress: self.progress.clone(),
            times: self.times,
            tokens_per_second: tokens as f64 / self.times.training().max(f64::MIN_POSITIVE),
        };
        if let Some(bar) = self.bar.take() {
            bar.finish(&summary.to_string());
        }
        Ok(summary)
    }

    fn train(&mut self, stop: &AtomicBool) -> Result<Outcome> {
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        while self.recipe.budget.spent(&self.progress) < 1.0 {
            if stop.load(Ordering::Relaxed) {
                self.save()?;
                return Ok(Outcome::Interrupted);
            }
            self.step()?;
            if due(self.evaluate_every, self.progress.step) {
                self.evaluate()?;
            }
            if due(self.recipe.checkpoint_every, self.progress.step) {
                self.save()?;
            }
        }
        self.evaluate()?;
        self.save()?;
        self.task.save(self.checkpoints.folder())?;
        Ok(Outcome::Finished)
    }

    /// One step of the parameters, from `accumulate` micro-batches of equal weight.
    fn step(&mut self) -> Result<()> {
        let before = self.times.training();
        if let Some(meter) = &mut self.meter {
            meter.start()?;
        }
        let parts = self.recipe.accumulate.max(1);
        let mut sum = self.micro_batch()?;
        for _ in 1..parts {
            sum.add(self.micro_batch()?)?;
        }
        let MicroBatch {
            loss: losses,
            tokens,
            operations,
            grads,
        } = sum;
        let rate = self.recipe.rate(&self.progress);
        let clip = self.recipe.clip;
        let measured = timed(&mut self.times.optimizer, || {
            self.optimizer
                .clipped_step(&grads, &losses, rate, parts as u64, clip)
        })?;
        let (loss, norm) = (measured.loss, measured.norm);
        let finite = measured.is_finite();

        let seconds = self.times.training() - before;
        let progress = &mut self.progress;
        progress.step += 1;
        progress.tokens += tokens;
        progress.seconds += seconds;
        progress.evaluation = None;
        if finite {
            progress.loss = loss;
            progress.skipped_in_a_row = 0;
        } else {
            progress.skipped += 1;
            progress.skipped_in_a_row += 1;
        }
        let per_second = |n: f64| n / seconds.max(f64::MIN_POSITIVE);
        let pace = per_second(tokens as f64);
        let mfu = operations
            .zip(self.peak)
            .map(|(n, peak)| per_second(n) / peak);
        let memory = self.meter.as_mut().map(Meter::end).transpose()?;
        self.report(loss, rate, norm, pace, mfu, memory)?;
        if self.progress.skipped_in_a_row >= self.recipe.nonfinite_limit.max(1) {
            let folder = self.checkpoints.folder();
            return Err(faults::give_up(
                folder,
                self.task,
                &grads,
                &self.progress,
                loss,
            )?);
        }
        Ok(())
    }

    /// Mean loss, number of tokens and gradients of the next batch; its graph is gone afterwards, so that
    /// parameters can be changed in place. Nothing is read: on a GPU everything is on its way when this returns.
    fn micro_batch(&mut self) -> Result<MicroBatch> {
        let times = &mut self.times;
        let batch = timed(&mut times.data, || self.batches.next_batch())?;
        let (task, recorder) = (self.task, &mut self.recorder);
        let replayed = timed(&mut times.forward, || recorder.replay(task, &batch))?;
        let (loss, grads) = match replayed {
            Some(outcome) => outcome,
            None => {
                let mean = timed(&mut times.forward, || Ok(task.loss(&batch)?.mean_all()?))?;
                let grads = timed(&mut times.backward, || {
                    let mut gradients = mean.backward()?;
                    Ok(Grads::take(task.params(), &mut gradients))
                })?;
                // Gradients that are summed up must outlive the next batch.
                if self.recipe.accumulate <= 1 {
                    recorder.observe(task, &batch);
                }
                (mean.detach(), grads)
            }
        };
        Ok(MicroBatch {
            loss,
            tokens: task.tokens(&batch) as u64,
            operations: task.operations(&batch),
            grads,
        })
    }

    /// Log and show the step that has just been done.
    fn report(
        &mut self,
        loss: f64,
        rate: f64,
        grad_norm: f64,
        pace: f64,
        mfu: Option<f64>,
        memory: Option<Memory>,
    ) -> Result<()> {
        let progress = &self.progress;
        let line = StepLine {
            step: progress.step,
            tokens: progress.tokens,
            loss,
            lr: rate * self.recipe.optimizer.adamw().lr,
            grad_norm,
            tokens_per_second: pace,
            mfu,
            memory,
            skipped: progress.skipped,
        };
        if let Some(bar) = &mut self.bar {
            let (done, _) = self.recipe.budget.count(progress);
            bar.update(done, &line.to_string());
        }
        self.journal.step(&line)
    }

    /// Score the model on held-out data, unless that has been done since the last step.
    fn evaluate(&mut self) -> Result<()> {
        if self.progress.evaluation.is_some() {
            return Ok(());
        }
        let result = timed(&mut self.times.evaluate, || self.task.evaluate())?;
        let Some(result) = result else {
            return Ok(());
        };
        if let Some(bar) = &mut self.bar {
            bar.note(&format!("step {}: {result}", self.progress.step));
        }
        self.journal.evaluation(&self.progress, &result)?;
        self.progress.evaluation = Some(result);
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let start = Instant::now();
        let training = Training::new(
            self.run.clone(),
            self.progress.clone(),
            self.optimizer.steps(),
            self.batches.position()?,
        );
        let write =
            |folder: &Path| checkpoint::write(folder, self.task, &self.optimizer, &training);
        self.checkpoints.save(self.progress.step, write)?;
        self.times.save += start.elapsed().as_secs_f64();
        Ok(())
    }
}

/// What came of a micro-batch, or of several.
struct MicroBatch {
    /// Mean loss [], or the sum of several.
    loss: Tensor,
    tokens: u64,
    /// Floating-point operations, where that is known.
    operations: Option<f64>,
    grads: Grads,
}

impl MicroBatch {
    fn add(&mut self, other: MicroBatch) -> Result<()> {
        self.loss = self.loss.add(&other.loss)?;
        self.tokens += other.tokens;
        let both = self.operations.zip(other.operations);
        self.operations = both.map(|(a, b)| a + b);
        self.grads.add(other.grads)
    }
}

/// Run `f` and add its seconds to a sum.
fn timed<R>(seconds: &mut f64, f: impl FnOnce() -> Result<R>) -> Result<R> {
    let start = Instant::now();
    let result = f();
    *seconds += start.elapsed().as_secs_f64();
    result
}
