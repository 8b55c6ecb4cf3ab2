//! Kernels of the fused operations, forward and backward. Sums over rows are made of partial sums of fixed
//! pieces, so results do not depend on the number of cores.

pub mod cross_entropy;
pub mod gated;
pub mod norm;
pub mod short_conv;

use crate::cpu::elementwise::Scalar;
use crate::dtype::Real;
use crate::memory::Buffer;

/// Add up `parts` rows of `width` partial sums.
fn add_parts<T: Scalar>(parts: &[T::Math], width: usize) -> Buffer<T> {
    let mut sum = Buffer::<T::Math>::filled(width, T::Math::ZERO);
    for row in parts.chunks_exact(width.max(1)) {
        sum.iter_mut().zip(row).for_each(|(s, &p)| *s += p);
    }
    let mut out = Buffer::<T>::unwritten(width);
    out.iter_mut()
        .zip(sum.iter())
        .for_each(|(o, &s)| *o = T::down(s));
    out
}
