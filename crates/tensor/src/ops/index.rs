//! Reading and adding by index. Indices are i64; one outside its axis is an error that says which.

use crate::autograd::record;
use crate::dtype::DType;
use crate::error::{Result, dtype_error, shape_error};
use crate::layout::axis;
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

fn need_index(op: &'static str, index: &Tensor) -> Result<()> {
    if index.dtype() == DType::I64 {
        Ok(())
    } else {
        dtype_error(op, index.dtype(), "i64 (indices)")
    }
}

/// scatter_add takes index and source of one shape that agrees with the target outside the axis.
fn need_same_frame(op: &'static str, x: &Tensor, a: usize, index: &Tensor) -> Result<()> {
    let fits = index.rank() == x.rank()
        && index
            .shape()
            .iter()
            .zip(x.shape())
            .enumerate()
            .all(|(i, (n, m))| i == a || n == m);
    if fits {
        return Ok(());
    }
    let (i, s) = (index.shape(), x.shape());
    shape_error(
        op,
        format!("index of shape {i:?} does not fit a tensor of shape {s:?} outside axis {a}"),
    )
}

impl Tensor {
    /// The slices `index[0], index[1], ...` (1-d) of an axis.
    pub fn index_select(&self, ax: isize, index: &Tensor) -> Result<Tensor> {
        need_index("index_select", index)?;
        let a = axis("index_select", ax, self.rank())?;
        let [n] = index.dims()?;
        let index = index.contiguous()?;
        let mut shape = self.shape().to_vec();
        shape[a] = n;
        let y = Tensor::new(
            Storage::index_select(self.operand(), a, index.operand())?,
            &shape,
        );
        let full = self.shape().to_vec();
        Ok(record("index_select", [self], y, move |g, _| {
            let zeros = Tensor::zeros(&full, g.dtype(), &g.device());
            Ok([Some(zeros.index_add(a as isize, &index, g)?)])
        }))
    }

    /// Rows of a table [n, d] for ids of any shape: [.., d].
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let [_, d] = self.dims()?;
        let shape = [ids.shape(), &[d]].concat();
        self.index_select(0, &ids.reshape(&[ids.count()])?)?
            .reshape(&shape)
    }

    /// `self[.., index[.., i, ..], ..]` along an axis: the index has this tensor's shape outside the axis.
    pub fn gather(&self, ax: isize, index: &Tensor) -> Result<Tensor> {
        need_index("gather", index)?;
        let a = axis("gather", ax, self.rank())?;
        need_same_frame("gather", self, a, index)?;
        let y = Tensor::new(
            Storage::gather(self.operand(), a, index.operand())?,
            index.shape(),
        );
        let (full, index) = (self.shape().to_vec(), index.clone());
        Ok(record("gather", [self], y, move |g, _| {
            let zeros = Tensor::zeros(&full, g.dtype(), &g.device());
            Ok([Some(zeros.scatter_add(a as isize, &index, g)?)])
        }))
    }

    /// This tensor plus `src` added at `index` along an axis; equal indices add up, in order.
    pub fn scatter_add(&self, ax: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        need_index("scatter_add", index)?;
        same_dtype("scatter_add", self, src)?;
        let a = axis("scatter_add", ax, self.rank())?;
        need_same_frame("scatter_add", self, a, index)?;
        if index.shape() != src.shape() {
            let (i, s) = (index.shape(), src.shape());
            return shape_error(
                "scatter_add",
                format!("index of shape {i:?} and source of shape {s:?} differ"),
            );
        }
        let mut y = Storage::copy(self.operand())?;
        y.scatter_add(self.shape(), a, index.operand(), src.operand())?;
        let index = index.clone();
        Ok(record(
            "scatter_add",
            [self, src],
            Tensor::new(y, self.shape()),
            move |g, ctx| {
                Ok([
                    Some(g.clone()),
                    ctx.needs(1)
                        .then(|| g.gather(a as isize, &index))
                        .transpose()?,
                ])
            },
        ))
    }

    /// This tensor plus the slices of `src` added at the 1-d `index` along an axis.
    pub fn index_add(&self, ax: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        let a = axis("index_add", ax, self.rank())?;
        let mut frame = vec![1; self.rank()];
        frame[a] = index.count();
        let wide = index.reshape(&frame)?.broadcast_to(src.shape())?;
        self.scatter_add(ax, &wide, src)
    }

    /// 1 at the index, 0 elsewhere: ids of any shape -> [.., classes].
    pub fn one_hot(&self, classes: usize, dtype: DType) -> Result<Tensor> {
        need_index("one_hot", self)?;
        let all = Tensor::arange(0, classes as i64, DType::I64, &self.device())?;
        self.unsqueeze(-1)?.eq(&all)?.to_dtype(dtype)
    }
}
