//! Stable sorting along an axis. NaN sorts last in both directions.

use crate::error::{Result, shape_error};
use crate::layout::axis;
use crate::storage::Storage;
use crate::tensor::Tensor;

impl Tensor {
    /// Indices (i64) that sort an axis; equal elements keep their order.
    pub fn argsort(&self, ax: isize, descending: bool) -> Result<Tensor> {
        let a = axis("argsort", ax, self.rank())?;
        let x = self.detach().transpose(a as isize, -1)?.contiguous()?;
        let n = self.shape()[a];
        let order = Storage::argsort(x.operand(), x.count() / n.max(1), n, descending)?;
        Tensor::new(order, x.shape()).transpose(a as isize, -1)
    }

    /// The sorted elements of an axis and their former positions. The gradient goes back to those positions.
    pub fn sort(&self, ax: isize, descending: bool) -> Result<(Tensor, Tensor)> {
        let order = self.argsort(ax, descending)?;
        Ok((self.gather(ax, &order)?, order))
    }

    /// The `k` largest elements of an axis, in descending order, and their positions.
    pub fn topk(&self, k: usize, ax: isize) -> Result<(Tensor, Tensor)> {
        let n = self.dim(ax)?;
        if k > n {
            return shape_error(
                "topk",
                format!(
                    "asked for {k} of the {n} elements of axis {ax} of {:?}",
                    self.shape()
                ),
            );
        }
        let order = self.argsort(ax, true)?.narrow(ax, 0, k)?;
        Ok((self.gather(ax, &order)?, order))
    }
}
