//! Elementwise loops. Each function is compiled per operation and dtype into vector code; bf16 is computed
//! in f32. Operands with broadcast or strided inner rows are walked row by row.

use half::bf16;

use crate::cpu::copy::{contiguous, round_bf16};
use crate::cpu::parallel::{GRAIN, for_pieces};
use crate::cpu::simd::vectorize;
use crate::cpu::{BinaryOp, CompareOp, UnaryOp};
use crate::dtype::{Element, Real};
use crate::error::{Result, dtype_error};
use crate::layout::{Layout, Walk};
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored, each_dtype};

/// A dtype that elementwise kernels take: computed in `Self::Math`.
pub trait Scalar: Stored {
    /// The type the arithmetic is done in.
    type Math: Real + Stored;
    /// To the computing type.
    fn up(self) -> Self::Math;
    /// Back, rounded to nearest.
    fn down(v: Self::Math) -> Self;
}
macro_rules! scalar {
    ($t:ty, $m:ty, $up:expr, $down:expr) => {
        impl Scalar for $t {
            type Math = $m;
            #[inline(always)]
            fn up(self) -> $m {
                $up(self)
            }
            #[inline(always)]
            fn down(v: $m) -> $t {
                $down(v)
            }
        }
    };
}
scalar!(f64, f64, |v| v, |v| v);
scalar!(f32, f32, |v| v, |v| v);
scalar!(bf16, f32, bf16::to_f32, round_bf16);

/// A float buffer, its dtype known at compile time in the block.
macro_rules! each_float {
    ($op:expr, $storage:expr, $x:ident => $body:expr) => {
        match $storage {
            $crate::storage::CpuStorage::F64($x) => $body,
            $crate::storage::CpuStorage::F32($x) => $body,
            $crate::storage::CpuStorage::BF16($x) => $body,
            other => $crate::error::dtype_error($op, other.dtype(), "a float dtype"),
        }
    };
}
pub(crate) use each_float;

/// The elements of a view, row-major: borrowed if they already lie so.
fn packed<'a, T: Stored>(
    x: &'a CpuStorage,
    l: &Layout,
    keep: &'a mut Option<CpuStorage>,
) -> Result<&'a [T]> {
    if l.is_contiguous() {
        return Ok(&x.slice::<T>("elementwise")?[l.offset..l.offset + l.count()]);
    }
    keep.insert(contiguous(x, l)).slice::<T>("elementwise")
}

fn map<T: Scalar>(x: &[T], f: impl Fn(T::Math) -> T::Math + Copy + Send + Sync) -> CpuStorage {
    let mut y = Buffer::<T>::unwritten(x.len());
    for_pieces(&mut y, GRAIN, |at, out| {
        let x = &x[at..at + out.len()];
        vectorize(
            #[inline(always)]
            || {
                out.iter_mut()
                    .zip(x)
                    .for_each(|(o, &v)| *o = T::down(f(v.up())))
            },
        );
    });
    T::wrap(y)
}

/// x * scale + shift.
pub fn affine(x: &CpuStorage, lx: &Layout, scale: f64, shift: f64) -> Result<CpuStorage> {
    let mut keep = None;
    if let CpuStorage::I64(_) = x {
        let data = packed::<i64>(x, lx, &mut keep)?;
        let (scale, shift) = (scale as i64, shift as i64);
        let mut y = Buffer::unwritten(data.len());
        y.iter_mut()
            .zip(data)
            .for_each(|(o, &v)| *o = v.wrapping_mul(scale).wrapping_add(shift));
        return Ok(CpuStorage::I64(y));
    }
    fn run<T: Scalar>(
        _: &[T],
        x: &CpuStorage,
        l: &Layout,
        scale: f64,
        shift: f64,
    ) -> Result<CpuStorage> {
        let mut keep = None;
        let (a, b) = (T::Math::from_f64(scale), T::Math::from_f64(shift));
        Ok(map::<T>(packed(x, l, &mut keep)?, move |v| v * a + b))
    }
    each_float!("affine", x, t => run(t, x, lx, scale, shift))
}

