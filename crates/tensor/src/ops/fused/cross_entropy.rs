//! Next-token loss.

use super::fused;
use crate::dtype::DType;
use crate::error::{Result, dtype_error, shape_error};
use crate::storage::Storage;
use crate::tensor::{Tensor, need_float};

impl Tensor {
    /// -log softmax(logits)[target] for each row: logits [n, classes], targets [n] i64 -> [n] losses in nats, in f32 for
    /// bf16 logits. A target of -1 is ignored: its loss and its gradient are 0.
    pub fn cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        need_float("cross_entropy", self)?;
        if targets.dtype() != DType::I64 {
            return dtype_error("cross_entropy", targets.dtype(), "i64 (class numbers)");
        }
        if self.rank() != 2 || targets.shape() != &self.shape()[..1] {
            let (x, t) = (self.shape(), targets.shape());
            let detail = format!("logits {x:?}, targets {t:?}: expected [n, classes] and [n]");
            return shape_error("cross_entropy", detail);
        }
        let (x, t) = (self.contiguous()?, targets.contiguous()?);
        let n = self.shape()[1];
        let [loss, lse] = Storage::cross_entropy(x.operand(), t.operand(), n)?;
        let targets = t.clone();
        let plain = move |x: &[Tensor]| plain(&x[0], &targets);
        Ok(fused(
            "cross_entropy",
            &[&x],
            Tensor::new(loss, t.shape()),
            plain,
            move |x, g| {
                let dx = Storage::cross_entropy_backward(
                    x[0].operand(),
                    &lse,
                    g.operand(),
                    t.operand(),
                    n,
                )?;
                Ok(vec![Tensor::new(dx, x[0].shape())])
            },
        ))
    }
}

fn plain(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let ignored = targets.lt(&targets.zeros_like())?;
    let safe = targets.maximum(&targets.zeros_like())?;
    let wide = match logits.dtype() {
        DType::BF16 => DType::F32,
        other => other,
    };
    let picked = logits
        .to_dtype(wide)?
        .log_softmax(-1)?
        .gather(-1, &safe.unsqueeze(-1)?)?
        .squeeze(-1)?
        .neg()?;
    picked.masked_fill(&ignored, 0.0)
}
