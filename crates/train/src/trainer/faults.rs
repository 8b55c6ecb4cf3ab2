//! What happens when a loss or a gradient is not finite: the step is skipped, and too many in a row end the run with a
//! list of the tensors concerned.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::optim::Grads;
use crate::trainer::{Progress, Task};

/// The list of all tensors, in the run's folder.
pub const DUMP_FILE: &str = "not_finite.json";

/// One parameter in the dump.
#[derive(Serialize)]
struct Line<'a> {
    parameter: &'a str,
    value: Census,
    gradient: Option<Census>,
}

/// The elements of a tensor, counted.
#[derive(Serialize)]
struct Census {
    elements: usize,
    nan: usize,
    infinite: usize,
    /// Of the finite ones.
    largest: f64,
}

impl Census {
    fn of(elements: &[f64]) -> Self {
        let finite = elements.iter().filter(|x| x.is_finite());
        Self {
            elements: elements.len(),
            nan: elements.iter().filter(|x| x.is_nan()).count(),
            infinite: elements.iter().filter(|x| x.is_infinite()).count(),
            largest: finite.fold(0.0, |most, x| x.abs().max(most)),
        }
    }
}

/// Write the dump and say what happened.
pub(super) fn give_up(
    folder: &Path,
    task: &dyn Task,
    grads: &Grads,
    progress: &Progress,
    loss: f64,
) -> Result<Error> {
    let params = task.params();
    let mut lines = Vec::with_capacity(params.len());
    for (param, grad) in params.iter().zip(grads.as_slice()) {
        let gradient = grad.as_ref().map(|g| Ok(Census::of(&g.to_f64_vec()?)));
        lines.push(Line {
            parameter: param.name(),
            value: Census::of(&param.get().to_f64_vec()?),
            gradient: gradient.transpose().map_err(|e: weft_tensor::Error| e)?,
        });
    }
    let dump = folder.join(DUMP_FILE);
    write_atomic(&dump, |w| {
        serde_json::to_writer_pretty(&mut *w, &lines)?;
        w.write_all(b"\n")
    })?;
    let names = grads.not_finite(params)?;
    let tensors = match names.as_slice() {
        [] => "no gradient".to_owned(),
        [first] => format!("the gradient of {first}"),
        [first, rest @ ..] => format!("the gradients of {first} and {} more", rest.len()),
    };
    Ok(Error::Diverged {
        step: progress.step,
        in_a_row: progress.skipped_in_a_row,
        loss,
        tensors,
        dump,
    })
}