/// An elementwise function of a float tensor.
pub fn unary(op: UnaryOp, x: &CpuStorage, lx: &Layout) -> Result<CpuStorage> {
    fn run<T: Scalar>(_: &[T], op: UnaryOp, x: &CpuStorage, l: &Layout) -> Result<CpuStorage> {
        let mut keep = None;
        let x = packed::<T>(x, l, &mut keep)?;
        let one = T::Math::ONE;
        let zero = T::Math::ZERO;
        // The long bodies are inlined by force: left to itself the compiler calls them, at the baseline
        // instruction set (75 times slower for softplus). Functions without vector code go through f64.
        let wide = |f: fn(f64) -> f64| map::<T>(x, move |v| T::Math::from_f64(f(v.to_f64())));
        Ok(match op {
            UnaryOp::Abs => map(x, |v| v.abs()),
            UnaryOp::Sign => map(x, move |v| {
                if v > zero {
                    one
                } else if v < zero {
                    -one
                } else {
                    v
                }
            }),
            UnaryOp::Floor => wide(f64::floor),
            UnaryOp::Round => wide(f64::round_ties_even),
            UnaryOp::Exp => map(
                x,
                #[inline(always)]
                |v| v.exp(),
            ),
            UnaryOp::Ln => map(
                x,
                #[inline(always)]
                |v| v.ln(),
            ),
            UnaryOp::Sin => wide(f64::sin),
            UnaryOp::Cos => wide(f64::cos),
            UnaryOp::Sqrt => map(x, |v| v.sqrt()),
            UnaryOp::Rsqrt => map(x, move |v| one / v.sqrt()),
            UnaryOp::Recip => map(x, move |v| one / v),
            UnaryOp::Square => map(x, |v| v * v),
            UnaryOp::Powf(p) => map::<T>(x, move |v| T::Math::from_f64(v.to_f64().powf(p))),
            UnaryOp::Sigmoid => map(
                x,
                #[inline(always)]
                |v| v.sigmoid(),
            ),
            UnaryOp::Tanh => map(
                x,
                #[inline(always)]
                |v| v.tanh(),
            ),
            UnaryOp::Silu => map(
                x,
                #[inline(always)]
                |v| v * v.sigmoid(),
            ),
            UnaryOp::Relu => map(x, move |v| v.max(zero)),
            UnaryOp::Softplus => map(
                x,
                #[inline(always)]
                |v| v.softplus(),
            ),
            UnaryOp::Erf => wide(libm::erf),
            UnaryOp::Clamp(lo, hi) => {
                let (lo, hi) = (T::Math::from_f64(lo), T::Math::from_f64(hi));
                map(x, move |v| {
                    if v < lo {
                        lo
                    } else if v > hi {
                        hi
                    } else {
                        v
                    }
                })
            }
        })
    }
    each_float!("elementwise function", x, t => run(t, op, x, lx))
}

/// Walk two operands of one (broadcast) shape and write `f(a, b)` row-major.
fn zip<T: Element, U: Element>(
    (a, la): (&[T], &Layout),
    (b, lb): (&[T], &Layout),
    f: impl Fn(T, T) -> U + Copy + Send + Sync,
) -> Buffer<U> {
    let mut y = Buffer::<U>::unwritten(la.count());
    if y.is_empty() {
        return y;
    }
    let w = Walk::new([la, lb]);
    if w.rows == 1 {
        let ([pa, pb], [sa, sb]) = (w.row(0), w.strides);
        for_pieces(&mut y, GRAIN, |at, out| {
            vectorize(
                #[inline(always)]
                || zip_row((a, pa + at * sa, sa), (b, pb + at * sb, sb), out, f),
            )
        });
    } else {
        let per_piece = (GRAIN / w.inner).max(1);
        for_pieces(&mut y, per_piece * w.inner, |at, out| {
            vectorize(
                #[inline(always)]
                || {
                    for (i, row) in out.chunks_exact_mut(w.inner).enumerate() {
                        let [pa, pb] = w.row(at / w.inner + i);
                        zip_row((a, pa, w.strides[0]), (b, pb, w.strides[1]), row, f);
                    }
                },
            )
        });
    }
    y
}

#[inline(always)]
fn zip_row<T: Copy, U>(
    (a, pa, sa): (&[T], usize, usize),
    (b, pb, sb): (&[T], usize, usize),
    out: &mut [U],
    f: impl Fn(T, T) -> U,
) {
    let n = out.len();
    match (sa, sb) {
        (1, 1) => {
            let (a, b) = (&a[pa..pa + n], &b[pb..pb + n]);
            for ((o, &x), &y) in out.iter_mut().zip(a).zip(b) {
                *o = f(x, y);
            }
        }
        (1, 0) => {
            let y = b[pb];
            out.iter_mut()
                .zip(&a[pa..pa + n])
                .for_each(|(o, &x)| *o = f(x, y));
        }
        (0, 1) => {
            let x = a[pa];
            out.iter_mut()
                .zip(&b[pb..pb + n])
                .for_each(|(o, &y)| *o = f(x, y));
        }
        _ => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = f(a[pa + i * sa], b[pb + i * sb]);
            }
        }
    }
}

/// `x` if it wins or is NaN, else `y` (which may be NaN): a NaN in either operand comes through.
#[inline(always)]
fn choose<T: PartialOrd>(x: T, y: T, x_wins: bool) -> T {
    let nan = x.partial_cmp(&x).is_none();
    if x_wins || nan { x } else { y }
}

