//! Reductions over axes, softmax and log-sum-exp.

use crate::autograd::{record, record_with_output};
use crate::cpu::ReduceOp;
use crate::dtype::DType;
use crate::error::{Result, shape_error};
use crate::layout::axis;
use crate::storage::Storage;
use crate::tensor::{Tensor, need_float};

impl Tensor {
    /// The sizes before, at and after an axis: the shape that reductions and scans run on.
    pub(crate) fn around(&self, a: usize) -> [usize; 3] {
        let s = self.shape();
        [s[..a].iter().product(), s[a], s[a + 1..].iter().product()]
    }

    /// Reduce one axis to size 1, without history.
    fn reduce_axis(&self, op: ReduceOp, a: usize) -> Result<Tensor> {
        let x = self.detach().contiguous()?;
        let mut shape = self.shape().to_vec();
        let y = Storage::reduce(op, x.operand(), x.around(a))?;
        shape[a] = 1;
        Ok(Tensor::new(y, &shape))
    }

    /// Distinct axes, ascending.
    fn axes(&self, op: &'static str, axes: &[isize]) -> Result<Vec<usize>> {
        let mut list = axes
            .iter()
            .map(|&a| axis(op, a, self.rank()))
            .collect::<Result<Vec<_>>>()?;
        list.sort_unstable();
        if list.windows(2).any(|w| w[0] == w[1]) {
            return shape_error(op, format!("an axis stands twice in {axes:?}"));
        }
        Ok(list)
    }

    fn finish(self, axes: &[usize], keepdim: bool) -> Result<Tensor> {
        if keepdim {
            return Ok(self);
        }
        axes.iter()
            .rev()
            .try_fold(self, |t, &a| t.squeeze(a as isize))
    }

    /// Sum over axes; they stay as size 1 with `keepdim`.
    pub fn sum(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        let axes = self.axes("sum", axes)?;
        let mut y = self.detach();
        // Neighbouring axes are summed as one.
        for group in axes.chunk_by(|a, b| a + 1 == *b).rev() {
            let (first, last) = (group[0], group[group.len() - 1]);
            let merged = y
                .flatten(first as isize, last as isize)?
                .reduce_axis(ReduceOp::Sum, first)?;
            let mut shape = y.shape().to_vec();
            shape[first..=last].fill(1);
            y = merged.reshape(&shape)?;
        }
        let full = self.shape().to_vec();
        record("sum", [self], y, move |g, _| {
            Ok([Some(g.broadcast_to(&full)?)])
        })
        .finish(&axes, keepdim)
    }

    /// Sum of all elements, without axes.
    pub fn sum_all(&self) -> Result<Tensor> {
        self.reshape(&[self.count()])?.sum(&[0], false)
    }

    /// Mean over axes.
    pub fn mean(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        let n: usize = self
            .axes("mean", axes)?
            .iter()
            .map(|&a| self.shape()[a])
            .product();
        self.sum(axes, keepdim)?.mul_scalar(1.0 / n as f64)
    }

    /// Mean of all elements, without axes.
    pub fn mean_all(&self) -> Result<Tensor> {
        self.sum_all()?.mul_scalar(1.0 / self.count() as f64)
    }

    /// Sum down to a shape that broadcasts to this one: the way back of broadcasting.
    pub fn sum_to(&self, shape: &[usize]) -> Result<Tensor> {
        if shape == self.shape() {
            return Ok(self.clone());
        }
        let lead = self.rank() - shape.len();
        let axes: Vec<isize> = (0..self.rank())
            .filter(|&i| i < lead || (shape[i - lead] == 1 && self.shape()[i] != 1))
            .map(|i| i as isize)
            .collect();
        self.sum(&axes, true)?.reshape(shape)
    }

    fn extreme(
        &self,
        name: &'static str,
        op: ReduceOp,
        ax: isize,
        keepdim: bool,
    ) -> Result<Tensor> {
        let a = axis(name, ax, self.rank())?;
        if self.shape()[a] == 0 {
            return shape_error(name, format!("axis {a} of {:?} is empty", self.shape()));
        }
        let y = self.reduce_axis(op, a)?;
        let (x, arg) = (
            self.clone(),
            if op == ReduceOp::Max {
                ReduceOp::ArgMax
            } else {
                ReduceOp::ArgMin
            },
        );
        record(name, [self], y, move |g, _| {
            let at = x.reduce_axis(arg, a)?;
            Ok([Some(x.zeros_like().scatter_add(a as isize, &at, g)?)])
        })
        .finish(&[a], keepdim)
    }

