//! Comparisons, which give u8 masks, and selection by a mask.

use crate::autograd::record;
use crate::cpu::CompareOp;
use crate::dtype::DType;
use crate::error::{Result, dtype_error};
use crate::layout::broadcast;
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

impl Tensor {
    fn compare(&self, name: &'static str, op: CompareOp, rhs: &Tensor) -> Result<Tensor> {
        same_dtype(name, self, rhs)?;
        let shape = broadcast(name, self.shape(), rhs.shape())?;
        let la = self.layout().broadcast_to(name, &shape)?;
        let lb = rhs.layout().broadcast_to(name, &shape)?;
        Ok(Tensor::new(
            Storage::compare(op, (self.operand().0, &la), (rhs.operand().0, &lb))?,
            &shape,
        ))
    }

    /// a == b as a u8 mask, broadcasting.
    pub fn eq(&self, rhs: &Tensor) -> Result<Tensor> {
        self.compare("eq", CompareOp::Eq, rhs)
    }

    /// a != b as a u8 mask, broadcasting.
    pub fn ne(&self, rhs: &Tensor) -> Result<Tensor> {
        self.compare("ne", CompareOp::Ne, rhs)
    }

    /// a < b as a u8 mask, broadcasting.
    pub fn lt(&self, rhs: &Tensor) -> Result<Tensor> {
        self.compare("lt", CompareOp::Lt, rhs)
    }

    /// a <= b as a u8 mask, broadcasting.
    pub fn le(&self, rhs: &Tensor) -> Result<Tensor> {
        self.compare("le", CompareOp::Le, rhs)
    }

    /// a > b as a u8 mask, broadcasting.
    pub fn gt(&self, rhs: &Tensor) -> Result<Tensor> {
        rhs.compare("gt", CompareOp::Lt, self)
    }

    /// a >= b as a u8 mask, broadcasting.
    pub fn ge(&self, rhs: &Tensor) -> Result<Tensor> {
        rhs.compare("ge", CompareOp::Le, self)
    }

    /// `a` where this u8 mask is not 0, `b` elsewhere; all three broadcast. A NaN in the unchosen operand
    /// reaches neither the result nor the gradients.
    pub fn where_cond(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        const NAME: &str = "where_cond";
        if self.dtype() != DType::U8 {
            return dtype_error(NAME, self.dtype(), "u8 (a mask)");
        }
        same_dtype(NAME, a, b)?;
        let shape = broadcast(NAME, self.shape(), &broadcast(NAME, a.shape(), b.shape())?)?;
        let [lm, la, lb] = [self, a, b].map(|t| t.layout().broadcast_to(NAME, &shape));
        let (lm, la, lb) = (lm?, la?, lb?);
        let y = Storage::select(
            (self.operand().0, &lm),
            (a.operand().0, &la),
            (b.operand().0, &lb),
        )?;
        let (mask, sa, sb) = (self.clone(), a.shape().to_vec(), b.shape().to_vec());
        Ok(record(
            NAME,
            [a, b],
            Tensor::new(y, &shape),
            move |g, ctx| {
                let zero = Tensor::zeros(&[], g.dtype(), &g.device());
                Ok([
                    ctx.needs(0)
                        .then(|| mask.where_cond(g, &zero)?.sum_to(&sa))
                        .transpose()?,
                    ctx.needs(1)
                        .then(|| mask.where_cond(&zero, g)?.sum_to(&sb))
                        .transpose()?,
                ])
            },
        ))
    }

    /// The value `v` where the mask is not 0, this tensor elsewhere.
    pub fn masked_fill(&self, mask: &Tensor, v: f64) -> Result<Tensor> {
        mask.where_cond(&Tensor::full(&[], v, self.dtype(), &self.device()), self)
    }
}
