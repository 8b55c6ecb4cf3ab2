//! The rotation of keys and queries by angles that depend on the tokens:
//!
//! ```text
//! theta_t = theta_{t-1} + pi tanh(angle_t) dt_t        modulo 2 pi
//! ```
//!
//! Angles are added up in f64: in f32 a long text would lose them.

use std::f64::consts::PI;

use weft_tensor::{DType, Result, Tensor};

/// theta [B, T, H, S] (f64) of raw angles [B, T, 1 or H, S], dt [B, T, H] and the angle before [B, H, S] (f64).
pub fn accumulate(raw: &Tensor, dt: &Tensor, before: &Tensor) -> Result<Tensor> {
    let rate = raw.to_dtype(DType::F64)?.tanh()?.mul_scalar(PI)?;
    let steps = rate.mul(&dt.to_dtype(DType::F64)?.unsqueeze(-1)?)?;
    let theta = steps.cumsum(1)?.add(&before.unsqueeze(1)?)?;
    let turns = theta.detach().mul_scalar(0.5 / PI)?.floor()?;
    theta.sub(&turns.mul_scalar(2.0 * PI)?)
}

/// x [B, T, R, H, N] with its pairs (2i, 2i + 1), i < S, turned by theta [B, T, H, S].
pub fn turn(x: &Tensor, theta: &Tensor) -> Result<Tensor> {
    let ([b, t, r, h, n], s) = (x.dims()?, theta.dim(-1)?);
    let theta = theta.unsqueeze(2)?;
    let (cos, sin) = (
        theta.cos()?.to_dtype(x.dtype())?,
        theta.sin()?.to_dtype(x.dtype())?,
    );
    let pairs = x.narrow(-1, 0, 2 * s)?.reshape(&[b, t, r, h, s, 2])?;
    let (p, q) = (pairs.select(-1, 0)?, pairs.select(-1, 1)?);
    let first = p.mul(&cos)?.sub(&q.mul(&sin)?)?;
    let second = p.mul(&sin)?.add(&q.mul(&cos)?)?;
    let turned = Tensor::stack(&[&first, &second], -1)?.reshape(&[b, t, r, h, 2 * s])?;
    Tensor::cat(&[&turned, &x.narrow(-1, 2 * s, n - 2 * s)?], -1)
}
