//! Matrix products.

use crate::autograd::{Context, record};
use crate::cpu::linear::FEW_ROWS;
use crate::dtype::DType;
use crate::error::{Result, shape_error};
use crate::layout::broadcast;
use crate::storage::{Device, Storage};
use crate::tensor::{Tensor, need_float, same_dtype};

impl Tensor {
    /// [.., m, k] x [.., k, n] -> [.., m, n]; the axes before the last two broadcast.
    pub fn matmul(&self, rhs: &Tensor) -> Result<Tensor> {
        need_float("matmul", self)?;
        same_dtype("matmul", self, rhs)?;
        let (sa, sb) = (self.shape(), rhs.shape());
        if sa.len() < 2 || sb.len() < 2 || sa[sa.len() - 1] != sb[sb.len() - 2] {
            return shape_error(
                "matmul",
                format!("{sa:?} x {sb:?}: expected [.., m, k] x [.., k, n]"),
            );
        }
        // A matrix on the right serves all rows of the left at once.
        if sa.len() > 2 && sb.len() == 2 {
            let mut shape = sa.to_vec();
            shape[sa.len() - 1] = sb[1];
            return self.flatten(0, -2)?.matmul(rhs)?.reshape(&shape);
        }
        let (m, k, n) = (sa[sa.len() - 2], sa[sa.len() - 1], sb[sb.len() - 1]);
        let batch = broadcast("matmul", &sa[..sa.len() - 2], &sb[..sb.len() - 2])?;
        let full = |x: usize, y: usize| [batch.as_slice(), &[x, y]].concat();
        let la = self.layout().broadcast_to("matmul", &full(m, k))?;
        let lb = rhs.layout().broadcast_to("matmul", &full(k, n))?;
        let y = Storage::matmul((self.operand().0, &la), (rhs.operand().0, &lb))?;
        let (a, b) = (self.clone(), rhs.clone());
        Ok(record(
            "matmul",
            [self, rhs],
            Tensor::new(y, &full(m, n)),
            move |g, ctx| {
                Ok([
                    ctx.needs(0)
                        .then(|| g.matmul(&b.transpose(-1, -2)?)?.sum_to(a.shape()))
                        .transpose()?,
                    ctx.needs(1)
                        .then(|| a.transpose(-1, -2)?.matmul(g)?.sum_to(b.shape()))
                        .transpose()?,
                ])
            },
        ))
    }

    /// A bf16 product [m, k] x [k, n] whose result stays in f32: what a gradient of f32 weights is.
    fn matmul_wide(&self, rhs: &Tensor) -> Result<Tensor> {
        let y = Storage::matmul_wide(self.operand(), rhs.operand())?;
        let shape = [self.shape()[0], rhs.shape()[1]];
        let (a, b) = (self.clone(), rhs.clone());
        let back = move |g: &Tensor, _: &Context| {
            let (g, narrow) = (g.clone(), |x: Tensor| x.to_dtype(DType::BF16));
            let wide = |x: &Tensor| x.transpose(0, 1)?.to_dtype(DType::F32);
            Ok([
                Some(narrow(g.matmul(&wide(&b)?)?)?),
                Some(narrow(wide(&a)?.matmul(&g)?)?),
            ])
        };
        Ok(record("matmul", [self, rhs], Tensor::new(y, &shape), back))
    }

    /// x W^T (+ bias): x [.., in], weight [out, in], bias [out] -> [.., out]. A bf16 weight under a wider x counts as
    /// widened. An f32 weight under a bf16 x is rounded to bf16; its gradient is f32 and never rounded.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        if weight.rank() != 2 || self.rank() == 0 || self.dim(-1)? != weight.shape()[1] {
            let (x, w) = (self.shape(), weight.shape());
            return shape_error(
                "linear",
                format!("input {x:?} with weight {w:?}: expected [.., in] and [out, in]"),
            );
        }
        let x = if self.rank() == 1 {
            self.unsqueeze(0)?
        } else {
            self.clone()
        };
        let y = x.rows_times(weight)?;
        let y = if self.rank() == 1 { y.squeeze(0)? } else { y };
        match bias {
            Some(b) => y.add(b),
            None => Ok(y),
        }
    }

    /// x W^T for x [.., in] of two axes or more.
    fn rows_times(&self, weight: &Tensor) -> Result<Tensor> {
        let stored = weight.dtype();
        let ([n, k], (leading, _)) = (weight.dims()?, self.shape().split_at(self.rank() - 1));
        let rows: usize = leading.iter().product();
        if (self.dtype(), stored) == (DType::BF16, DType::F32) {
            let y = self.reshape(&[rows, k])?.under_master(weight)?;
            return y.reshape(&[leading, &[n]].concat());
        }
        if stored != DType::BF16 {
            same_dtype("linear", self, weight)?;
        }
        let on_cpu = self.dtype() == DType::F32 && self.device() == Device::Cpu;
        if !on_cpu || k == 0 || rows > FEW_ROWS || !weight.is_contiguous() {
            return self.matmul(&weight.to_dtype(self.dtype())?.transpose(0, 1)?);
        }
        let x = self.contiguous()?;
        let y = Storage::linear_few_rows(x.operand(), weight.operand(), [rows, k, n])?;
        let y = Tensor::new(y, &[leading, &[n]].concat());
        let (kept, w) = (x.clone(), weight.clone());
        Ok(record("linear", [&x, weight], y, move |g, ctx| {
            let dx = || g.matmul(&w.to_dtype(DType::F32)?);
            let dw = || {
                let g = g.reshape(&[rows, n])?.transpose(0, 1)?;
                g.matmul(&kept.reshape(&[rows, k])?)?.to_dtype(stored)
            };
            Ok([
                ctx.needs(0).then(dx).transpose()?,
                ctx.needs(1).then(dw).transpose()?,
            ])
        }))
    }

    /// x W^T for x [rows, k] in bf16 and W [n, k] in f32.
    fn under_master(&self, weight: &Tensor) -> Result<Tensor> {
        let (x, w) = (self.clone(), weight.detach().to_dtype(DType::BF16)?);
        let y = x.detach().matmul(&w.transpose(0, 1)?)?;
        let master = weight.clone();
        Ok(record("linear", [self, weight], y, move |g, ctx| {
            // With a graph of the way back the rounding is part of it.
            let w = match ctx.create_graph() {
                true => &master.to_dtype(DType::BF16)?,
                false => &w,
            };
            let dw = || g.transpose(0, 1)?.matmul_wide(&x);
            Ok([
                ctx.needs(0).then(|| g.matmul(w)).transpose()?,
                ctx.needs(1).then(dw).transpose()?,
            ])
        }))
    }
}
