//! Muon: momentum whose matrix is replaced by the nearest orthogonal one, so that a step moves all directions alike.
//!
//! ```text
//! m = mu m + (1 - mu) g         u = mu m + (1 - mu) g        (Nesterov)
//! p = p (1 - lr decay) - lr sqrt(max(1, rows / cols)) orthogonalize(u)
//! ```
//!
//! The factor gives every step the same effect on activations, whatever the shape of the matrix (Jordan et al. 2024):
//! one learning rate serves all widths.

use weft_mixers::Param;
use weft_tensor::Tensor;
use weft_tensor::cpu::simd::vectorize;

use super::{Step, shrink};
use crate::error::{Error, Result};
use crate::recipe::Muon;

/// Coefficients of the quintic iteration (Jordan et al. 2024): the steepest at 0 whose orbit stays near 1.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Iterations: enough to lift singular values above a hundredth of the norm.
const ITERATIONS: usize = 5;

pub(super) fn step(
    rule: &Muon,
    param: &Param,
    grad: &Tensor,
    momentum: &mut Tensor,
    step: Step,
) -> Result<()> {
    let mu = rule.muon_momentum as f32;
    let fresh = ((1.0 - rule.muon_momentum) * step.scale) as f32;
    let mut direction = grad.zeros_like();
    let g = grad.slice::<f32>()?;
    momentum.write(|m: &mut [f32]| {
        direction.write(|u: &mut [f32]| {
            vectorize(|| {
                for ((m, u), &g) in m.iter_mut().zip(u).zip(g) {
                    *m = mu * *m + fresh * g;
                    *u = mu * *m + fresh * g;
                }
            });
        })
    })??;
    let direction = orthogonalize(&direction)?.contiguous()?;
    let [shrink, rate] = factors(rule, param, step)?;
    let o = direction.slice::<f32>()?;
    param.update(|p: &mut [f32]| {
        vectorize(|| {
            for (p, &o) in p.iter_mut().zip(o) {
                *p = shrink * *p - rate * o;
            }
        });
    })?;
    Ok(())
}

/// Of a parameter in one step: 1 - lr decay, and the rate of its shape.
pub(super) fn factors(rule: &Muon, param: &Param, step: Step) -> Result<[f32; 2]> {
    let &[rows, cols] = param.shape() else {
        let (name, shape) = (param.name(), param.shape());
        return Err(Error::Optimizer(format!(
            "Muon moves matrices, {name} has shape {shape:?}"
        )));
    };
    let lr = rule.muon_lr * step.rate;
    let rate = (lr * (rows as f64 / cols as f64).max(1.0).sqrt()) as f32;
    Ok([shrink(param, rule.adamw.weight_decay, lr), rate])
}

/// U V^T, about, of matrices U S V^T [.., rows, cols]: five Newton-Schulz steps bring every singular value that is not
/// tiny beside the norm to between 0.68 and 1.14. A zero matrix stays zero.
///
/// # Errors
/// When the tensor does not hold float matrices.
pub fn orthogonalize(matrix: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (matrix.dim(-2)?, matrix.dim(-1)?);
    let turn = |x: &Tensor| {
        if rows > cols {
            x.transpose(-1, -2)
        } else {
            Ok(x.clone())
        }
    };
    let norm = matrix.square()?.sum(&[-2, -1], true)?.sqrt()?;
    let [a, b, c] = QUINTIC;
    // Wide, so that the Gram matrix is the smaller of the two.
    let mut x = turn(&matrix.mul(&norm.add_scalar(1e-7)?.recip()?)?)?;
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.transpose(-1, -2)?)?;
        let poly = (&gram.mul_scalar(b)? + &gram.matmul(&gram)?.mul_scalar(c)?)?;
        x = (&x.mul_scalar(a)? + &poly.matmul(&x)?)?;
    }
    Ok(turn(&x)?)
}
