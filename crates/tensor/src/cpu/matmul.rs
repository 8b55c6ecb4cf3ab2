//! Batched matrix products over strided operands. bf16 operands are widened to f32 and the result rounded
//! once: f32 accumulation, as on the GPU.

use half::bf16;
use rayon::prelude::*;

use crate::cpu::copy::{cast, round_bf16};
use crate::cpu::gemm::{Strides, gemm};
use crate::cpu::parallel::{GRAIN, for_pieces};
use crate::cpu::simd::vectorize;
use crate::dtype::{DType, Real};
use crate::error::{Result, dtype_error};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored};

/// Multiply-adds below which a product stays on one core.
const PARALLEL: usize = 64 * 64 * 64;

/// [batch.., m, k] x [batch.., k, n], all batch axes already broadcast.
pub fn matmul(a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<CpuStorage> {
    match (a, b) {
        (CpuStorage::F64(a), CpuStorage::F64(b)) => Ok(CpuStorage::F64(product(a, la, b, lb))),
        (CpuStorage::F32(a), CpuStorage::F32(b)) => Ok(CpuStorage::F32(product(a, la, b, lb))),
        (CpuStorage::BF16(_), CpuStorage::BF16(_)) => {
            let (wa, wb) = (cast(a, la, DType::F32), cast(b, lb, DType::F32));
            let (la, lb) = (Layout::contiguous(&la.shape), Layout::contiguous(&lb.shape));
            let y = product(
                wa.slice::<f32>("matmul")?,
                &la,
                wb.slice::<f32>("matmul")?,
                &lb,
            );
            let mut out = Buffer::<bf16>::unwritten(y.len());
            for_pieces(&mut out, GRAIN, |at, out| {
                let y = &y[at..at + out.len()];
                vectorize(
                    #[inline(always)]
                    || out.iter_mut().zip(y).for_each(|(o, &v)| *o = round_bf16(v)),
                );
            });
            Ok(CpuStorage::BF16(out))
        }
        _ => dtype_error("matmul", a.dtype(), "two operands of one float dtype"),
    }
}

fn product<R: Real + Stored>(a: &[R], la: &Layout, b: &[R], lb: &Layout) -> Buffer<R> {
    let rank = la.shape.len();
    let (m, k, n) = (la.shape[rank - 2], la.shape[rank - 1], lb.shape[rank - 1]);
    let batch_shape = &la.shape[..rank - 2];
    let batch: usize = batch_shape.iter().product();
    let mut y = Buffer::<R>::unwritten(batch * m * n);
    if y.is_empty() {
        return y;
    }
    let strides = |l: &Layout| Strides {
        rs: l.strides[rank - 2],
        cs: l.strides[rank - 1],
    };
    let start = |l: &Layout, mut i: usize| {
        let mut at = l.offset;
        for (&size, &stride) in batch_shape.iter().zip(&l.strides[..rank - 2]).rev() {
            at += (i % size) * stride;
            i /= size;
        }
        at
    };
    let one = |i: usize, y: &mut [R], parallel: bool| {
        let (a, b) = (
            (&a[start(la, i)..], strides(la)),
            (&b[start(lb, i)..], strides(lb)),
        );
        gemm(
            (m, n, k),
            R::ONE,
            a,
            b,
            R::ZERO,
            (y, Strides::rows(n)),
            parallel,
        );
    };
    let work = m * n * k;
    if batch >= rayon::current_num_threads() && batch * work > PARALLEL {
        y.par_chunks_exact_mut(m * n)
            .enumerate()
            .for_each(|(i, y)| one(i, y, false));
    } else {
        y.chunks_exact_mut(m * n)
            .enumerate()
            .for_each(|(i, y)| one(i, y, work > PARALLEL));
    }
    y
}
