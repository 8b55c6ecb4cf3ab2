//! silu(a) b elementwise, and back: da = g b silu'(a), db = g silu(a).

use rayon::prelude::*;

use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::{GRAIN, for_pieces};
use crate::cpu::simd::vectorize;
use crate::dtype::Real;
use crate::error::Result;
use crate::memory::Buffer;
use crate::storage::CpuStorage;

fn same<'a, T: Scalar>(_: &[T], s: &'a CpuStorage) -> Result<&'a [T]> {
    s.slice::<T>("silu_mul")
}

/// a and b of n elements, contiguous from their offsets.
pub fn forward(
    (a, oa): (&CpuStorage, usize),
    (b, ob): (&CpuStorage, usize),
    n: usize,
) -> Result<CpuStorage> {
    fn run<T: Scalar>(a: &[T], b: &[T]) -> Result<CpuStorage> {
        let mut y = Buffer::<T>::unwritten(a.len());
        for_pieces(&mut y, GRAIN / 4, |at, out| {
            let (a, b) = (&a[at..][..out.len()], &b[at..][..out.len()]);
            vectorize(
                #[inline(always)]
                || {
                    for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
                        let a = a.up();
                        *o = T::down(a * a.sigmoid() * b.up());
                    }
                },
            );
        });
        Ok(T::wrap(y))
    }
    each_float!("silu_mul", a, a => run(&a[oa..][..n], &same(a, b)?[ob..][..n]))
}

/// Gradients of a and b from g.
pub fn backward(
    (a, oa): (&CpuStorage, usize),
    (b, ob): (&CpuStorage, usize),
    (g, og): (&CpuStorage, usize),
    n: usize,
) -> Result<[CpuStorage; 2]> {
    fn run<T: Scalar>(a: &[T], b: &[T], g: &[T]) -> Result<[CpuStorage; 2]> {
        let (mut da, mut db) = (
            Buffer::<T>::unwritten(a.len()),
            Buffer::<T>::unwritten(a.len()),
        );
        const PIECE: usize = GRAIN / 8;
        let work = da
            .par_chunks_mut(PIECE)
            .zip(db.par_chunks_mut(PIECE))
            .enumerate();
        work.for_each(|(p, (da, db))| {
            let (at, n) = (p * PIECE, da.len());
            let (a, b, g, db) = (&a[at..][..n], &b[at..][..n], &g[at..][..n], &mut db[..n]);
            vectorize(
                #[inline(always)]
                || {
                    for i in 0..n {
                        let (a, g) = (a[i].up(), g[i].up());
                        let s = a.sigmoid();
                        let silu = a * s;
                        da[i] = T::down(g * b[i].up() * (s + silu * (T::Math::ONE - s)));
                        db[i] = T::down(g * silu);
                    }
                },
            );
        });
        Ok([T::wrap(da), T::wrap(db)])
    }
    each_float!("silu_mul", a, a => {
        run(&a[oa..][..n], &same(a, b)?[ob..][..n], &same(a, g)?[og..][..n])
    })
}
