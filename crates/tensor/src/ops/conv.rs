//! Convolutions, composed of the other operations.

use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

impl Tensor {
    /// Depthwise convolution along time, channels last: x [B, T + k - 1, C], weight [C, k] -> [B, T, C] with
    /// y[t] = sum_j weight[:, j] x[t + j]. Give the k - 1 past inputs in front (zeros at the start) and it is causal.
    pub fn conv1d_depthwise(&self, weight: &Tensor) -> Result<Tensor> {
        let (x, w) = (self.shape(), weight.shape());
        if x.len() != 3 || w.len() != 2 || w[0] != x[2] || w[1] == 0 || x[1] + 1 < w[1] {
            let detail =
                format!("input {x:?}, weight {w:?}: expected [B, T + k - 1, C] and [C, k]");
            return shape_error("conv1d_depthwise", detail);
        }
        let (t, k) = (x[1] + 1 - w[1], w[1]);
        let mut y = self.narrow(1, 0, t)?.mul(&weight.select(1, 0)?)?;
        for j in 1..k {
            y = y.add(&self.narrow(1, j, t)?.mul(&weight.select(1, j)?)?)?;
        }
        Ok(y)
    }

    /// Causal depthwise convolution: x [B, T, C] with k - 1 zeros in front, weight [C, k].
    pub fn conv1d_causal(&self, weight: &Tensor) -> Result<Tensor> {
        let k = weight.dim(-1)?;
        self.pad(1, k.max(1) - 1, 0, 0.0)?.conv1d_depthwise(weight)
    }

    /// Two-dimensional convolution: x [B, C, H, W], weight [O, C, kh, kw], zero padding and stride equal in
    /// both directions -> [B, O, H', W'].
    pub fn conv2d(&self, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
        let (x, w) = (self.shape(), weight.shape());
        let fits = x.len() == 4 && w.len() == 4 && x[1] == w[1] && stride > 0;
        if !fits || x[2] + 2 * padding < w[2] || x[3] + 2 * padding < w[3] || w[2] * w[3] == 0 {
            let detail = format!(
                "input {x:?}, weight {w:?}, stride {stride}, padding {padding}: expected [B, C, H, W] and [O, C, kh, kw]"
            );
            return shape_error("conv2d", detail);
        }
        let (b, c, o) = (x[0], x[1], w[0]);
        let (h, v) = (
            (x[2] + 2 * padding - w[2]) / stride + 1,
            (x[3] + 2 * padding - w[3]) / stride + 1,
        );
        let padded = self
            .pad(2, padding, padding, 0.0)?
            .pad(3, padding, padding, 0.0)?;
        // One matrix product per tap: [O, C] x [B, C, H' W'].
        let mut y: Option<Tensor> = None;
        for i in 0..w[2] {
            for j in 0..w[3] {
                let tap = padded
                    .slice_axis(2, i, h, stride)?
                    .slice_axis(3, j, v, stride)?
                    .reshape(&[b, c, h * v])?;
                let part = weight.select(3, j)?.select(2, i)?.matmul(&tap)?;
                y = Some(match y {
                    Some(sum) => sum.add(&part)?,
                    None => part,
                });
            }
        }
        match y {
            Some(y) => y.reshape(&[b, o, h, v]),
            None => shape_error("conv2d", "the kernel has no taps"),
        }
    }
}
