//! Stable argsort of rows. NaN compares as larger than everything ascending and is kept last descending too.

use std::cmp::Ordering;

use crate::cpu::parallel::for_rows;
use crate::dtype::Element;
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::{CpuStorage, each_dtype};

/// Positions that sort each row of n.
pub fn argsort(
    x: &CpuStorage,
    offset: usize,
    rows: usize,
    n: usize,
    descending: bool,
) -> Result<CpuStorage> {
    each_dtype!(x, b => Ok(order(&b[offset..offset + rows * n], n, descending)))
}

fn order<T: Element>(x: &[T], n: usize, descending: bool) -> CpuStorage {
    let mut y = Buffer::<i64>::unwritten(x.len());
    for_rows(&mut y, n, 16 * n, |r, out| {
        let row = &x[r * n..(r + 1) * n];
        out.iter_mut().enumerate().for_each(|(i, o)| *o = i as i64);
        out.sort_by(|&i, &j| compare(row[i as usize], row[j as usize], descending));
    });
    CpuStorage::I64(y)
}

fn compare<T: PartialOrd>(a: T, b: T, descending: bool) -> Ordering {
    let nan = |v: &T| v.partial_cmp(v).is_none();
    match a.partial_cmp(&b) {
        Some(o) if descending => o.reverse(),
        Some(o) => o,
        None => nan(&a).cmp(&nan(&b)),
    }
}