    /// Largest element along an axis; the gradient goes to its first occurrence.
    pub fn max(&self, ax: isize, keepdim: bool) -> Result<Tensor> {
        self.extreme("max", ReduceOp::Max, ax, keepdim)
    }

    /// Smallest element along an axis; the gradient goes to its first occurrence.
    pub fn min(&self, ax: isize, keepdim: bool) -> Result<Tensor> {
        self.extreme("min", ReduceOp::Min, ax, keepdim)
    }

    /// Position (i64) of the first largest element along an axis.
    pub fn argmax(&self, ax: isize, keepdim: bool) -> Result<Tensor> {
        self.arg("argmax", ReduceOp::ArgMax, ax, keepdim)
    }

    /// Position (i64) of the first smallest element along an axis.
    pub fn argmin(&self, ax: isize, keepdim: bool) -> Result<Tensor> {
        self.arg("argmin", ReduceOp::ArgMin, ax, keepdim)
    }

    fn arg(&self, name: &'static str, op: ReduceOp, ax: isize, keepdim: bool) -> Result<Tensor> {
        let a = axis(name, ax, self.rank())?;
        if self.shape()[a] == 0 {
            return shape_error(name, format!("axis {a} of {:?} is empty", self.shape()));
        }
        self.reduce_axis(op, a)?.finish(&[a], keepdim)
    }

    /// Run a row kernel over an axis: it is moved to the end, and the result's axis back.
    fn rows(&self, name: &'static str, ax: isize) -> Result<(Tensor, usize, usize)> {
        need_float(name, self)?;
        let a = axis(name, ax, self.rank())?;
        let x = self.transpose(a as isize, -1)?.contiguous()?;
        let n = self.shape()[a];
        Ok((x.clone(), x.count() / n.max(1), n))
    }

    /// e^x / sum(e^x) along an axis; a row of -infinity gives zeros.
    pub fn softmax(&self, ax: isize) -> Result<Tensor> {
        let (x, rows, n) = self.rows("softmax", ax)?;
        let y = Tensor::new(Storage::softmax(x.operand(), rows, n, false)?, x.shape());
        let y = record_with_output("softmax", [&x], y, |g, ctx| {
            let y = ctx.output(0)?;
            let gy = g.mul(&y)?;
            Ok([Some(gy.sub(&y.mul(&gy.sum(&[-1], true)?)?)?)])
        });
        y.transpose(ax, -1)
    }

    /// x - log(sum(e^x)) along an axis.
    pub fn log_softmax(&self, ax: isize) -> Result<Tensor> {
        let (x, rows, n) = self.rows("log_softmax", ax)?;
        let y = Tensor::new(Storage::softmax(x.operand(), rows, n, true)?, x.shape());
        let y = record_with_output("log_softmax", [&x], y, |g, ctx| {
            let p = ctx.output(0)?.exp()?;
            Ok([Some(g.sub(&p.mul(&g.sum(&[-1], true)?)?)?)])
        });
        y.transpose(ax, -1)
    }

    /// log(sum(e^x)) along an axis, without overflow; a row of -infinity gives -infinity.
    pub fn logsumexp(&self, ax: isize, keepdim: bool) -> Result<Tensor> {
        let a = axis("logsumexp", ax, self.rank())?;
        let (x, rows, n) = self.rows("logsumexp", ax)?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        let y = Tensor::new(Storage::logsumexp(x.operand(), rows, n)?, &shape);
        let input = x.clone();
        let y = record("logsumexp", [&x], y, move |g, _| {
            Ok([Some(input.softmax(-1)?.mul(g)?)])
        });
        y.transpose(ax, -1)?.finish(&[a], keepdim)
    }

    /// Whether every element is finite (no NaN, no infinity).
    pub fn all_finite(&self) -> Result<bool> {
        need_float("all_finite", self)?;
        let x = self.detach();
        // x - x is 0 for finite x and NaN otherwise; a NaN survives the sum.
        let d = x.sub(&x)?.to_dtype(if x.dtype() == DType::BF16 {
            DType::F32
        } else {
            x.dtype()
        })?;
        Ok(d.sum_all()?.item_f64()? == 0.0)
    }
}
