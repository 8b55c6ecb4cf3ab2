//! Everything that a run needs to go on as if it had never stopped. A checkpoint is a model folder (it can be
//! generated from and evaluated like any other) with two more files:
//!
//! - `optimizer.safetensors`: the moments of every parameter;
//! - `training.json`: counters, the place in the data with its order and random numbers, and what run it is of.
//!
//! [`Checkpoints`](crate::files::Checkpoints) seals the folder; what is read here has been checked byte for byte.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_mixers::safetensor::tensor_of;
use weft_tensor::{Device, Tensor};

use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::optim::Optimizer;
use crate::trainer::{Progress, Task};

/// The moments.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Counters and places.
pub const TRAINING_FILE: &str = "training.json";

const FORMAT: u32 = 1;

/// What is in [`TRAINING_FILE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    format: u32,
    /// What the run was told to do; a run told otherwise does not continue it.
    pub run: Value,
    /// How far it came.
    pub progress: Progress,
    /// Steps that moved the parameters.
    pub optimizer_steps: u64,
    /// Where the next batch is.
    pub data: Value,
}

impl Training {
    /// The state of a run between two steps.
    pub fn new(run: Value, progress: Progress, optimizer_steps: u64, data: Value) -> Self {
        Self {
            format: FORMAT,
            run,
            progress,
            optimizer_steps,
            data,
        }
    }
}

/// Fill the empty folder of a new checkpoint.
///
/// # Errors
/// When a file cannot be written.
pub fn write(
    folder: &Path,
    task: &dyn Task,
    optimizer: &Optimizer,
    training: &Training,
) -> Result<()> {
    task.save(folder)?;
    let path = folder.join(OPTIMIZER_FILE);
    let moments = optimizer
        .state()
        .map(|(name, t)| Ok((name, Moment::new(t)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(moments, None, &path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => Error::io("write", &path)(e),
        other => Error::content(&path, format!("cannot be written: {other}")),
    })?;
    write_atomic(folder.join(TRAINING_FILE), |w| {
        serde_json::to_writer_pretty(&mut *w, training)?;
        w.write_all(b"\n")
    })
}

/// Put a run back to where a checkpoint was written: parameters, moments, and the returned counters and places.
///
/// # Errors
/// When the checkpoint is of another run than `run`, model, optimiser or program version; the parameters may then have changed.
pub fn read(
    folder: &Path,
    task: &dyn Task,
    optimizer: &mut Optimizer,
    run: &Value,
) -> Result<Training> {
    let path = folder.join(TRAINING_FILE);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let training: Training = serde_json::from_slice(&bytes)
        .map_err(|e| Error::content(&path, format!("it is no state of a training run: {e}")))?;
    if training.format != FORMAT {
        let reason = format!(
            "format {}, this program reads {FORMAT}: continue with the version that wrote it",
            training.format
        );
        return Err(Error::content(&path, reason));
    }
    if training.run != *run {
        let reason = "it was trained with other settings: choose another output folder, \
                      or remove this one to start anew";
        return Err(Error::content(folder, reason));
    }
    task.load(folder)?;
    let path = folder.join(OPTIMIZER_FILE);
    let state = read_tensors(&path)?;
    optimizer
        .load(state, training.optimizer_steps)
        .map_err(|e| Error::content(&path, e.to_string()))?;
    Ok(training)
}

fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let bad = |e: String| Error::content(path, format!("it is no file of tensors: {e}"));
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    file.iter()
        .map(|(name, view)| {
            let tensor = tensor_of(&view, &Device::Cpu).map_err(&bad)?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

/// Gives the elements of an f32 tensor to the writer, without a copy if they are on the host.
struct Moment(Tensor);

impl Moment {
    fn new(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
        tensor.slice::<f32>()?;
        Ok(Self(tensor))
    }

    fn bytes(&self) -> &[u8] {
        // `new` has looked.
        self.0.slice::<f32>().map_or(&[], bytemuck::cast_slice)
    }
}

impl View for Moment {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes())
    }
    fn data_len(&self) -> usize {
        self.0.bytes()
    }
}
