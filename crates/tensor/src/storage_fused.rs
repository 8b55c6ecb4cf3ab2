//! The fused primitives of [`Storage`], each sent to its device. Operands are contiguous.

use crate::cpu::fused::short_conv::Dims;
use crate::cpu::fused::{cross_entropy, gated, norm, short_conv};
use crate::error::Result;
use crate::storage::{CpuStorage, Operand, Storage};

/// The host storage of an operand and where it starts.
fn cpu<'a>((s, l): Operand<'a>) -> (&'a CpuStorage, usize) {
    match s {
        Storage::Cpu(s) => (s, l.offset),
    }
}

impl Storage {
    /// RMSNorm of x [rows, d] with weight [d].
    pub fn rms_norm(x: Operand, w: Operand, dims: [usize; 2], eps: f64) -> Result<Storage> {
        let ((x, ox), (w, ow)) = (cpu(x), cpu(w));
        Ok(Storage::Cpu(norm::forward(x, ox, w, ow, dims, eps)?))
    }

    /// Gradients of x and weight.
    pub fn rms_norm_backward(
        x: Operand,
        w: Operand,
        g: Operand,
        dims: [usize; 2],
        eps: f64,
    ) -> Result<[Storage; 2]> {
        Ok(norm::backward(cpu(x), cpu(w), cpu(g), dims, eps)?.map(Storage::Cpu))
    }

    /// silu(a) * b over n elements.
    pub fn silu_mul(a: Operand, b: Operand, n: usize) -> Result<Storage> {
        Ok(Storage::Cpu(gated::forward(cpu(a), cpu(b), n)?))
    }

    /// Gradients of a and b.
    pub fn silu_mul_backward(a: Operand, b: Operand, g: Operand, n: usize) -> Result<[Storage; 2]> {
        Ok(gated::backward(cpu(a), cpu(b), cpu(g), n)?.map(Storage::Cpu))
    }

    /// Losses of logits [rows, n] at targets [rows], and the rows' log-sum-exp.
    pub fn cross_entropy(x: Operand, targets: Operand, n: usize) -> Result<[Storage; 2]> {
        let (rows, (x, ox)) = (targets.1.count(), cpu(x));
        let (t, ot) = cpu(targets);
        let targets = &t.slice::<i64>("cross_entropy")?[ot..ot + rows];
        Ok(cross_entropy::forward(x, ox, targets, n)?.map(Storage::Cpu))
    }

    /// Gradient of the logits.
    pub fn cross_entropy_backward(
        x: Operand,
        lse: &Storage,
        g: Operand,
        targets: Operand,
        n: usize,
    ) -> Result<Storage> {
        let (rows, (x, ox), (g, og)) = (targets.1.count(), cpu(x), cpu(g));
        let (t, ot) = cpu(targets);
        let targets = &t.slice::<i64>("cross_entropy")?[ot..ot + rows];
        let Storage::Cpu(lse) = lse;
        Ok(Storage::Cpu(cross_entropy::backward(
            x, ox, lse, g, og, targets, n,
        )?))
    }

    /// silu of a depthwise convolution along time.
    pub fn conv1d_silu(x: Operand, w: Operand, dims: Dims) -> Result<Storage> {
        Ok(Storage::Cpu(short_conv::forward(cpu(x), cpu(w), dims)?))
    }

    /// Gradients of x and weight.
    pub fn conv1d_silu_backward(
        x: Operand,
        w: Operand,
        g: Operand,
        dims: Dims,
    ) -> Result<[Storage; 2]> {
        Ok(short_conv::backward(cpu(x), cpu(w), cpu(g), dims)?.map(Storage::Cpu))
    }
}
