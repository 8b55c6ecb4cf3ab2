//! Writing new tokens into a cache [B, slots, heads, width], in place, on any device.

use weft_tensor::cuda::{Grid, Launch, Source, Type, Variant};
use weft_tensor::{DType, Device, Result, Stored, Tensor, bf16};

/// The kernel, one variant for each size of element.
pub static KERNELS: Source = Source {
    name: "cache_rows",
    text: include_str!("cache_rows.cu"),
    variants: |s| {
        [Type::U16, Type::U32, Type::U64]
            .map(|t| Variant::new(s, t))
            .to_vec()
    },
};

/// Put new [B, T, heads, width] into the slots `starts[b] .. starts[b] + T` of each row, which must exist.
pub fn write_rows(cache: &mut Tensor, starts: &[usize], new: &Tensor) -> Result<()> {
    let new = new.contiguous()?;
    match (cache.device(), cache.dtype()) {
        (Device::Cpu, DType::F64) => on_host::<f64>(cache, starts, &new),
        (Device::Cpu, DType::BF16) => on_host::<bf16>(cache, starts, &new),
        (Device::Cpu, _) => on_host::<f32>(cache, starts, &new),
        _ => on_gpu(cache, starts, &new),
    }
}

fn on_host<T: Stored>(cache: &mut Tensor, starts: &[usize], new: &Tensor) -> Result<()> {
    let (slots, [_, t, h, d]) = (cache.dim(1)?, new.dims()?);
    let row = h * d;
    let new = new.slice::<T>()?;
    cache.write::<T, _>(|cache| {
        for (b, &start) in starts.iter().enumerate() {
            let at = (b * slots + start) * row;
            cache[at..at + t * row].copy_from_slice(&new[b * t * row..(b + 1) * t * row]);
        }
    })
}

fn on_gpu(cache: &mut Tensor, starts: &[usize], new: &Tensor) -> Result<()> {
    let (slots, [b, t, h, d]) = (cache.dim(1)?, new.dims()?);
    let (dtype, device) = (cache.dtype(), cache.device());
    let word = match dtype.size() {
        2 => Type::U16,
        4 => Type::U32,
        _ => Type::U64,
    };
    let same = starts.windows(2).all(|w| w[0] == w[1]);
    let list: Vec<i64> = starts.iter().map(|&s| s as i64).collect();
    let list = match same {
        true => None,
        false => Some(Tensor::from_vec(list, &[b], &device)?),
    };
    let mut launch = Launch::new("cache_rows", Variant::new(&KERNELS, word), device)?;
    launch.in_place(cache, dtype)?;
    launch.input(new, dtype)?;
    match &list {
        Some(list) => launch.input(list, DType::I64)?,
        None => launch.u64(0),
    }
    launch.u64(starts.first().copied().unwrap_or(0) as u64);
    for n in [b, t, slots, h * d] {
        launch.u64(n as u64);
    }
    // SAFETY: the parameters of `write_rows`; it writes nothing behind the last slot.
    unsafe { launch.run("write_rows", Grid::threads(new.count() as u64)) }
}
