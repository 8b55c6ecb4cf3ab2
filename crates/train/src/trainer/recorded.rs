//! Training steps on a GPU as recorded work. A small model's step is a thousand launches that take the host longer to
//! send than the GPU to run; forward and backward of a batch are therefore recorded after a few steps and from then on
//! sent as a whole ([`weft_tensor::cuda::Graph`]). The optimiser stays outside: it is a few launches, and its numbers
//! change from step to step.
//!
//! A recording holds on to all memory of a step, so it is made only where that is a small part of the GPU's; there the
//! GPU is not what the host waits for.

use weft_tensor::cuda::{self, Graph, Input, memory};
use weft_tensor::{Device, Tensor};

use super::Task;
use crate::error::Result;
use crate::optim::Grads;

/// Steps before one is recorded: kernels are compiled and the allocator has seen every size.
const BEFORE: usize = 3;
/// A step may hold this part of the GPU's memory at most.
const SHARE: usize = 8;

/// Records the step of a task.
#[derive(Default)]
pub(super) struct Recorder {
    steps: usize,
    recorded: Option<Recorded>,
}

struct Recorded {
    graph: Graph,
    batch: Input,
    mean: Tensor,
    grads: Grads,
    /// Where the parameters were.
    parameters: Vec<u64>,
}

/// Loss and gradients of a batch. They are valid until the next batch.
pub(super) type Outcome = (Tensor, Grads);

impl Recorder {
    /// The outcome of a batch by the recording, if there is one and it is of such a batch.
    pub(super) fn replay(&mut self, task: &dyn Task, batch: &Tensor) -> Result<Option<Outcome>> {
        let Some(r) = &mut self.recorded else {
            return Ok(None);
        };
        let device = r.batch.tensor().device();
        if r.batch.tensor().shape() != batch.shape() || addresses(task)? != r.parameters {
            self.recorded = None;
            return Ok(None);
        }
        r.batch.set(&batch.to_device(&device)?)?;
        r.graph.replay()?;
        Ok(Some((r.mean.clone(), r.grads.clone())))
    }

    /// A step has been taken without a recording: make one if it is time.
    pub(super) fn observe(&mut self, task: &dyn Task, batch: &Tensor) {
        self.steps += 1;
        if self.steps != BEFORE || !task.recordable() {
            return;
        }
        match record(task, batch) {
            Ok(recorded) => self.recorded = recorded,
            Err(e) => tracing::debug!("training step by step: {e}"),
        }
    }
}

fn record(task: &dyn Task, batch: &Tensor) -> Result<Option<Recorded>> {
    let Some(Device::Cuda(ordinal)) = task.params().iter().next().map(|p| p.get().device()) else {
        return Ok(None);
    };
    let total = cuda::context(ordinal)?.total_memory;
    if memory::usage(ordinal)?.peak > total / SHARE {
        return Ok(None);
    }
    // The recording gets memory of its own; what steps have used so far would stay idle beside it.
    memory::trim(ordinal)?;
    let batch = Input::new(&batch.to_device(&Device::Cuda(ordinal))?)?;
    let parameters = addresses(task)?;
    let (graph, (mean, grads)) = Graph::record(ordinal, || {
        outcome(task, batch.tensor()).map_err(|e| weft_tensor::Error::Custom(e.to_string()))
    })?;
    Ok(Some(Recorded {
        graph,
        batch,
        mean,
        grads,
        parameters,
    }))
}

/// Forward and backward of a batch.
fn outcome(task: &dyn Task, batch: &Tensor) -> Result<Outcome> {
    let mean = task.loss(batch)?.mean_all()?;
    let mut gradients = mean.backward()?;
    let grads = Grads::take(task.params(), &mut gradients);
    Ok((mean.detach(), grads))
}

fn addresses(task: &dyn Task) -> Result<Vec<u64>> {
    let all = task.params().iter().map(|p| cuda::address(&p.get()));
    Ok(all.collect::<std::result::Result<_, _>>()?)
}
