//! The gradients of all parameters, in the order of the parameters: summed over micro-batches, measured, clipped.

use rayon::prelude::*;
use weft_mixers::Params;
use weft_tensor::cpu::parallel::GRAIN;
use weft_tensor::cpu::simd::vectorize;
use weft_tensor::{DType, Device, Gradients, Tensor};

use super::device;
use crate::error::{Error, Result};

/// One gradient per parameter; `None` where the loss does not depend on it.
#[derive(Clone, Default)]
pub struct Grads(Vec<Option<Tensor>>);

impl Grads {
    /// Take the gradients of the parameters out of a backward pass.
    pub fn take(params: &Params, from: &mut Gradients) -> Self {
        Self(params.iter().map(|p| from.take(&p.get())).collect())
    }

    /// From tensors in the order of the parameters.
    pub fn from_vec(grads: Vec<Option<Tensor>>) -> Self {
        Self(grads)
    }

    /// In the order of the parameters.
    pub fn as_slice(&self) -> &[Option<Tensor>] {
        &self.0
    }

    /// Add the gradients of another micro-batch, in f32.
    ///
    /// # Errors
    /// When they are of another model.
    pub fn add(&mut self, other: Grads) -> Result<()> {
        other.expect_len(self.0.len())?;
        if let Some(device) = self.gpu() {
            return self.add_on(device, other);
        }
        self.0
            .par_iter_mut()
            .zip(other.0)
            .try_for_each(|(sum, grad)| {
                *sum = match (sum.take(), grad) {
                    (Some(a), Some(b)) => Some(add_into(a, &b)?),
                    (a, b) => a.or(b),
                };
                Ok(())
            })
    }

    /// The GPU that the gradients are on.
    pub(super) fn gpu(&self) -> Option<Device> {
        let device = self.0.iter().flatten().next()?.device();
        (device != Device::Cpu).then_some(device)
    }

    fn add_on(&mut self, device: Device, other: Grads) -> Result<()> {
        let f32 = |t: Tensor| t.into_detached().to_dtype(DType::F32)?.contiguous();
        let mut both = Vec::new();
        for (sum, grad) in self.0.iter_mut().zip(other.0) {
            match (&mut *sum, grad) {
                (Some(a), Some(b)) => {
                    check_shapes(a, &b)?;
                    // Taken out, so that it has no other owner and is not copied.
                    let a = std::mem::replace(a, b.clone());
                    both.push((f32(a)?, f32(b)?, sum));
                }
                (None, Some(b)) => *sum = Some(b),
                _ => {}
            }
        }
        let mut pairs: Vec<_> = both.iter_mut().map(|(a, b, _)| (a, &*b)).collect();
        device::accumulate(device, &mut pairs)?;
        for (a, _, sum) in both {
            *sum = Some(a);
        }
        Ok(())
    }

    pub(super) fn expect_len(&self, parameters: usize) -> Result<()> {
        if self.0.len() == parameters {
            return Ok(());
        }
        Err(Error::Optimizer(format!(
            "{} gradients for {parameters} parameters: they are of another model",
            self.0.len()
        )))
    }

    /// The Euclidean norm of all gradients together. Squares are summed in f64 in pieces of fixed size, so that it
    /// does not depend on the number of threads; it is finite exactly when every gradient is.
    ///
    /// # Errors
    /// When a gradient cannot be converted to f32.
    pub fn norm(&self) -> Result<f64> {
        if let Some(device) = self.gpu() {
            let guard = device::Guard::measure(device, &self.f32()?, None, 1, 0.0)?;
            return Ok(guard.read()?.norm);
        }
        let squares = self.0.par_iter().flatten().map(square_sum);
        let squares: Vec<f64> = squares.collect::<Result<_>>()?;
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Every gradient in f32, row-major.
    pub(super) fn f32(&self) -> Result<Vec<Option<Tensor>>> {
        let f32 = |g: &Tensor| Ok(g.detach().to_dtype(DType::F32)?.contiguous()?);
        self.0
            .iter()
            .map(|g| g.as_ref().map(f32).transpose())
            .collect()
    }

    /// The names of the parameters whose gradient holds NaN or infinity.
    ///
    /// # Errors
    /// When a gradient cannot be converted to f32.
    pub fn not_finite<'a>(&self, params: &'a Params) -> Result<Vec<&'a str>> {
        let mut names = Vec::new();
        for (param, grad) in params.iter().zip(&self.0) {
            if let Some(grad) = grad
                && !square_sum(grad)?.is_finite()
            {
                names.push(param.name());
            }
        }
        Ok(names)
    }
}

/// The factor that brings a gradient of this norm down to `limit`; 1 if it is shorter or `limit` is 0.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit {
        limit / norm
    } else {
        1.0
    }
}

fn check_shapes(a: &Tensor, b: &Tensor) -> Result<()> {
    let (a, b) = (a.shape(), b.shape());
    if a == b {
        return Ok(());
    }
    Err(Error::Optimizer(format!(
        "gradients of shapes {a:?} and {b:?} cannot be added"
    )))
}

fn add_into(sum: Tensor, other: &Tensor) -> Result<Tensor> {
    let mut sum = sum.detach().to_dtype(DType::F32)?;
    let other = other.detach().to_dtype(DType::F32)?.contiguous()?;
    let b = other.slice::<f32>()?;
    check_shapes(&sum, &other)?;
    sum.write(|a: &mut [f32]| {
        a.par_chunks_mut(GRAIN)
            .zip(b.par_chunks(GRAIN))
            .for_each(|(a, b)| vectorize(|| a.iter_mut().zip(b).for_each(|(a, b)| *a += b)));
    })?;
    Ok(sum)
}

fn square_sum(grad: &Tensor) -> Result<f64> {
    let grad = grad.detach().to_device(&Device::Cpu)?;
    let grad = grad.to_dtype(DType::F32)?.contiguous()?;
    let pieces = grad.slice::<f32>()?.par_chunks(GRAIN);
    let sums: Vec<f64> = pieces.map(|g| vectorize(|| piece_square_sum(g))).collect();
    Ok(sums.iter().sum())
}

/// Lanes of their own, so that the sum becomes vector code: f64 addition may not be reordered.
#[inline(always)]
fn piece_square_sum(g: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let (blocks, rest) = g.as_chunks::<16>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    let tail = rest.iter().map(|&x| f64::from(x) * f64::from(x));
    lanes.iter().sum::<f64>() + tail.sum::<f64>()
}
