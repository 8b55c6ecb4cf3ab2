//! Products with an activated gate.

use super::fused;
use crate::error::{Result, shape_error};
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

impl Tensor {
    /// silu(self) * up, the middle of a SwiGLU layer (Shazeer 2020); both of one shape.
    pub fn silu_mul(&self, up: &Tensor) -> Result<Tensor> {
        same_dtype("silu_mul", self, up)?;
        if self.shape() != up.shape() {
            return shape_error(
                "silu_mul",
                format!("{:?} and {:?} differ", self.shape(), up.shape()),
            );
        }
        let (a, b) = (self.contiguous()?, up.contiguous()?);
        let y = Tensor::new(
            Storage::silu_mul(a.operand(), b.operand(), a.count())?,
            self.shape(),
        );
        let plain = |t: &[Tensor]| t[0].silu()?.mul(&t[1]);
        Ok(fused("silu_mul", &[&a, &b], y, plain, |t, g| {
            let [da, db] =
                Storage::silu_mul_backward(t[0].operand(), t[1].operand(), g.operand(), g.count())?;
            Ok(vec![Tensor::new(da, g.shape()), Tensor::new(db, g.shape())])
        }))
    }
}
