//! The fused primitives of [`Storage`], each sent to its device. Operands are contiguous.

use crate::cpu::fused::short_conv::Dims;
use crate::cpu::fused::{cross_entropy, gated, norm, short_conv};
use crate::cpu::{self, BinaryOp};
use crate::cuda;
use crate::error::{Error, Result};
use crate::storage::{CpuStorage, Operand, Storage, dispatch};

fn only_on_gpu<T, const N: usize>(op: &'static str, _: [&CpuStorage; N]) -> Result<T> {
    let detail = "this fused form runs on a GPU; its operands live on the CPU".into();
    Err(Error::Device { op, detail })
}

impl Storage {
    /// RMSNorm of x [rows, d] with weight [d].
    pub fn rms_norm(
        (x, lx): Operand,
        (w, lw): Operand,
        dims: [usize; 2],
        eps: f64,
    ) -> Result<Storage> {
        dispatch!("rms_norm", (x, w) =>
            Ok(Storage::Cpu(norm::forward(x, lx.offset, w, lw.offset, dims, eps)?)),
            Ok(Storage::Cuda(cuda::norm::forward((x, lx), (w, lw), dims, eps)?)))
    }

    /// Gradients of x and weight.
    pub fn rms_norm_backward(
        (x, lx): Operand,
        (w, lw): Operand,
        (g, lg): Operand,
        dims: [usize; 2],
        eps: f64,
    ) -> Result<[Storage; 2]> {
        dispatch!("rms_norm", (x, w, g) =>
            Ok(norm::backward((x, lx.offset), (w, lw.offset), (g, lg.offset), dims, eps)?.map(Storage::Cpu)),
            Ok(cuda::norm::backward((x, lx), (w, lw), (g, lg), None, dims, eps)?.map(Storage::Cuda)))
    }

    /// x + delta, and its RMSNorm, for [rows, d].
    pub fn add_rms_norm(
        (x, lx): Operand,
        (delta, ld): Operand,
        (w, lw): Operand,
        dims: [usize; 2],
        eps: f64,
    ) -> Result<[Storage; 2]> {
        dispatch!("rms_norm", (x, delta, w) =>
        {
            let sum = cpu::elementwise::binary(BinaryOp::Add, x, lx, delta, ld)?;
            let y = norm::forward(&sum, 0, w, lw.offset, dims, eps)?;
            Ok([sum, y].map(Storage::Cpu))
        },
            Ok(cuda::norm::add_forward((x, lx), (delta, ld), (w, lw), dims, eps)?.map(Storage::Cuda)))
    }

    /// Gradients of the sum and the weight, from that of the norm (g) and the one that reaches the sum besides.
    pub fn add_rms_norm_backward(
        (sum, ls): Operand,
        (w, lw): Operand,
        (g, lg): Operand,
        (other, lo): Operand,
        dims: [usize; 2],
        eps: f64,
    ) -> Result<[Storage; 2]> {
        dispatch!("rms_norm", (sum, w, g, other) =>
        {
            let (sum, g) = ((sum, ls.offset), (g, lg.offset));
            let [mut dx, dw] = norm::backward(sum, (w, lw.offset), g, dims, eps)?;
            cpu::elementwise::add_assign(&mut dx, other, lo)?;
            Ok([dx, dw].map(Storage::Cpu))
        },
            Ok(cuda::norm::backward((sum, ls), (w, lw), (g, lg), Some((other, lo)), dims, eps)?.map(Storage::Cuda)))
    }

    /// silu(a) * b over n elements.
    pub fn silu_mul((a, la): Operand, (b, lb): Operand, n: usize) -> Result<Storage> {
        dispatch!("silu_mul", (a, b) =>
            Ok(Storage::Cpu(gated::forward((a, la.offset), (b, lb.offset), n)?)),
            Ok(Storage::Cuda(cuda::fused::silu_mul((a, la), (b, lb), n)?)))
    }

