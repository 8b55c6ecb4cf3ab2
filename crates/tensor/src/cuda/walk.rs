//! Plans for kernels over strided operands: merged axes, constants for division by multiplication, and which
//! operands can be read 16 bytes at a time.

use super::context::device_error;
use crate::error::Result;
use crate::layout::{Layout, Walk};

/// Axes that kernels can walk after merging.
const AXES: usize = 8;

/// `Walk` of the kernels' prelude.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Axes<const N: usize> {
    size: [u64; AXES],
    stride: [[u64; AXES]; N],
    inner: [u64; N],
    magic: [u32; AXES],
    shift: [u32; AXES],
    mode: [u32; N],
    axes: u32,
}

const REPEATED: u32 = 0;
const ALIGNED: u32 = 1;
const STRIDED: u32 = 2;

/// m and s with n / d = (high(n m) + n) >> s for all n below 2^31.
fn division(d: u64) -> (u32, u32) {
    let d = d.max(1);
    let shift = d.next_power_of_two().ilog2();
    let magic = ((1u64 << 32) * ((1u64 << shift) - d)) / d + 1;
    (magic as u32, shift)
}

impl<const N: usize> Axes<N> {
    /// Axes from the slowest to the fastest, with the operands' strides.
    pub(super) fn new(op: &'static str, list: &[(usize, [usize; N])]) -> Result<Axes<N>> {
        if list.len() > AXES {
            return device_error(
                op,
                format!(
                    "{} axes that cannot be merged; {AXES} are supported on the GPU: call contiguous() before",
                    list.len()
                ),
            );
        }
        let mut a = Axes {
            size: [1; AXES],
            stride: [[0; AXES]; N],
            inner: [0; N],
            magic: [0; AXES],
            shift: [0; AXES],
            mode: [STRIDED; N],
            axes: list.len().max(1) as u32,
        };
        for (i, &(n, strides)) in list.iter().enumerate() {
            a.size[i] = n as u64;
            // Sizes beyond 2^31 only occur with 64-bit arithmetic, which does not use the constants.
            if n < 1 << 31 {
                (a.magic[i], a.shift[i]) = division(n as u64);
            }
            for k in 0..N {
                a.stride[k][i] = strides[k] as u64;
            }
        }
        Ok(a)
    }
}

/// How an elementwise kernel walks its operands.
pub(super) struct Plan<const N: usize> {
    pub(super) axes: Axes<N>,
    /// Elements per thread and step.
    pub(super) vector: u32,
    /// Steps in all.
    pub(super) groups: u64,
    /// Whether positions need 64 bits.
    pub(super) wide: bool,
}

/// Plan a walk over operands of one shape, given each one's layout, the address of its first element and the
/// size of its elements; `vector` elements at once if the shape allows it.
pub(super) fn plan<const N: usize>(
    op: &'static str,
    operands: [(&Layout, u64, usize); N],
    vector: u32,
) -> Result<Plan<N>> {
    let w = Walk::new(operands.map(|o| o.0));
    let fits = w.outer.is_empty() || w.inner.is_multiple_of(vector as usize);
    let vector = if fits { vector } else { 1 };
    let v = vector as usize;
    let mut list = w.outer.clone();
    let groups = w.inner.div_ceil(v);
    list.push((groups, w.strides.map(|s| s * v)));
    let mut axes = Axes::new(op, &list)?;
    for (k, &(_, address, size)) in operands.iter().enumerate() {
        axes.inner[k] = w.strides[k] as u64;
        let aligned = address.is_multiple_of((v * size) as u64)
            && w.outer.iter().all(|(_, s)| s[k].is_multiple_of(v));
        axes.mode[k] = match w.strides[k] {
            0 => REPEATED,
            1 if aligned => ALIGNED,
            _ => STRIDED,
        };
    }
    let groups = (w.rows * groups) as u64;
    Ok(Plan {
        axes,
        vector,
        groups,
        wide: groups >= 1 << 31,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_multiplication_is_exact() {
        let top = (1u64 << 31) - 1;
        for d in [
            1u64,
            2,
            3,
            5,
            7,
            10,
            31,
            32,
            641,
            1000,
            65_535,
            65_537,
            1 << 30,
            top,
        ] {
            let (magic, shift) = division(d);
            for n in [
                0,
                1,
                d - 1,
                d,
                d + 1,
                2 * d,
                3 * d - 1,
                top / 2,
                top - 1,
                top,
            ] {
                if n <= top {
                    let high = (n * u64::from(magic)) >> 32;
                    assert_eq!((high + n) >> shift, n / d, "{n} / {d}");
                }
            }
        }
    }

    #[test]
    fn plans_see_alignment_and_broadcast() {
        let a = Layout::contiguous(&[6, 8]);
        let row = Layout::contiguous(&[8])
            .broadcast_to("test", &[6, 8])
            .unwrap();
        let p = plan("test", [(&a, 512, 4), (&row, 512, 4)], 4).unwrap();
        assert_eq!((p.vector, p.groups, p.axes.axes), (4, 12, 2));
        assert_eq!(p.axes.mode, [ALIGNED, ALIGNED]);
        let p = plan("test", [(&a, 516, 4)], 4).unwrap();
        assert_eq!((p.vector, p.groups, p.axes.mode), (4, 12, [STRIDED]));
        let odd = Layout::contiguous(&[7]);
        let p = plan("test", [(&odd, 512, 4)], 4).unwrap();
        assert_eq!((p.vector, p.groups), (4, 2));
        let t = Layout {
            shape: vec![5, 3],
            strides: vec![1, 5],
            offset: 0,
        };
        let p = plan("test", [(&t, 512, 4)], 4).unwrap();
        assert_eq!((p.vector, p.groups, p.axes.mode), (1, 15, [STRIDED]));
    }
}