/// An elementwise function of two operands of one shape; integers have add, sub, mul, maximum, minimum.
pub fn binary(
    op: BinaryOp,
    a: &CpuStorage,
    la: &Layout,
    b: &CpuStorage,
    lb: &Layout,
) -> Result<CpuStorage> {
    fn floats<T: Scalar>(
        a: &[T],
        op: BinaryOp,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<CpuStorage> {
        let (a, b) = ((a, la), (b.slice::<T>("binary")?, lb));
        let wide = |f: fn(f64, f64) -> f64| {
            zip(a, b, move |x, y| {
                T::down(T::Math::from_f64(f(x.up().to_f64(), y.up().to_f64())))
            })
        };
        Ok(T::wrap(match op {
            BinaryOp::Add => zip(a, b, |x, y| T::down(x.up() + y.up())),
            BinaryOp::Sub => zip(a, b, |x, y| T::down(x.up() - y.up())),
            BinaryOp::Mul => zip(a, b, |x, y| T::down(x.up() * y.up())),
            BinaryOp::Div => zip(a, b, |x, y| T::down(x.up() / y.up())),
            BinaryOp::Maximum => zip(a, b, |x, y| choose(x, y, x >= y)),
            BinaryOp::Minimum => zip(a, b, |x, y| choose(x, y, x <= y)),
            BinaryOp::Pow => wide(f64::powf),
        }))
    }
    match a {
        CpuStorage::I64(a) => {
            let (a, b) = ((&a[..], la), (b.slice::<i64>("binary")?, lb));
            Ok(CpuStorage::I64(match op {
                BinaryOp::Add => zip(a, b, i64::wrapping_add),
                BinaryOp::Sub => zip(a, b, i64::wrapping_sub),
                BinaryOp::Mul => zip(a, b, i64::wrapping_mul),
                BinaryOp::Maximum => zip(a, b, i64::max),
                BinaryOp::Minimum => zip(a, b, i64::min),
                BinaryOp::Div | BinaryOp::Pow => {
                    return dtype_error("div or pow", crate::DType::I64, "a float dtype");
                }
            }))
        }
        CpuStorage::U8(a) => {
            let (a, b) = ((&a[..], la), (b.slice::<u8>("binary")?, lb));
            Ok(CpuStorage::U8(match op {
                BinaryOp::Mul | BinaryOp::Minimum => zip(a, b, u8::min),
                BinaryOp::Maximum => zip(a, b, u8::max),
                _ => {
                    return dtype_error(
                        "add, sub, div or pow",
                        crate::DType::U8,
                        "a float dtype or i64",
                    );
                }
            }))
        }
        _ => each_float!("arithmetic", a, t => floats(t, op, la, b, lb)),
    }
}

/// a += b, both contiguous; a lies at the start of its storage, which may be longer.
pub fn add_assign(a: &mut CpuStorage, b: &CpuStorage, lb: &Layout) -> Result<()> {
    fn run<T: Scalar>(a: &mut [T], b: &CpuStorage, lb: &Layout) -> Result<()> {
        let mut keep = None;
        let b = packed::<T>(b, lb, &mut keep)?;
        for_pieces(&mut a[..b.len()], GRAIN, |at, a| {
            let b = &b[at..at + a.len()];
            vectorize(
                #[inline(always)]
                || {
                    a.iter_mut()
                        .zip(b)
                        .for_each(|(x, &y)| *x = T::down(x.up() + y.up()))
                },
            );
        });
        Ok(())
    }
    each_float!("add", a, t => run(t, b, lb))
}

/// A comparison as a mask of 0 and 1.
pub fn compare(
    op: CompareOp,
    a: &CpuStorage,
    la: &Layout,
    b: &CpuStorage,
    lb: &Layout,
) -> Result<CpuStorage> {
    fn run<T: Stored>(
        a: &[T],
        op: CompareOp,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<CpuStorage> {
        let (a, b) = ((a, la), (b.slice::<T>("compare")?, lb));
        Ok(CpuStorage::U8(match op {
            CompareOp::Eq => zip(a, b, |x, y| u8::from(x == y)),
            CompareOp::Ne => zip(a, b, |x, y| u8::from(x != y)),
            CompareOp::Lt => zip(a, b, |x, y| u8::from(x < y)),
            CompareOp::Le => zip(a, b, |x, y| u8::from(x <= y)),
        }))
    }
    each_dtype!(a, t => run(t, op, la, b, lb))
}

/// mask != 0 ? a : b, all of one (broadcast) shape.
pub fn select(
    m: &CpuStorage,
    lm: &Layout,
    a: &CpuStorage,
    la: &Layout,
    b: &CpuStorage,
    lb: &Layout,
) -> Result<CpuStorage> {
    fn run<T: Stored>(
        a: &[T],
        la: &Layout,
        (m, lm): (&[u8], &Layout),
        (b, lb): (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let b = b.slice::<T>("where_cond")?;
        let w = Walk::new([lm, la, lb]);
        let mut y = Buffer::<T>::unwritten(lm.count());
        if y.is_empty() {
            return Ok(T::wrap(y));
        }
        let [sm, sa, sb] = w.strides;
        let per_piece = (GRAIN / w.inner).max(1);
        for_pieces(&mut y, per_piece * w.inner, |at, out| {
            for (i, row) in out.chunks_exact_mut(w.inner).enumerate() {
                let [pm, pa, pb] = w.row(at / w.inner + i);
                for (j, o) in row.iter_mut().enumerate() {
                    *o = if m[pm + j * sm] != 0 {
                        a[pa + j * sa]
                    } else {
                        b[pb + j * sb]
                    };
                }
            }
        });
        Ok(T::wrap(y))
    }
    let m = m.slice::<u8>("where_cond")?;
    each_dtype!(a, t => run(t, la, (m, lm), (b, lb)))
}
