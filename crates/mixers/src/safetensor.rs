//! Tensors to and from safetensors views. Dtypes that Weft does not compute in are converted: f16 to f32,
//! other integers to i64, booleans to u8.

use safetensors::tensor::{Dtype, TensorView};
use weft_tensor::{DType, Device, Stored, Tensor, bf16};

use crate::error::Result;

/// The little-endian bytes of a tensor, row-major, and their dtype tag.
pub fn bytes_of(t: &Tensor) -> Result<(Dtype, Vec<u8>)> {
    fn raw<T: Stored>(t: &Tensor) -> Result<Vec<u8>> {
        Ok(bytemuck::cast_slice(&t.to_vec::<T>()?).to_vec())
    }
    Ok(match t.dtype() {
        DType::F64 => (Dtype::F64, raw::<f64>(t)?),
        DType::F32 => (Dtype::F32, raw::<f32>(t)?),
        DType::BF16 => (Dtype::BF16, raw::<bf16>(t)?),
        DType::I64 => (Dtype::I64, raw::<i64>(t)?),
        DType::U8 => (Dtype::U8, raw::<u8>(t)?),
    })
}

/// A tensor from a view; the error says which dtype is not supported.
pub fn tensor_of(view: &TensorView, device: &Device) -> std::result::Result<Tensor, String> {
    let (shape, data) = (view.shape(), view.data());
    fn read<const N: usize, T: Stored>(
        data: &[u8],
        shape: &[usize],
        device: &Device,
        f: impl Fn([u8; N]) -> T,
    ) -> std::result::Result<Tensor, String> {
        let (chunks, rest) = data.as_chunks::<N>();
        if !rest.is_empty() {
            return Err(format!(
                "{} bytes are not a whole number of elements",
                data.len()
            ));
        }
        let v: Vec<T> = chunks.iter().map(|&c| f(c)).collect();
        Tensor::from_vec(v, shape, device).map_err(|e| e.to_string())
    }
    match view.dtype() {
        Dtype::F64 => read(data, shape, device, f64::from_le_bytes),
        Dtype::F32 => read(data, shape, device, f32::from_le_bytes),
        Dtype::BF16 => read(data, shape, device, bf16::from_le_bytes),
        Dtype::F16 => read(data, shape, device, |b| {
            half::f16::from_le_bytes(b).to_f32()
        }),
        Dtype::I64 => read(data, shape, device, i64::from_le_bytes),
        Dtype::I32 => read(data, shape, device, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::I16 => read(data, shape, device, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U32 => read(data, shape, device, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::U16 => read(data, shape, device, |b| i64::from(u16::from_le_bytes(b))),
        Dtype::I8 => read(data, shape, device, |b: [u8; 1]| i64::from(b[0] as i8)),
        Dtype::U8 | Dtype::BOOL => read(data, shape, device, |b: [u8; 1]| b[0]),
        other => Err(format!("dtype {other:?} is not supported")),
    }
}
