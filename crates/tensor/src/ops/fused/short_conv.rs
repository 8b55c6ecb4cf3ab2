//! The short depthwise convolution of recurrent layers, with its activation.

use crate::error::Result;
use crate::tensor::Tensor;

impl Tensor {
    /// silu(conv1d_depthwise(x)): x [B, T + k - 1, C] (the k - 1 past inputs in front), weight [C, k] -> [B, T, C].
    pub fn conv1d_silu(&self, weight: &Tensor) -> Result<Tensor> {
        self.conv1d_depthwise(weight)?.silu()
    }
}
