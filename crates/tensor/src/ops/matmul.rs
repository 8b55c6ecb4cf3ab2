//! Matrix products.

use crate::autograd::record;
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

    /// x W^T (+ bias): x [.., in], weight [out, in], bias [out] -> [.., out]. A bf16 weight
    /// under a wider x counts as widened.
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
        if stored != DType::BF16 {
            same_dtype("linear", self, weight)?;
        }
        let ([n, k], (leading, _)) = (weight.dims()?, self.shape().split_at(self.rank() - 1));
        let rows = leading.iter().product();
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
}
