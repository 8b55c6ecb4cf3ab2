//! Products with an activated gate.

use crate::error::Result;
use crate::tensor::Tensor;

impl Tensor {
    /// silu(self) * up, the middle of a SwiGLU layer (Shazeer 2020); both of one shape.
    pub fn silu_mul(&self, up: &Tensor) -> Result<Tensor> {
        self.silu()?.mul(up)
    }
}
