//! Element types. `DType` is the run-time tag, `Element` the compile-time side of it, `Real` the two
//! types that kernels compute in (f32 and f64). bf16 is a storage type: kernels read it as f32.

use std::fmt;

use half::bf16;

use crate::cpu::copy::round_bf16;
use crate::cpu::math;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE double precision; what gradients are checked in.
    F64,
    /// IEEE single precision; states, gates and master weights.
    F32,
    /// Brain float: 8 bits of exponent, 8 of precision; activations and weights.
    BF16,
    /// Signed 64-bit integers: token ids, indices, positions.
    I64,
    /// Bytes: masks (0 or 1), the result of comparisons.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 => 4,
            DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether gradients can flow through tensors of this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::BF16)
    }

    /// The lower-case name used in recipes, configs and messages.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type that can be an element of a tensor.
pub trait Element:
    Copy + Send + Sync + Default + PartialEq + PartialOrd + fmt::Debug + bytemuck::Pod + 'static
{
    /// The run-time tag.
    const DTYPE: DType;
    /// Conversion through f64 (exact for all but large i64).
    fn to_f64(self) -> f64;
    /// Conversion from f64, rounding to nearest.
    fn from_f64(v: f64) -> Self;
}

macro_rules! element {
    ($t:ty, $d:ident, $to:expr, $from:expr) => {
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            #[inline(always)]
            fn from_f64(v: f64) -> Self {
                $from(v)
            }
        }
    };
}
element!(f64, F64, |v| v, |v| v);
element!(f32, F32, |v| v as f64, |v| v as f32);
element!(bf16, BF16, |v: bf16| v.to_f64(), bf16_of_f64);
element!(i64, I64, |v| v as f64, |v| v as i64);
element!(u8, U8, |v| v as f64, |v| v as u8);

/// f64 to bf16 in one rounding, to nearest with ties to even. Going through the nearest f32 would round twice;
/// an f32 rounded to odd keeps what decides the second rounding (Boldo & Melquiond 2008).
fn bf16_of_f64(v: f64) -> bf16 {
    let near = v as f32;
    if f64::from(near) == v || v.is_nan() {
        return round_bf16(near);
    }
    let beyond = f64::from(near).abs() > v.abs();
    let toward_zero = near.to_bits() - u32::from(beyond);
    round_bf16(f32::from_bits(toward_zero | 1))
}

/// f32 or f64: the types that kernels compute in. The transcendental functions are branch-free for f32,
/// so that loops over them vectorise (see [`crate::cpu::math`]).
pub trait Real:
    Element
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// `self * a + b` in one rounding; only fast where the CPU has FMA (inside [`crate::cpu::simd`]).
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// e^x.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger of two values (the other one if one is NaN).
    fn max(self, o: Self) -> Self;
    /// The smaller of two values (the other one if one is NaN).
    fn min(self, o: Self) -> Self;
    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
    /// ln(1 + e^x), linear above 20 (where the difference is below f32 resolution... and below 2e-9 in f64:
    /// the threshold is used for f32 only).
    fn softplus(self) -> Self;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        math::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        math::ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        math::tanh(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn max(self, o: f32) -> f32 {
        f32::max(self, o)
    }
    #[inline(always)]
    fn min(self, o: f32) -> f32 {
        f32::min(self, o)
    }
    #[inline(always)]
    fn softplus(self) -> f32 {
        f32::max(self, 0.0) + math::ln_1p(math::exp(-f32::abs(self)))
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    #[inline(always)]
    fn max(self, o: f64) -> f64 {
        f64::max(self, o)
    }
    #[inline(always)]
    fn min(self, o: f64) -> f64 {
        f64::min(self, o)
    }
    #[inline(always)]
    fn softplus(self) -> f64 {
        f64::max(self, 0.0) + (-f64::abs(self)).exp().ln_1p()
    }
}
