//! Matrix products and triangular solves on the GPU.

use super::blas::{Matrix, Shape};
use super::context::Context;
use super::elementwise::{contiguous, full};
use super::modules::Grid;
use super::source::Variant;
use super::storage::{CudaStorage, View, common, need, need_float};
use super::table;
use crate::dtype::DType;
use crate::error::{Result, dtype_error};
use crate::layout::{Layout, Walk};

/// Launches that a batch with several strides is split into rather than copied.
const MOST_LAUNCHES: usize = 16;
/// Matrices of one launch.
const MOST_BATCH: usize = 65_535;

/// How a matrix of rows x cols with these strides can be given to cuBLASLt, if it can.
fn form(rows: usize, cols: usize, rs: usize, cs: usize) -> Option<(bool, usize)> {
    if (cs == 1 || cols == 1) && (rs >= cols || rows == 1) {
        return Some((false, if rows == 1 { cols } else { rs }));
    }
    if (rs == 1 || rows == 1) && (cs >= rows || cols == 1) {
        return Some((true, if cols == 1 { rows } else { cs }));
    }
    None
}

/// The layout of the batch axes alone.
fn batch_axes(l: &Layout) -> Layout {
    let rank = l.shape.len() - 2;
    Layout {
        shape: l.shape[..rank].to_vec(),
        strides: l.strides[..rank].to_vec(),
        offset: 0,
    }
}

fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// [batch.., m, k] x [batch.., k, n], all batch axes already broadcast, in the operands' dtype or, for bf16 operands,
/// in f32 without a rounding on the way.
pub fn matmul((a, la): View, (b, lb): View, result: DType) -> Result<CudaStorage> {
    const OP: &str = "matmul";
    need_float(OP, a)?;
    need(OP, b, a.dtype)?;
    if result != a.dtype && (a.dtype, result) != (DType::BF16, DType::F32) {
        return dtype_error(OP, a.dtype, "bf16, to be multiplied into f32");
    }
    let c = common(OP, &[a, b])?;
    let rank = la.shape.len();
    let (m, k, n) = (la.shape[rank - 2], la.shape[rank - 1], lb.shape[rank - 1]);
    let batch: usize = la.shape[..rank - 2].iter().product();
    let count = batch * m * n;
    if k == 0 || count == 0 {
        return Ok(full(a.ordinal, result, count, 0.0));
    }
    let formed =
        |l: &Layout, rows, cols| form(rows, cols, l.strides[rank - 2], l.strides[rank - 1]);
    let w = Walk::new([&batch_axes(la), &batch_axes(lb)]);
    let (fa, fb) = (formed(la, m, k), formed(lb, k, n));
    let (Some(fa), Some(fb), true) = (fa, fb, w.rows <= MOST_LAUNCHES) else {
        // A layout that the library cannot read: copy what is in the way and start again.
        let (ca, cb) = (Layout::contiguous(&la.shape), Layout::contiguous(&lb.shape));
        return match (fa.is_some(), fb.is_some()) {
            (true, false) => matmul((a, la), (&contiguous((b, lb))?, &cb), result),
            (false, true) => matmul((&contiguous((a, la))?, &ca), (b, lb), result),
            _ => {
                let (a, b) = (contiguous((a, la))?, contiguous((b, lb))?);
                matmul((&a, &ca), (&b, &cb), result)
            }
        };
    };
    let y = CudaStorage::new(OP, c, result, count)?;
    let size = a.dtype.size();
    let (pa, pb, py) = (a.at(OP, la)?, b.at(OP, lb)?, y.start(OP)?);
    for row in 0..w.rows {
        let [oa, ob] = w.row(row);
        for first in (0..w.inner).step_by(MOST_BATCH) {
            let batch = MOST_BATCH.min(w.inner - first);
            let at = |p: u64, offset: usize, size: usize| p + (offset * size) as u64;
            let addresses = [
                at(pa, oa + first * w.strides[0], size),
                at(pb, ob + first * w.strides[1], size),
                at(py, (row * w.inner + first) * m * n, result.size()),
            ];
            let matrix = |(transposed, ld), stride| Matrix {
                transposed,
                ld,
                batch_stride: if batch == 1 { 0 } else { stride },
            };
            let shape = Shape {
                dtype: a.dtype,
                result,
                adds: false,
                dims: [m, n, k],
                a: matrix(fa, w.strides[0]),
                b: matrix(fb, w.strides[1]),
                batch,
                alignment: addresses.map(alignment),
            };
            c.product(&shape, addresses)?;
        }
    }
    Ok(y)
}

/// A row-major or (`transposed`) column-major matrix without gaps, by address.
#[derive(Clone, Copy)]
pub(super) struct Dense {
    pub(super) address: u64,
    pub(super) transposed: bool,
}

/// One product [m, k] x [k, n] of bf16 matrices into rows of `result`, or with `adds` added to them.
pub(super) fn product_into(
    c: &'static Context,
    [a, b]: [Dense; 2],
    dims: [usize; 3],
    to: u64,
    result: DType,
    adds: bool,
) -> Result<()> {
    let [m, n, k] = dims;
    let matrix = |x: Dense, rows, cols| Matrix {
        transposed: x.transposed,
        ld: if x.transposed { rows } else { cols },
        batch_stride: 0,
    };
    let addresses = [a.address, b.address, to];
    let shape = Shape {
        dtype: DType::BF16,
        result,
        adds,
        dims,
        a: matrix(a, m, k),
        b: matrix(b, k, n),
        batch: 1,
        alignment: addresses.map(alignment),
    };
    c.product(&shape, addresses)
}

/// L y = b for contiguous [batch, n, n] and [batch, n, m].
pub fn tri_solve(
    (l, ll): View,
    (b, lb): View,
    dims: [usize; 3],
    upper: bool,
    unit: bool,
) -> Result<CudaStorage> {
    const OP: &str = "tri_solve";
    need_float(OP, l)?;
    need(OP, b, l.dtype)?;
    let c = common(OP, &[l, b])?;
    let y = CudaStorage::new(OP, c, l.dtype, dims.iter().product())?;
    let (to, from_l, from_b) = (y.start(OP)?, l.at(OP, ll)?, b.at(OP, lb)?);
    let [batch, n, m] = dims.map(|d| d as u64);
    let (upper, unit) = (u32::from(upper), u32::from(unit));
    let grid = Grid::blocks((batch * m).div_ceil(64), 64);
    let v = Variant::new(&table::LINALG, l.dtype);
    c.launch(
        OP,
        v,
        "tri_solve",
        grid,
        &[&to, &from_l, &from_b, &batch, &n, &m, &upper, &unit],
    )?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::form;

    #[test]
    fn matrices_are_read_in_place_where_one_axis_is_dense() {
        assert_eq!(form(3, 4, 4, 1), Some((false, 4)));
        assert_eq!(form(3, 4, 9, 1), Some((false, 9)));
        assert_eq!(form(3, 4, 1, 3), Some((true, 3)));
        assert_eq!(form(1, 4, 0, 1), Some((false, 4)));
        assert_eq!(form(4, 1, 1, 0), Some((false, 1)));
        assert_eq!(form(4, 1, 7, 0), Some((false, 7)));
        assert_eq!(form(3, 4, 0, 1), None);
        assert_eq!(form(3, 4, 8, 2), None);
    }
}
