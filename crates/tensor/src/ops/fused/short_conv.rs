//! The short depthwise convolution of recurrent layers, with its activation.

use super::fused;
use crate::cpu::fused::short_conv::Dims;
use crate::error::{Result, shape_error};
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

impl Tensor {
    /// silu(conv1d_depthwise(x)): x [B, T + k - 1, C] (the k - 1 past inputs in front), weight [C, k] -> [B, T, C].
    pub fn conv1d_silu(&self, weight: &Tensor) -> Result<Tensor> {
        same_dtype("conv1d_silu", self, weight)?;
        let (s, w) = (self.shape(), weight.shape());
        if s.len() != 3
            || w.len() != 2
            || w[0] != s[2]
            || w[1] == 0
            || s[1] < w[1]
            || s[0] * s[2] == 0
        {
            let detail =
                format!("input {s:?}, weight {w:?}: expected [B, T + k - 1, C] and [C, k]");
            return shape_error("conv1d_silu", detail);
        }
        let dims = Dims {
            batch: s[0],
            tokens: s[1] + 1 - w[1],
            channels: w[0],
            taps: w[1],
        };
        let (x, w) = (self.contiguous()?, weight.contiguous()?);
        let y = Storage::conv1d_silu(x.operand(), w.operand(), dims)?;
        let y = Tensor::new(y, &[dims.batch, dims.tokens, dims.channels]);
        let plain = |t: &[Tensor]| t[0].conv1d_depthwise(&t[1])?.silu();
        Ok(fused("conv1d_silu", &[&x, &w], y, plain, move |t, g| {
            let [dx, dw] =
                Storage::conv1d_silu_backward(t[0].operand(), t[1].operand(), g.operand(), dims)?;
            Ok(vec![
                Tensor::new(dx, t[0].shape()),
                Tensor::new(dw, t[1].shape()),
            ])
        }))
    }
}
