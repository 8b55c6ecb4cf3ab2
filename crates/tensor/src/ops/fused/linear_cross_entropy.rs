//! The last projection of a language model and its loss as one operation, so that the logits need not exist at once.

use super::fused;
use crate::dtype::DType;
use crate::error::Result;
use crate::storage::{Device, Storage};
use crate::tensor::Tensor;

impl Tensor {
    /// `self.linear(weight).cross_entropy(targets)`: x [n, d], weight [classes, d], targets [n] i64 -> [n] losses in nats.
    ///
    /// On a GPU, for x in bf16 and a weight in bf16 or f32 (rounded to bf16 for the products, its gradient f32), logits
    /// exist for a piece of the rows at a time and are made again on the way back. Elsewhere it is that composition, with a
    /// bf16 x widened to the dtype of a wider weight.
    pub fn linear_cross_entropy(&self, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let fits = self.rank() == 2
            && weight.rank() == 2
            && self.shape()[1] == weight.shape()[1]
            && targets.shape() == &self.shape()[..1]
            && self.count() * weight.count() > 0;
        let on_gpu = self.device() != Device::Cpu && self.dtype() == DType::BF16;
        if !on_gpu || !fits || targets.dtype() != DType::I64 {
            // Under f32 weights a bf16 x is widened: there is no fast product to be had for rounded logits.
            let x = match weight.dtype() {
                DType::BF16 => self.clone(),
                wide => self.to_dtype(wide)?,
            };
            return x.linear(weight, None)?.cross_entropy(targets);
        }
        let stored = weight.dtype();
        let (x, t) = (self.contiguous()?, targets.contiguous()?);
        let narrow = weight.detach().to_dtype(DType::BF16)?.contiguous()?;
        let [loss, lse] =
            Storage::linear_cross_entropy(x.operand(), narrow.operand(), t.operand())?;
        let loss = Tensor::new(loss, t.shape());
        let again = t.clone();
        let plain = move |x: &[Tensor]| x[0].linear(&x[1], None)?.cross_entropy(&again);
        Ok(fused(
            "cross_entropy",
            &[&x, weight],
            loss,
            plain,
            move |inputs, g| {
                let [dx, dw] = Storage::linear_cross_entropy_backward(
                    inputs[0].operand(),
                    narrow.operand(),
                    t.operand(),
                    &lse,
                    g.operand(),
                )?;
                let dw = Tensor::new(dw, narrow.shape()).to_dtype(stored)?;
                Ok(vec![Tensor::new(dx, inputs[0].shape()), dw])
            },
        ))
    }
}
