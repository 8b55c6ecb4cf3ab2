//! Writing new tokens into a cache [B, slots, heads, width], in place, on any device; and the clock of recorded work,
//! which is where its new tokens go.

use weft_tensor::cuda::{Grid, Launch, Source, Type, Variant};
use weft_tensor::{DType, Device, Result, Stored, Tensor, bf16};

/// The kernels, one variant for each size of element.
pub static KERNELS: Source = Source {
    name: "cache_rows",
    text: include_str!("cache_rows.cu"),
    variants: |s| {
        [Type::U16, Type::U32, Type::U64]
            .map(|t| Variant::new(s, t))
            .to_vec()
    },
};

/// The first slot of each sequence's new tokens.
#[derive(Clone, Copy)]
pub enum Starts<'a> {
    /// Known to the host.
    Host(&'a [usize]),
    /// [B] i64 on the GPU.
    Gpu(&'a Tensor),
}

/// Put new [B, T, heads, width] into the slots from `starts[b]` on of each row, which must exist.
pub fn write_rows(cache: &mut Tensor, starts: Starts, new: &Tensor) -> Result<()> {
    let new = new.contiguous()?;
    match (cache.device(), starts, cache.dtype()) {
        (Device::Cpu, Starts::Host(starts), DType::F64) => on_host::<f64>(cache, starts, &new),
        (Device::Cpu, Starts::Host(starts), DType::BF16) => on_host::<bf16>(cache, starts, &new),
        (Device::Cpu, Starts::Host(starts), _) => on_host::<f32>(cache, starts, &new),
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

fn on_gpu(cache: &mut Tensor, starts: Starts, new: &Tensor) -> Result<()> {
    let (slots, [b, t, h, d]) = (cache.dim(1)?, new.dims()?);
    let (dtype, device) = (cache.dtype(), cache.device());
    let word = match dtype.size() {
        2 => Type::U16,
        4 => Type::U32,
        _ => Type::U64,
    };
    let (list, same) = match starts {
        Starts::Gpu(list) => (Some(list.clone()), 0),
        Starts::Host(all) if all.windows(2).all(|w| w[0] == w[1]) => {
            (None, all.first().copied().unwrap_or(0))
        }
        Starts::Host(all) => {
            let all: Vec<i64> = all.iter().map(|&s| s as i64).collect();
            (Some(Tensor::from_vec(all, &[b], &device)?), 0)
        }
    };
    let mut launch = Launch::new("cache_rows", Variant::new(&KERNELS, word), device)?;
    launch.in_place(cache, dtype)?;
    launch.input(new, dtype)?;
    match &list {
        Some(list) => launch.input(list, DType::I64)?,
        None => launch.u64(0),
    }
    launch.u64(same as u64);
    for n in [b, t, slots, h * d] {
        launch.u64(n as u64);
    }
    // SAFETY: the parameters of `write_rows`; it writes nothing behind the last slot.
    unsafe { launch.run("write_rows", Grid::threads(new.count() as u64)) }
}

/// For a ring of `window` slots behind `sinks` fixed ones that takes the token at the clock [B]: its slot [B], and the
/// positions of all slots afterwards [B, sinks + window], -1 where there is none.
pub fn ring(clock: &Tensor, window: usize, sinks: usize) -> Result<[Tensor; 2]> {
    let (b, slots) = (clock.count(), window + sinks);
    let variant = Variant::new(&KERNELS, Type::U16);
    let mut launch = Launch::new("cache_rows", variant, clock.device())?;
    let slot = launch.output(&[b], DType::I64)?;
    let positions = launch.output(&[b, slots], DType::I64)?;
    launch.input(clock, DType::I64)?;
    for n in [b, window, sinks] {
        launch.u64(n as u64);
    }
    // SAFETY: the parameters of `ring`, whose outputs have one entry for each sequence and each slot.
    unsafe { launch.run("ring", Grid::threads((b * slots) as u64)) }?;
    Ok([slot, positions])
}

/// Let a clock [B] move on by one token. All holders of it see that: it is what they hold it for.
pub fn tick(clock: &Tensor) -> Result<()> {
    let variant = Variant::new(&KERNELS, Type::U16);
    let mut launch = Launch::new("cache_rows", variant, clock.device())?;
    launch.input(clock, DType::I64)?;
    launch.u64(clock.count() as u64);
    // SAFETY: the parameters of `tick`; a clock has one entry for each sequence.
    unsafe { launch.run("tick", Grid::threads(clock.count() as u64)) }
}
