//! Comparing results on a GPU with results on the CPU.

use weft_tensor::{DType, Device, Result, Rng, Tensor};

use super::CPU;

/// |got - want| / |want|, infinite if only one of two elements is NaN or infinite, or if the signs of two
/// infinities differ.
pub fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()));
    let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let (mut difference, mut size) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(&want) {
        if w.is_finite() {
            difference += (g - w) * (g - w);
            size += w * w;
        } else if g.is_nan() != w.is_nan() || (!w.is_nan() && g != w) {
            return f64::INFINITY;
        }
    }
    let d = (difference / f64::max(size, 1e-30)).sqrt();
    if d.is_nan() { f64::INFINITY } else { d }
}

/// What rounding may do: a few units in the last place times the depth of the composition. bf16 keeps 8 bits,
/// and the CPU and the GPU round at the same places but not always to the same side.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 5e-6,
        DType::BF16 => 1e-2,
        DType::I64 | DType::U8 => 0.0,
    }
}

pub fn assert_near(what: &str, got: &Tensor, want: &Tensor) {
    let d = distance(got, want);
    let tolerance = tolerance(want.dtype());
    assert!(
        d <= tolerance,
        "{what} {}: {d:e} from the CPU, {tolerance:e} allowed",
        want.dtype()
    );
}

/// An operation at sizes that the table does not reach.
pub fn compare(
    what: &str,
    device: &Device,
    shapes: &[&[usize]],
    dtypes: &[DType],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for &dtype in dtypes {
        let mut rng = Rng::new(7);
        let x: Vec<Tensor> = shapes
            .iter()
            .map(|s| {
                rng.normal(s, 0.0, 1.0, DType::F64, &CPU)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap()
            })
            .collect();
        let moved: Vec<Tensor> = x.iter().map(|t| t.to_device(device).unwrap()).collect();
        assert_near(
            &format!("{what} {shapes:?}"),
            &f(&moved).unwrap(),
            &f(&x).unwrap(),
        );
    }
}

pub const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16];
pub const F32: &[DType] = &[DType::F32];
