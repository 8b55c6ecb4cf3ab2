//! Cross-entropy rows: loss = log(sum(e^x)) - x[target]; dx = g (softmax(x) - onehot(target)).

use crate::cpu::elementwise::{Scalar, each_float};
use crate::cpu::parallel::for_rows;
use crate::cpu::simd::vectorize;
use crate::cpu::softmax::max_and_sum;
use crate::dtype::{Element, Real};
use crate::error::{Error, Result};
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored};

/// Losses of x [rows, n] (contiguous from `offset`) at `targets`, and the rows' log-sum-exp. A target of -1
/// has loss 0; any other one outside 0..n is an error. Both stay in the computing type: rounded to bf16 the
/// log-sum-exp would put every probability of the way back off by percents.
pub fn forward(
    x: &CpuStorage,
    offset: usize,
    targets: &[i64],
    n: usize,
) -> Result<[CpuStorage; 2]> {
    if let Some(position) = targets.iter().position(|&t| t < -1 || t >= n as i64) {
        let index = targets[position];
        return Err(Error::Index {
            op: "cross_entropy",
            index,
            position,
            axis: 1,
            size: n,
        });
    }
    fn run<T: Scalar>(x: &[T], targets: &[i64], n: usize) -> Result<[CpuStorage; 2]> {
        let mut both = Buffer::<T::Math>::unwritten(2 * targets.len());
        for_rows(&mut both, 2, 4 * n, |r, out| {
            let row = &x[r * n..][..n];
            let (m, s) = vectorize(
                #[inline(always)]
                || max_and_sum(row),
            );
            out[1] = if s == T::Math::ZERO { m } else { m + s.ln() };
            let target = usize::try_from(targets[r]).ok().map(|t| row[t].up());
            out[0] = target.map_or(T::Math::ZERO, |t| out[1] - t);
        });
        let (mut loss, mut lse) = (
            Buffer::<T::Math>::unwritten(targets.len()),
            Buffer::<T::Math>::unwritten(targets.len()),
        );
        for (r, pair) in both.chunks_exact(2).enumerate() {
            (loss[r], lse[r]) = (pair[0], pair[1]);
        }
        Ok([loss, lse].map(<T::Math as Stored>::wrap))
    }
    each_float!("cross_entropy", x, x => run(&x[offset..][..targets.len() * n], targets, n))
}

/// Gradient of x from the gradients g of the losses.
pub fn backward(
    x: &CpuStorage,
    offset: usize,
    lse: &CpuStorage,
    g: &CpuStorage,
    og: usize,
    targets: &[i64],
    n: usize,
) -> Result<CpuStorage> {
    fn run<T: Scalar>(
        x: &[T],
        lse: &CpuStorage,
        g: &CpuStorage,
        og: usize,
        targets: &[i64],
        n: usize,
    ) -> Result<CpuStorage> {
        let lse = lse.slice::<T::Math>("cross_entropy")?;
        let g = &g.slice::<T::Math>("cross_entropy")?[og..][..targets.len()];
        let mut dx = Buffer::<T>::unwritten(x.len());
        for_rows(&mut dx, n, 4 * n, |r, out| {
            let Ok(target) = usize::try_from(targets[r]) else {
                out.fill(T::down(T::Math::from_f64(0.0)));
                return;
            };
            let (row, lse, g) = (&x[r * n..][..n], lse[r], g[r]);
            vectorize(
                #[inline(always)]
                || {
                    for (o, &v) in out.iter_mut().zip(row) {
                        *o = T::down((v.up() - lse).exp() * g);
                    }
                },
            );
            out[target] = T::down(((row[target].up() - lse).exp() - T::Math::ONE) * g);
        });
        Ok(T::wrap(dx))
    }
    each_float!("cross_entropy", x, x => run(&x[offset..][..targets.len() * n], lse, g, og, targets, n))
}
