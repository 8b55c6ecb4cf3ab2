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
use crate::error::Result;
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
    let [rows, cols] = grad.dims()?;
    let lr = rule.muon_lr * step.rate;
    let rate = (lr * (rows as f64 / cols as f64).max(1.0).sqrt()) as f32;
    let shrink = shrink(param, rule.adamw.weight_decay, lr);
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

/// U V^T, about, of a matrix U S V^T [rows, cols]: five Newton-Schulz steps bring every singular value that is not
/// tiny beside the norm to between 0.68 and 1.14. A zero matrix stays zero.
///
/// # Errors
/// When the tensor is not a float matrix.
pub fn orthogonalize(matrix: &Tensor) -> Result<Tensor> {
    let [rows, cols] = matrix.dims()?;
    let turn = |x: &Tensor| {
        if rows > cols {
            x.transpose(0, 1)
        } else {
            Ok(x.clone())
        }
    };
    let norm = matrix.square()?.sum_all()?.sqrt()?.item_f64()?;
    let [a, b, c] = QUINTIC;
    // Wide, so that the Gram matrix is the smaller of the two.
    let mut x = turn(&matrix.mul_scalar(1.0 / (norm + 1e-7))?)?;
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.transpose(0, 1)?)?;
        let poly = (&gram.mul_scalar(b)? + &gram.matmul(&gram)?.mul_scalar(c)?)?;
        x = (&x.mul_scalar(a)? + &poly.matmul(&x)?)?;
    }
    Ok(turn(&x)?)
}
