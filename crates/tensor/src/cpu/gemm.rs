//! Dense matrix products on plain slices, through the `gemm` crate: the one door to it, with strides
//! checked against the slices so that callers stay free of `unsafe`.

use crate::dtype::{DType, Real};

/// A matrix inside a slice: element (i, j) is at `offset + i * rs + j * cs`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    /// Distance between rows.
    pub rs: usize,
    /// Distance between columns.
    pub cs: usize,
}

impl Strides {
    /// Row-major with `cols` elements in a row.
    pub fn rows(cols: usize) -> Strides {
        Strides { rs: cols, cs: 1 }
    }
    /// The transpose of a row-major matrix that has `cols` elements in a (stored) row.
    pub fn transposed(cols: usize) -> Strides {
        Strides { rs: 1, cs: cols }
    }
}

fn reach(rows: usize, cols: usize, s: Strides) -> usize {
    if rows == 0 || cols == 0 {
        0
    } else {
        (rows - 1) * s.rs + (cols - 1) * s.cs + 1
    }
}

/// c = beta * c + alpha * a b, with a [m, k], b [k, n], c [m, n]. `beta` 0 overwrites c without reading it.
/// `parallel` lets the product use all cores; leave it off inside loops that are already parallel.
///
/// # Panics
/// If a slice is shorter than its matrix: an error of the calling kernel, not of the user's input.
#[inline]
pub fn gemm<R: Real>(
    (m, n, k): (usize, usize, usize),
    alpha: R,
    (a, sa): (&[R], Strides),
    (b, sb): (&[R], Strides),
    beta: R,
    (c, sc): (&mut [R], Strides),
    parallel: bool,
) {
    assert!(
        a.len() >= reach(m, k, sa),
        "gemm: a has {} elements, [{m}, {k}] needs more",
        a.len()
    );
    assert!(
        b.len() >= reach(k, n, sb),
        "gemm: b has {} elements, [{k}, {n}] needs more",
        b.len()
    );
    assert!(
        c.len() >= reach(m, n, sc),
        "gemm: c has {} elements, [{m}, {n}] needs more",
        c.len()
    );
    assert!(matches!(R::DTYPE, DType::F32 | DType::F64));
    if m == 0 || n == 0 {
        return;
    }
    let threads = if parallel {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: the three assertions above keep every address inside its slice, c is borrowed mutably and so
    // overlaps neither a nor b, and gemm accepts f32 and f64.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            sc.cs as isize,
            sc.rs as isize,
            beta != R::ZERO,
            a.as_ptr(),
            sa.cs as isize,
            sa.rs as isize,
            b.as_ptr(),
            sb.cs as isize,
            sb.rs as isize,
            beta,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}
