//! What the device can do at most: a copy of memory larger than any cache, and a large matrix product.

use serde::Serialize;
use weft_tensor::{DType, Device, cuda};

use super::{Clock, input};
use crate::error::Result;

/// Rates, measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Bytes read plus bytes written per second by a large copy.
    pub copy: f64,
    /// Operations per second of a large product of f32 matrices.
    pub product_f32: f64,
    /// The same of bf16 matrices, added in f32.
    pub product_bf16: f64,
}

impl Ceilings {
    /// Measure them.
    ///
    /// # Errors
    /// When the device fails or its memory is short.
    pub fn measure(device: &Device, clock: &Clock) -> Result<Ceilings> {
        Ok(Ceilings {
            copy: copy(device, clock)?,
            product_f32: product(DType::F32, device, clock)?,
            product_bf16: product(DType::BF16, device, clock)?,
        })
    }

    /// That of products of a dtype; products of f64 are held against those of f32.
    pub fn product(&self, dtype: DType) -> f64 {
        match dtype {
            DType::BF16 => self.product_bf16,
            _ => self.product_f32,
        }
    }
}

/// 4 GiB on a GPU that has room for several of them, 256 MiB on a CPU: many times the last cache.
fn copy(device: &Device, clock: &Clock) -> Result<f64> {
    let bytes = match device {
        Device::Cuda(i) => (cuda::context(*i)?.total_memory / 16).min(4 << 30),
        _ => 256 << 20,
    };
    let x = input::activations(1, &[bytes / 4], DType::F32, device)?;
    let ms = clock.ms(|| Ok(x.affine(1.0, 0.0).map(drop)?))?;
    super::fresh_memory(device)?;
    Ok(1e3 * 2.0 * x.bytes() as f64 / ms)
}

fn product(dtype: DType, device: &Device, clock: &Clock) -> Result<f64> {
    let n = match (device, dtype) {
        (Device::Cuda(_), DType::BF16) => 8192,
        (Device::Cuda(_), _) => 4096,
        _ => 1024,
    };
    let a = input::activations(1, &[n, n], dtype, device)?;
    let b = input::activations(2, &[n, n], dtype, device)?;
    let ms = clock.ms(|| Ok(a.matmul(&b).map(drop)?))?;
    Ok(1e3 * 2.0 * (n as f64).powi(3) / ms)
}
