//! Moving elements: constants, row-major copies of strided views, dtype conversion, concatenation.

use half::bf16;

use crate::cpu::parallel::{GRAIN, for_pieces};
use crate::cpu::simd::vectorize;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::layout::{Layout, Walk};
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored, each_dtype};

/// `count` copies of a value.
pub fn full(dtype: DType, count: usize, value: f64) -> CpuStorage {
    fn make<T: Stored>(count: usize, value: f64) -> CpuStorage {
        T::wrap(Buffer::filled(count, T::from_f64(value)))
    }
    match dtype {
        DType::F64 => make::<f64>(count, value),
        DType::F32 => make::<f32>(count, value),
        DType::BF16 => make::<bf16>(count, value),
        DType::I64 => make::<i64>(count, value),
        DType::U8 => make::<u8>(count, value),
    }
}

/// A row-major copy of a view.
pub fn contiguous(x: &CpuStorage, lx: &Layout) -> CpuStorage {
    each_dtype!(x, b => copy_map(b, lx, |v| v))
}

/// A row-major copy in another dtype.
pub fn cast(x: &CpuStorage, lx: &Layout, dtype: DType) -> CpuStorage {
    match (x, dtype) {
        // The two hot conversions stay in f32, where they vectorise.
        (CpuStorage::BF16(b), DType::F32) => copy_map::<_, f32>(b, lx, bf16::to_f32),
        (CpuStorage::F32(b), DType::BF16) => copy_map::<_, bf16>(b, lx, round_bf16),
        (CpuStorage::I64(b), DType::I64) => copy_map::<_, i64>(b, lx, |v| v),
        (_, DType::F64) => each_dtype!(x, b => copy_map::<_, f64>(b, lx, |v| v.to_f64())),
        (_, DType::F32) => each_dtype!(x, b => copy_map::<_, f32>(b, lx, |v| v.to_f64() as f32)),
        (_, DType::BF16) => {
            each_dtype!(x, b => copy_map::<_, bf16>(b, lx, |v| <bf16 as Element>::from_f64(v.to_f64())))
        }
        (_, DType::I64) => each_dtype!(x, b => copy_map::<_, i64>(b, lx, |v| v.to_f64() as i64)),
        (_, DType::U8) => each_dtype!(x, b => copy_map::<_, u8>(b, lx, |v| v.to_f64() as u8)),
    }
}

/// f32 to bf16, to nearest with ties to even, without branches.
#[inline(always)]
pub fn round_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if v.is_nan() { quiet } else { rounded } as u16)
}

fn copy_map<T: Element, U: Stored>(
    x: &[T],
    lx: &Layout,
    f: impl Fn(T) -> U + Copy + Send + Sync,
) -> CpuStorage {
    let count = lx.count();
    let mut y = Buffer::<U>::unwritten(count);
    if count == 0 {
        return U::wrap(y);
    }
    let w = Walk::new([lx]);
    if w.rows == 1 {
        let (start, stride) = (w.row(0)[0], w.strides[0]);
        for_pieces(&mut y, GRAIN, |at, out| {
            vectorize(
                #[inline(always)]
                || map_row(x, start + at * stride, stride, out, f),
            )
        });
    } else {
        let per_piece = (GRAIN / w.inner).max(1);
        for_pieces(&mut y, per_piece * w.inner, |at, out| {
            vectorize(
                #[inline(always)]
                || {
                    for (i, row) in out.chunks_exact_mut(w.inner).enumerate() {
                        map_row(x, w.row(at / w.inner + i)[0], w.strides[0], row, f);
                    }
                },
            )
        });
    }
    U::wrap(y)
}

#[inline(always)]
fn map_row<T: Copy, U>(x: &[T], start: usize, stride: usize, out: &mut [U], f: impl Fn(T) -> U) {
    let n = out.len();
    match stride {
        0 => out.iter_mut().for_each(|o| *o = f(x[start])),
        1 => out
            .iter_mut()
            .zip(&x[start..start + n])
            .for_each(|(o, &v)| *o = f(v)),
        _ => out
            .iter_mut()
            .zip(x[start..].iter().step_by(stride))
            .for_each(|(o, &v)| *o = f(v)),
    }
}

/// Parts of one dtype, one after another along an axis.
pub fn cat(parts: &[(&CpuStorage, &Layout)], axis: usize) -> Result<CpuStorage> {
    each_dtype!(parts[0].0, first => cat_typed(first, parts, axis))
}

fn cat_typed<T: Stored>(
    _first: &[T],
    parts: &[(&CpuStorage, &Layout)],
    axis: usize,
) -> Result<CpuStorage> {
    let rows: usize = parts[0].1.shape[..axis].iter().product();
    let widths: Vec<usize> = parts
        .iter()
        .map(|(_, l)| l.shape[axis..].iter().product())
        .collect();
    let total: usize = widths.iter().sum();
    let mut y = Buffer::<T>::unwritten(rows * total);
    let mut start = 0;
    for ((x, lx), &width) in parts.iter().zip(&widths) {
        let packed;
        let source = if lx.is_contiguous() {
            &x.slice::<T>("cat")?[lx.offset..]
        } else {
            packed = contiguous(x, lx);
            packed.slice::<T>("cat")?
        };
        for r in 0..rows {
            y[r * total + start..r * total + start + width]
                .copy_from_slice(&source[r * width..(r + 1) * width]);
        }
        start += width;
    }
    Ok(T::wrap(y))
}
