//! AdamW, one fused pass over a parameter:
//!
//! ```text
//! m = b1 m + (1 - b1) g         v = b2 v + (1 - b2) g^2
//! p = p (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//! ```

use rayon::prelude::*;
use weft_mixers::Param;
use weft_tensor::Tensor;
use weft_tensor::cpu::parallel::GRAIN;
use weft_tensor::cpu::simd::vectorize;

use super::{Step, shrink};
use crate::error::Result;
use crate::recipe::AdamW;

/// The numbers of one step in the precision of the pass.
#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    beta1: f32,
    beta2: f32,
    /// 1 - beta, rounded from f64: in f32 the difference would lose digits.
    rest1: f32,
    rest2: f32,
    shrink: f32,
    /// lr / (1 - b1^t)
    rate: f32,
    /// 1 / sqrt(1 - b2^t)
    correction: f32,
    eps: f32,
}

impl Factors {
    fn new(rule: &AdamW, step: Step, shrink: f32) -> Factors {
        let [beta1, beta2] = rule.betas;
        let unbias = |beta: f64| 1.0 - beta.powf(step.number as f64);
        Factors {
            scale: step.scale as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            shrink,
            rate: (rule.lr * step.rate / unbias(beta1)) as f32,
            correction: (1.0 / unbias(beta2).sqrt()) as f32,
            eps: rule.eps as f32,
        }
    }
}

/// The factors that all parameters share, in the order of the GPU's kernel.
pub(super) fn shared_factors(rule: &AdamW, step: Step) -> [f32; 7] {
    let f = Factors::new(rule, step, 1.0);
    [
        f.beta1,
        f.beta2,
        f.rest1,
        f.rest2,
        f.rate,
        f.correction,
        f.eps,
    ]
}

pub(super) fn step(
    rule: &AdamW,
    param: &Param,
    grad: &Tensor,
    mean: &mut Tensor,
    square: &mut Tensor,
    step: Step,
) -> Result<()> {
    let shrink = shrink(param, rule.weight_decay, rule.lr * step.rate);
    let factors = Factors::new(rule, step, shrink);
    let grad = grad.slice::<f32>()?;
    param.update(|p: &mut [f32]| {
        mean.write(|m: &mut [f32]| square.write(|v: &mut [f32]| pass(p, grad, m, v, factors)))
    })???;
    Ok(())
}

fn pass(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
    p.par_chunks_mut(GRAIN)
        .zip(g.par_chunks(GRAIN))
        .zip(m.par_chunks_mut(GRAIN).zip(v.par_chunks_mut(GRAIN)))
        .for_each(|((p, g), (m, v))| vectorize(|| piece(p, g, m, v, f)));
}

#[inline(always)]
fn piece(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.scale;
        *m = f.beta1 * *m + f.rest1 * g;
        *v = f.beta2 * *v + f.rest2 * (g * g);
        *p = f.shrink * *p - f.rate * *m / (v.sqrt() * f.correction + f.eps);
    }
}