    /// Gradients of a and b.
    pub fn silu_mul_backward(
        (a, la): Operand,
        (b, lb): Operand,
        (g, lg): Operand,
        n: usize,
    ) -> Result<[Storage; 2]> {
        dispatch!("silu_mul", (a, b, g) =>
            Ok(gated::backward((a, la.offset), (b, lb.offset), (g, lg.offset), n)?.map(Storage::Cpu)),
            Ok(cuda::fused::silu_mul_backward((a, la), (b, lb), (g, lg), n)?.map(Storage::Cuda)))
    }

    /// Losses of logits [rows, n] at targets [rows], and the rows' log-sum-exp, which only
    /// [`Storage::cross_entropy_backward`] may read.
    pub fn cross_entropy((x, lx): Operand, (t, lt): Operand, n: usize) -> Result<[Storage; 2]> {
        let rows = lt.count();
        dispatch!("cross_entropy", (x, t) => {
            let targets = &t.slice::<i64>("cross_entropy")?[lt.offset..lt.offset + rows];
            Ok(cross_entropy::forward(x, lx.offset, targets, n)?.map(Storage::Cpu))
        },
            Ok(cuda::reduce::cross_entropy((x, lx), (t, lt), n)?.map(Storage::Cuda)))
    }

    /// Gradient of the logits.
    pub fn cross_entropy_backward(
        (x, lx): Operand,
        lse: &Storage,
        (g, lg): Operand,
        (t, lt): Operand,
        n: usize,
    ) -> Result<Storage> {
        let rows = lt.count();
        dispatch!("cross_entropy", (x, lse, g, t) => {
            let targets = &t.slice::<i64>("cross_entropy")?[lt.offset..lt.offset + rows];
            Ok(Storage::Cpu(cross_entropy::backward(x, lx.offset, lse, g, lg.offset, targets, n)?))
        },
            Ok(Storage::Cuda(cuda::reduce::cross_entropy_backward((x, lx), lse, (g, lg), (t, lt), n)?)))
    }

    /// Losses of the logits x w^T at targets, for x [rows, d] and w [n, d] in bf16, and the rows' log-sum-exp: on a GPU
    /// only, which makes the logits a piece at a time.
    pub fn linear_cross_entropy(x: Operand, w: Operand, t: Operand) -> Result<[Storage; 2]> {
        let ((x, lx), (w, lw), (t, lt)) = (x, w, t);
        dispatch!("cross_entropy", (x, w, t) =>
            only_on_gpu("cross_entropy", [x, w, t]),
            Ok(cuda::loss::forward((x, lx), (w, lw), (t, lt))?.map(Storage::Cuda)))
    }

    /// Gradients of x (bf16) and w (f32) from those of the losses (f32).
    pub fn linear_cross_entropy_backward(
        (x, lx): Operand,
        (w, lw): Operand,
        (t, lt): Operand,
        lse: &Storage,
        (g, lg): Operand,
    ) -> Result<[Storage; 2]> {
        dispatch!("cross_entropy", (x, w, t, lse, g) =>
            only_on_gpu("cross_entropy", [x, w, t, lse, g]),
            Ok(cuda::loss::backward((x, lx), (w, lw), (t, lt), lse, (g, lg))?.map(Storage::Cuda)))
    }

    /// silu of a depthwise convolution along time.
    pub fn conv1d_silu((x, lx): Operand, (w, lw): Operand, dims: Dims) -> Result<Storage> {
        dispatch!("conv1d_silu", (x, w) =>
            Ok(Storage::Cpu(short_conv::forward((x, lx.offset), (w, lw.offset), dims)?)),
            Ok(Storage::Cuda(cuda::fused::conv1d_silu((x, lx), (w, lw), dims)?)))
    }

    /// Gradients of x and weight.
    pub fn conv1d_silu_backward(
        (x, lx): Operand,
        (w, lw): Operand,
        (g, lg): Operand,
        dims: Dims,
    ) -> Result<[Storage; 2]> {
        dispatch!("conv1d_silu", (x, w, g) =>
            Ok(short_conv::backward((x, lx.offset), (w, lw.offset), (g, lg.offset), dims)?.map(Storage::Cpu)),
            Ok(cuda::fused::conv1d_silu_backward((x, lx), (w, lw), (g, lg), dims)?.map(Storage::Cuda)))
    }
}
