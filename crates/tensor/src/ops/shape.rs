//! Views and copies that move elements without computing: reshape, transpose, narrow, cat, pad ...

use crate::autograd::{Context, Function};
use crate::autograd::{apply, record};
use crate::dtype::DType;
use crate::error::{Result, shape_error};
use crate::layout::{Layout, axis, contiguous_strides};
use crate::storage::{Device, Storage};
use crate::tensor::Tensor;

impl Tensor {
    /// The same elements row-major in memory (this tensor itself if it already is).
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let y = Tensor::new(Storage::copy(self.operand())?, self.shape());
        Ok(record("contiguous", [self], y, |g, _| {
            Ok([Some(g.clone())])
        }))
    }

    /// Converted to another dtype, rounding to nearest. Gradients flow between float dtypes.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        let y = Tensor::new(Storage::cast(self.operand(), dtype)?, self.shape());
        let from = self.dtype();
        if !(from.is_float() && dtype.is_float()) {
            return Ok(y);
        }
        Ok(record("to_dtype", [self], y, move |g, _| {
            Ok([Some(g.to_dtype(from)?)])
        }))
    }

    /// On another device (this tensor itself if it is there already). The gradient comes back to this one.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        let from = self.device();
        if from == *device {
            return Ok(self.clone());
        }
        let y = Tensor::new(Storage::copy_to(self.operand(), *device)?, self.shape());
        Ok(record("to_device", [self], y, move |g, _| {
            Ok([Some(g.to_device(&from)?)])
        }))
    }

    /// Another shape with the same number of elements; a copy only if the layout demands it.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.count() {
            return shape_error(
                "reshape",
                format!("{:?} does not fit into {shape:?}", self.shape()),
            );
        }
        if shape == self.shape() {
            return Ok(self.clone());
        }
        let x = self.contiguous()?;
        let layout = Layout {
            shape: shape.to_vec(),
            strides: contiguous_strides(shape),
            offset: x.layout().offset,
        };
        let back = self.shape().to_vec();
        Ok(record("reshape", [&x], x.view(layout), move |g, _| {
            Ok([Some(g.reshape(&back)?)])
        }))
    }

    /// Merge the axes `from..=to` into one.
    pub fn flatten(&self, from: isize, to: isize) -> Result<Tensor> {
        let (from, to) = (
            axis("flatten", from, self.rank())?,
            axis("flatten", to, self.rank())?,
        );
        if from > to {
            return shape_error("flatten", format!("axis {from} is after axis {to}"));
        }
        let s = self.shape();
        let mut shape = s[..from].to_vec();
        shape.push(s[from..=to].iter().product());
        shape.extend(&s[to + 1..]);
        self.reshape(&shape)
    }

    /// Axes in another order: axis i of the result is axis `order[i]` of this tensor.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if seen != (0..self.rank()).collect::<Vec<_>>() {
            return shape_error(
                "permute",
                format!(
                    "{order:?} is not an order of the axes of {:?}",
                    self.shape()
                ),
            );
        }
        let l = self.layout();
        let layout = Layout {
            shape: order.iter().map(|&i| l.shape[i]).collect(),
            strides: order.iter().map(|&i| l.strides[i]).collect(),
            offset: l.offset,
        };
        let mut back = vec![0; order.len()];
        for (i, &o) in order.iter().enumerate() {
            back[o] = i;
        }
        Ok(record("permute", [self], self.view(layout), move |g, _| {
            Ok([Some(g.permute(&back)?)])
        }))
    }

    /// Two axes swapped.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Tensor> {
        let (a, b) = (
            axis("transpose", a, self.rank())?,
            axis("transpose", b, self.rank())?,
        );
        let mut order: Vec<usize> = (0..self.rank()).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    /// The elements `start..start + len` of an axis.
    pub fn narrow(&self, ax: isize, start: usize, len: usize) -> Result<Tensor> {
        self.slice_axis(ax, start, len, 1)
    }

    /// `len` elements of an axis from `start`, every `step`-th.
    pub fn slice_axis(&self, ax: isize, start: usize, len: usize, step: usize) -> Result<Tensor> {
        let a = axis("slice_axis", ax, self.rank())?;
        let size = self.shape()[a];
        let last = (len.max(1) - 1)
            .checked_mul(step.max(1))
            .and_then(|l| l.checked_add(start));
        if step == 0 || start > size || (len > 0 && last.is_none_or(|l| l >= size)) {
            let s = self.shape();
            return shape_error(
                "slice_axis",
                format!("{len} elements from {start} by {step} leave axis {a} of {s:?}"),
            );
        }
        let mut layout = self.layout().clone();
        layout.offset += start * layout.strides[a];
        layout.strides[a] *= step;
        layout.shape[a] = len;
        let full = self.shape().to_vec();
        Ok(record(
            "slice_axis",
            [self],
            self.view(layout),
            move |g, _| {
                Ok([Some(if step == 1 {
                    g.pad(a as isize, start, full[a] - start - len, 0.0)?
                } else {
                    let at: Vec<i64> = (0..len).map(|i| (start + i * step) as i64).collect();
                    let at = Tensor::from_vec(at, &[len], &g.device())?;
                    Tensor::zeros(&full, g.dtype(), &g.device()).index_add(a as isize, &at, g)?
                })])
            },
        ))
    }

    /// Cut an axis into pieces of the given sizes, which must add up to it.
    pub fn split(&self, ax: isize, sizes: &[usize]) -> Result<Vec<Tensor>> {
        let size = self.dim(ax)?;
        if sizes.iter().sum::<usize>() != size {
            let s = self.shape();
            return shape_error(
                "split",
                format!("pieces {sizes:?} do not add up to axis {ax} of {s:?}"),
            );
        }
        let mut start = 0;
        sizes
            .iter()
            .map(|&n| {
                start += n;
                self.narrow(ax, start - n, n)
            })
            .collect()
    }

    /// Element `i` of an axis; the axis disappears.
    pub fn select(&self, ax: isize, i: usize) -> Result<Tensor> {
        self.narrow(ax, i, 1)?.squeeze(ax)
    }

    /// Drop an axis of size 1.
    pub fn squeeze(&self, ax: isize) -> Result<Tensor> {
        let a = axis("squeeze", ax, self.rank())?;
        if self.shape()[a] != 1 {
            return shape_error(
                "squeeze",
                format!("axis {a} of {:?} is not of size 1", self.shape()),
            );
        }
        let mut layout = self.layout().clone();
        layout.shape.remove(a);
        layout.strides.remove(a);
        Ok(record("squeeze", [self], self.view(layout), move |g, _| {
            Ok([Some(g.unsqueeze(a as isize)?)])
        }))
    }

    /// A new axis of size 1 at position `ax` (-1: after the last).
    pub fn unsqueeze(&self, ax: isize) -> Result<Tensor> {
        let a = axis("unsqueeze", ax, self.rank() + 1)?;
        let mut layout = self.layout().clone();
        layout.shape.insert(a, 1);
        layout.strides.insert(a, 0);
        Ok(record(
            "unsqueeze",
            [self],
            self.view(layout),
            move |g, _| Ok([Some(g.squeeze(a as isize)?)]),
        ))
    }

    /// Repeat axes of size 1 (and new leading axes) without copying.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Tensor> {
        if shape == self.shape() {
            return Ok(self.clone());
        }
        let layout = self.layout().broadcast_to("broadcast_to", shape)?;
        let back = self.shape().to_vec();
        Ok(record(
            "broadcast_to",
            [self],
            self.view(layout),
            move |g, _| Ok([Some(g.sum_to(&back)?)]),
        ))
    }

    /// Tensors one after another along an axis; the other axes must agree.
    pub fn cat(parts: &[&Tensor], ax: isize) -> Result<Tensor> {
        let Some(first) = parts.first() else {
            return shape_error("cat", "no tensors given");
        };
        let a = axis("cat", ax, first.rank())?;
        for p in parts {
            crate::tensor::same_dtype("cat", first, p)?;
            let fits = p.rank() == first.rank()
                && p.shape()
                    .iter()
                    .zip(first.shape())
                    .enumerate()
                    .all(|(i, (x, y))| i == a || x == y);
            if !fits {
                let (s, t) = (first.shape(), p.shape());
                return shape_error("cat", format!("{s:?} and {t:?} differ outside axis {a}"));
            }
        }
        let mut shape = first.shape().to_vec();
        let sizes: Vec<usize> = parts.iter().map(|p| p.shape()[a]).collect();
        shape[a] = sizes.iter().sum();
        let operands: Vec<_> = parts.iter().map(|p| p.operand()).collect();
        let y = Tensor::new(Storage::cat(&operands, a)?, &shape);
        let [y] = apply(Cat { axis: a, sizes }, parts, [y]);
        Ok(y)
    }

    /// Tensors of one shape along a new axis.
    pub fn stack(parts: &[&Tensor], ax: isize) -> Result<Tensor> {
        let parts = parts
            .iter()
            .map(|p| p.unsqueeze(ax))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts.iter().collect::<Vec<_>>(), ax)
    }

    /// `before` and `after` copies of `value` around an axis.
    pub fn pad(&self, ax: isize, before: usize, after: usize, value: f64) -> Result<Tensor> {
        let a = axis("pad", ax, self.rank())?;
        let side = |n: usize| {
            let mut s = self.shape().to_vec();
            s[a] = n;
            (n > 0).then(|| Tensor::full(&s, value, self.dtype(), &self.device()))
        };
        let (l, r) = (side(before), side(after));
        let parts: Vec<&Tensor> = [l.as_ref(), Some(self), r.as_ref()]
            .into_iter()
            .flatten()
            .collect();
        if parts.len() == 1 {
            Ok(self.clone())
        } else {
            Tensor::cat(&parts, ax)
        }
    }

    /// An axis in reverse order.
    pub fn flip(&self, ax: isize) -> Result<Tensor> {
        let n = self.dim(ax)? as i64;
        let order = Tensor::from_vec((0..n).rev().collect(), &[n as usize], &self.device())?;
        self.index_select(ax, &order)
    }

    /// The whole tensor `counts[i]` times along axis i.
    pub fn repeat(&self, counts: &[usize]) -> Result<Tensor> {
        if counts.len() != self.rank() {
            return shape_error(
                "repeat",
                format!("{} counts for shape {:?}", counts.len(), self.shape()),
            );
        }
        let mut wide = vec![];
        let mut narrow = vec![];
        let mut shape = vec![];
        for (&n, &c) in self.shape().iter().zip(counts) {
            narrow.extend([1, n]);
            wide.extend([c, n]);
            shape.push(c * n);
        }
        self.reshape(&narrow)?.broadcast_to(&wide)?.reshape(&shape)
    }

    /// Each element of an axis `n` times in a row: `[a, b]` becomes `[a, a, b, b]`. Grouped heads use this.
    pub fn repeat_interleave(&self, ax: isize, n: usize) -> Result<Tensor> {
        let a = axis("repeat_interleave", ax, self.rank())?;
        let mut shape = self.shape().to_vec();
        shape.insert(a + 1, n);
        let wide = self.unsqueeze(a as isize + 1)?.broadcast_to(&shape)?;
        wide.flatten(a as isize, a as isize + 1)
    }

    /// Ones on and below the `diagonal`-th diagonal of an n x m mask (u8), zeros above.
    pub fn tril_mask(n: usize, m: usize, diagonal: i64, device: &Device) -> Result<Tensor> {
        let row = Tensor::arange(0, n as i64, DType::I64, device)?.unsqueeze(1)?;
        let col = Tensor::arange(0, m as i64, DType::I64, device)?.unsqueeze(0)?;
        col.le(&row.add_scalar(diagonal as f64)?)
    }

    /// The last two axes with everything above the `diagonal`-th diagonal set to 0.
    pub fn tril(&self, diagonal: i64) -> Result<Tensor> {
        let (n, m) = (self.dim(-2)?, self.dim(-1)?);
        let keep = Tensor::tril_mask(n, m, diagonal, &self.device())?;
        keep.where_cond(self, &Tensor::zeros(&[], self.dtype(), &self.device()))
    }

    /// The last two axes with everything below the `diagonal`-th diagonal set to 0.
    pub fn triu(&self, diagonal: i64) -> Result<Tensor> {
        let (n, m) = (self.dim(-2)?, self.dim(-1)?);
        let drop = Tensor::tril_mask(n, m, diagonal - 1, &self.device())?;
        drop.where_cond(&Tensor::zeros(&[], self.dtype(), &self.device()), self)
    }
}

struct Cat {
    axis: usize,
    sizes: Vec<usize>,
}

impl Function for Cat {
    fn name(&self) -> &'static str {
        "cat"
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(g) = &grads[0] else {
            return Ok(vec![None; self.sizes.len()]);
        };
        let mut start = 0;
        let piece = |(i, &n): (usize, &usize)| {
            start += n;
            ctx.needs(i)
                .then(|| g.narrow(self.axis as isize, start - n, n))
                .transpose()
        };
        self.sizes.iter().enumerate().map(piece).collect()
    }
}
