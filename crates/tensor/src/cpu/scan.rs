//! Running sums and maxima along the middle axis of [outer, n, inner].

use crate::cpu::ScanOp;
use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored, each_dtype};

/// The running reduction, and for the maximum its position.
pub fn scan(
    op: ScanOp,
    x: &CpuStorage,
    offset: usize,
    dims: [usize; 3],
) -> Result<(CpuStorage, Option<CpuStorage>)> {
    let count = dims.iter().product::<usize>();
    match (op, x) {
        (ScanOp::Sum, CpuStorage::I64(b)) => {
            let y = running(
                &b[offset..offset + count],
                dims,
                |a: i64, b| a + b,
                |v| v,
                |v| v,
            );
            Ok((CpuStorage::I64(y), None))
        }
        (ScanOp::Sum, _) => {
            each_float!("cumsum", x, b => Ok((sums(&b[offset..offset + count], dims), None)))
        }
        (ScanOp::Max, _) => each_dtype!(x, b => Ok(maxima(&b[offset..offset + count], dims))),
    }
}

fn sums<T: Scalar>(x: &[T], dims: [usize; 3]) -> CpuStorage {
    // The running value stays in the computing type: bf16 sums do not lose their small addends.
    T::wrap(running(x, dims, |a: T::Math, b| a + b, T::up, T::down))
}

fn running<T: Stored, A: Copy>(
    x: &[T],
    [_, n, inner]: [usize; 3],
    add: impl Fn(A, A) -> A + Sync + Send,
    up: impl Fn(T) -> A + Sync + Send,
    down: impl Fn(A) -> T + Sync + Send,
) -> Buffer<T> {
    let mut y = Buffer::<T>::unwritten(x.len());
    for_rows(&mut y, n * inner, n * inner, |o, out| {
        let x = &x[o * n * inner..][..n * inner];
        let mut acc: Vec<A> = x[..inner].iter().map(|&v| up(v)).collect();
        out[..inner].copy_from_slice(&x[..inner]);
        for i in 1..n {
            for j in 0..inner {
                acc[j] = add(acc[j], up(x[i * inner + j]));
                out[i * inner + j] = down(acc[j]);
            }
        }
    });
    y
}

fn maxima<T: Stored>(x: &[T], [outer, n, inner]: [usize; 3]) -> (CpuStorage, Option<CpuStorage>) {
    let (mut y, mut at) = (
        Buffer::<T>::unwritten(x.len()),
        Buffer::<i64>::unwritten(x.len()),
    );
    for o in 0..outer {
        for i in 0..n {
            for j in 0..inner {
                let p = (o * n + i) * inner + j;
                let keep = i > 0 && x[p] <= y[p - inner];
                (y[p], at[p]) = if keep {
                    (y[p - inner], at[p - inner])
                } else {
                    (x[p], i as i64)
                };
            }
        }
    }
    (T::wrap(y), Some(CpuStorage::I64(at)))
}
