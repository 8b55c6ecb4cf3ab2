//! RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight over the last axis, the statistics
//! in f32 (f64 for f64 inputs).

use super::fused;
use crate::autograd::{Context, Function, apply};
use crate::error::{Result, shape_error};
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

impl Tensor {
    /// RMSNorm over the last axis: x [.., d], weight [d] of the same dtype.
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Tensor> {
        same_dtype("rms_norm", self, weight)?;
        if self.rank() == 0 || weight.shape() != &self.shape()[self.rank() - 1..] {
            let (x, w) = (self.shape(), weight.shape());
            return shape_error(
                "rms_norm",
                format!("input {x:?}, weight {w:?}: expected [.., d] and [d]"),
            );
        }
        let (x, w) = (self.contiguous()?, weight.contiguous()?);
        let d = weight.count();
        let dims = [x.count() / d.max(1), d];
        let y = Tensor::new(
            Storage::rms_norm(x.operand(), w.operand(), dims, eps)?,
            self.shape(),
        );
        Ok(fused(
            "rms_norm",
            &[&x, &w],
            y,
            move |t| plain(&t[0], &t[1], eps),
            move |t, g| {
                let [dx, dw] = Storage::rms_norm_backward(
                    t[0].operand(),
                    t[1].operand(),
                    g.operand(),
                    dims,
                    eps,
                )?;
                Ok(vec![
                    Tensor::new(dx, t[0].shape()),
                    Tensor::new(dw, t[1].shape()),
                ])
            },
        ))
    }

    /// self + delta, and `(self + delta).rms_norm(weight, eps)`: the residual stream after a branch, and what the next
    /// branch reads, in one pass on a GPU. All of one dtype; delta has the shape of self.
    pub fn add_rms_norm(&self, delta: &Tensor, weight: &Tensor, eps: f64) -> Result<[Tensor; 2]> {
        same_dtype("rms_norm", self, delta)?;
        same_dtype("rms_norm", self, weight)?;
        let d = weight.count();
        let rows = self.rank() > 0 && weight.shape() == &self.shape()[self.rank() - 1..];
        if self.shape() != delta.shape() || !rows {
            let (x, delta, w) = (self.shape(), delta.shape(), weight.shape());
            let detail = format!("{x:?} + {delta:?}, weight {w:?}: expected [.., d] twice and [d]");
            return shape_error("rms_norm", detail);
        }
        let (x, delta, w) = (
            self.contiguous()?,
            delta.contiguous()?,
            weight.contiguous()?,
        );
        let dims = [x.count() / d.max(1), d];
        let outputs = Storage::add_rms_norm(x.operand(), delta.operand(), w.operand(), dims, eps)?;
        let [sum, normed] = outputs.map(|y| Tensor::new(y, self.shape()));
        let function = AddNorm {
            weight: w.clone(),
            dims,
            eps,
        };
        Ok(apply(function, &[&x, &delta, &w], [sum, normed]))
    }
}

/// What [`Tensor::add_rms_norm`] sends back.
struct AddNorm {
    weight: Tensor,
    dims: [usize; 2],
    eps: f64,
}

impl Function for AddNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }
    fn keeps_outputs(&self) -> bool {
        true
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let (sum, w) = (&ctx.output(0)?, &self.weight);
        let grads = [0, 1].map(|i| grads[i].clone().unwrap_or_else(|| sum.zeros_like()));
        if ctx.create_graph() {
            // In operations on the sum, which has its history here.
            let [other, g] = &grads;
            let s = scale(sum, self.eps)?;
            let gw = g.mul(w)?;
            let dot = gw.mul(sum)?.mean(&[-1], true)?.mul(&s.powf(3.0)?)?;
            let dx = gw.mul(&s)?.sub(&sum.mul(&dot)?)?.add(other)?;
            let dw = g.mul(&sum.mul(&s)?)?.sum_to(w.shape())?;
            return Ok(vec![Some(dx.clone()), Some(dx), Some(dw)]);
        }
        let [other, g] = [grads[0].contiguous()?, grads[1].contiguous()?];
        let [dx, dw] = Storage::add_rms_norm_backward(
            sum.operand(),
            w.operand(),
            g.operand(),
            other.operand(),
            self.dims,
            self.eps,
        )?;
        let dx = Tensor::new(dx, sum.shape());
        Ok(vec![
            Some(dx.clone()),
            Some(dx),
            Some(Tensor::new(dw, w.shape())),
        ])
    }
}

/// 1 / sqrt(mean(x^2) + eps)
fn scale(x: &Tensor, eps: f64) -> Result<Tensor> {
    x.square()?.mean(&[-1], true)?.add_scalar(eps)?.rsqrt()
}

fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.mul(&scale(x, eps)?)?.mul(weight)
}
