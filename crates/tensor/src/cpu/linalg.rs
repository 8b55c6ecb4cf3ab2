//! Triangular solves by substitution, one system per core.

use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::cpu::simd::vectorize;
use crate::dtype::Real;
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::CpuStorage;

/// L y = b for [batch, n, n] and [batch, n, m], both contiguous from their offsets.
pub fn tri_solve(
    l: &CpuStorage,
    offset: usize,
    b: &CpuStorage,
    offset_b: usize,
    dims: [usize; 3],
    upper: bool,
    unit: bool,
) -> Result<CpuStorage> {
    let [batch, n, m] = dims;
    fn run<T: Scalar>(
        l: &[T],
        b: &[T],
        [n, m]: [usize; 2],
        upper: bool,
        unit: bool,
    ) -> Result<CpuStorage> {
        let mut y = Buffer::<T>::from_slice(b);
        for_rows(&mut y, n * m, n * n * m, |i, y| {
            let l = &l[i * n * n..][..n * n];
            vectorize(
                #[inline(always)]
                || substitute(l, y, [n, m], upper, unit),
            );
        });
        Ok(T::wrap(y))
    }
    each_float!("tri_solve", l, l => {
        let b = typed(l, b)?;
        run(&l[offset..][..batch * n * n], &b[offset_b..][..batch * n * m], [n, m], upper, unit)
    })
}

fn typed<'a, T: Scalar>(_: &[T], b: &'a CpuStorage) -> Result<&'a [T]> {
    b.slice::<T>("tri_solve")
}

/// Row by row: y_r = (b_r - sum over solved rows s of L_rs y_s) / L_rr.
#[inline(always)]
fn substitute<T: Scalar>(l: &[T], y: &mut [T], [n, m]: [usize; 2], upper: bool, unit: bool) {
    let mut row: Vec<T::Math> = vec![T::Math::ZERO; m];
    for step in 0..n {
        let r = if upper { n - 1 - step } else { step };
        row.iter_mut()
            .zip(&y[r * m..])
            .for_each(|(a, &v)| *a = v.up());
        for s in if upper { r + 1..n } else { 0..r } {
            let c = l[r * n + s].up();
            row.iter_mut()
                .zip(&y[s * m..])
                .for_each(|(a, &v)| *a -= c * v.up());
        }
        let scale = if unit {
            T::Math::ONE
        } else {
            T::Math::ONE / l[r * n + r].up()
        };
        y[r * m..(r + 1) * m]
            .iter_mut()
            .zip(&row)
            .for_each(|(o, &a)| *o = T::down(a * scale));
    }
}
