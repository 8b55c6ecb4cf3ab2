//! Next-token loss.

use crate::error::Result;
use crate::tensor::Tensor;

impl Tensor {
    /// -log softmax(logits)[target] for each row: logits [n, classes], targets [n] i64 -> [n] losses in nats.
    /// A target of -1 is ignored: its loss and its gradient are 0.
    pub fn cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        let ignored = targets.lt(&targets.zeros_like())?;
        let safe = targets.maximum(&targets.zeros_like())?;
        let picked = self
            .log_softmax(-1)?
            .gather(-1, &safe.unsqueeze(-1)?)?
            .squeeze(-1)?
            .neg()?;
        picked.masked_fill(&ignored, 0.0)
    }
}
