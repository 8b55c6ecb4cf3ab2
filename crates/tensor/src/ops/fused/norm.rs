//! RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight over the last axis, the statistics
//! in f32 (f64 for f64 inputs).

use super::fused;
use crate::error::{Result, shape_error};
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

impl Tensor {
    /// RMSNorm over the last axis: x [.., d], weight [d] of the same dtype.
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Tensor> {
        same_dtype("rms_norm", self, weight)?;
        if self.rank() == 0 || weight.shape() != &self.shape()[self.rank() - 1..] {
            let (x, w) = (self.shape(), weight.shape());
            return shape_error(
                "rms_norm",
                format!("input {x:?}, weight {w:?}: expected [.., d] and [d]"),
            );
        }
        let (x, w) = (self.contiguous()?, weight.contiguous()?);
        let d = weight.count();
        let dims = [x.count() / d.max(1), d];
        let y = Tensor::new(
            Storage::rms_norm(x.operand(), w.operand(), dims, eps)?,
            self.shape(),
        );
        Ok(fused(
            "rms_norm",
            &[&x, &w],
            y,
            move |t| plain(&t[0], &t[1], eps),
            move |t, g| {
                let [dx, dw] = Storage::rms_norm_backward(
                    t[0].operand(),
                    t[1].operand(),
                    g.operand(),
                    dims,
                    eps,
                )?;
                Ok(vec![
                    Tensor::new(dx, t[0].shape()),
                    Tensor::new(dw, t[1].shape()),
                ])
            },
        ))
    }
}

fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = x.square()?.mean(&[-1], true)?.add_scalar(eps)?.rsqrt()?;
    x.mul(&scale)?.mul(weight)
}
