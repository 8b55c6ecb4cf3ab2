//! Reading and adding at indices, which are checked before anything is touched.

use crate::cpu::copy::contiguous;
use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::error::{Error, Result, dtype_error};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored, each_dtype};

/// The indices as a row-major list, each inside `0..size`.
fn checked(
    op: &'static str,
    i: &CpuStorage,
    li: &Layout,
    axis: usize,
    size: usize,
) -> Result<Buffer<i64>> {
    let packed = contiguous(i, li);
    let CpuStorage::I64(list) = packed else {
        return dtype_error(op, packed.dtype(), "i64");
    };
    match list.iter().position(|&v| v < 0 || v >= size as i64) {
        Some(position) => Err(Error::Index {
            op,
            index: list[position],
            position,
            axis,
            size,
        }),
        None => Ok(list),
    }
}

/// Row-major elements of a view, owned.
fn owned<T: Stored>(x: &CpuStorage, lx: &Layout) -> Result<Buffer<T>> {
    Ok(Buffer::from_slice(contiguous(x, lx).slice::<T>("index")?))
}

/// Slices of an axis at 1-d indices.
pub fn index_select(
    x: &CpuStorage,
    lx: &Layout,
    axis: usize,
    i: &CpuStorage,
    li: &Layout,
) -> Result<CpuStorage> {
    fn run<T: Stored>(
        x: &[T],
        outer: usize,
        size: usize,
        inner: usize,
        list: &[i64],
    ) -> Result<CpuStorage> {
        let mut y = Buffer::<T>::unwritten(outer * list.len() * inner);
        for_rows(&mut y, inner, inner, |r, out| {
            let (o, i) = (r / list.len(), list[r % list.len()] as usize);
            out.copy_from_slice(&x[(o * size + i) * inner..][..inner]);
        });
        Ok(T::wrap(y))
    }
    let (outer, size, inner) = around(&lx.shape, axis);
    let list = checked("index_select", i, li, axis, size)?;
    if lx.is_contiguous() {
        return each_dtype!(x, b => run(&b[lx.offset..], outer, size, inner, &list));
    }
    each_dtype!(&contiguous(x, lx), b => run(b, outer, size, inner, &list))
}

fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (
        shape[..axis].iter().product(),
        shape[axis],
        shape[axis + 1..].iter().product(),
    )
}

/// x[.., index, ..] along an axis; index and x agree outside it.
pub fn gather(
    x: &CpuStorage,
    lx: &Layout,
    axis: usize,
    i: &CpuStorage,
    li: &Layout,
) -> Result<CpuStorage> {
    fn run<T: Stored>(
        _: &[T],
        x: &CpuStorage,
        lx: &Layout,
        list: &[i64],
        n: usize,
        axis: usize,
    ) -> Result<CpuStorage> {
        let x = owned::<T>(x, lx)?;
        let (_, size, inner) = around(&lx.shape, axis);
        let mut y = Buffer::<T>::unwritten(list.len());
        for (p, (out, &i)) in y.iter_mut().zip(list).enumerate() {
            let (o, j) = (p / (n * inner), p % inner);
            *out = x[(o * size + i as usize) * inner + j];
        }
        Ok(T::wrap(y))
    }
    let list = checked("gather", i, li, axis, lx.shape[axis])?;
    each_dtype!(x, b => run(b, x, lx, &list, li.shape[axis], axis))
}

/// x[.., index, ..] += src along an axis, in the order of the source's elements.
pub fn scatter_add(
    x: &mut CpuStorage,
    shape: &[usize],
    axis: usize,
    i: &CpuStorage,
    li: &Layout,
    src: &CpuStorage,
    ls: &Layout,
) -> Result<()> {
    let (_, size, inner) = around(shape, axis);
    // Whole slices at one index (embedding gradients) are added row by row.
    let rows = axis == 0
        && li.strides[1..]
            .iter()
            .zip(&li.shape[1..])
            .all(|(&s, &n)| s == 0 || n == 1);
    let narrow = if rows {
        let mut l = li.clone();
        l.shape[1..].fill(1);
        l
    } else {
        li.clone()
    };
    let list = checked("scatter_add", i, &narrow, axis, size)?;
    fn run<T: Scalar>(
        x: &mut [T],
        src: &CpuStorage,
        list: &[i64],
        [size, n, inner]: [usize; 3],
        rows: bool,
    ) -> Result<()> {
        let src = src.slice::<T>("scatter_add")?;
        let mut add = |at: usize, v: T| x[at] = T::down(x[at].up() + v.up());
        if rows {
            for (row, &i) in src.chunks_exact(inner.max(1)).zip(list) {
                row.iter()
                    .enumerate()
                    .for_each(|(j, &v)| add(i as usize * inner + j, v));
            }
        } else {
            for (p, (&v, &i)) in src.iter().zip(list).enumerate() {
                add((p / (n * inner) * size + i as usize) * inner + p % inner, v);
            }
        }
        Ok(())
    }
    let dims = [size, ls.shape[axis], inner];
    if let CpuStorage::I64(x) = x {
        let src = owned::<i64>(src, ls)?;
        for (p, &v) in src.iter().enumerate() {
            let i = list[if rows { p / inner } else { p }] as usize;
            x[(p / (dims[1] * inner) * size + i) * inner + p % inner] += v;
        }
        return Ok(());
    }
    let packed = contiguous(src, ls);
    each_float!("scatter_add", x, x => run(x, &packed, &list, dims, rows))
}
