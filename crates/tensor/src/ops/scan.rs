//! Running sums, maxima and products along an axis.

use crate::autograd::record;
use crate::cpu::ScanOp;
use crate::error::{Error, Result};
use crate::layout::axis;
use crate::storage::Storage;
use crate::tensor::{Tensor, need_float};

impl Tensor {
    /// Running sum along an axis, the element itself included.
    pub fn cumsum(&self, ax: isize) -> Result<Tensor> {
        let a = axis("cumsum", ax, self.rank())?;
        let x = self.contiguous()?;
        let (y, _) = Storage::scan(ScanOp::Sum, x.operand(), x.around(a))?;
        Ok(record(
            "cumsum",
            [self],
            Tensor::new(y, self.shape()),
            move |g, _| Ok([Some(g.rev_cumsum(a as isize)?)]),
        ))
    }

    /// Sum of an element and all that follow it along an axis.
    pub fn rev_cumsum(&self, ax: isize) -> Result<Tensor> {
        self.flip(ax)?.cumsum(ax)?.flip(ax)
    }

    /// Running maximum along an axis; the gradient goes to where the maximum first stood.
    pub fn cummax(&self, ax: isize) -> Result<Tensor> {
        let a = axis("cummax", ax, self.rank())?;
        let x = self.contiguous()?;
        let (y, at) = Storage::scan(ScanOp::Max, x.operand(), x.around(a))?;
        let Some(at) = at else {
            return Err(Error::Custom("cummax: the device gave no positions".into()));
        };
        let (at, zeros) = (Tensor::new(at, self.shape()), self.zeros_like());
        let y = Tensor::new(y, self.shape());
        Ok(record("cummax", [self], y, move |g, _| {
            Ok([Some(zeros.scatter_add(a as isize, &at, g)?)])
        }))
    }

    /// Running product along an axis of positive numbers, through logarithms.
    pub fn cumprod(&self, ax: isize) -> Result<Tensor> {
        need_float("cumprod", self)?;
        self.ln()?.cumsum(ax)?.exp()
    }
}
