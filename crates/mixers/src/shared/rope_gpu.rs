//! The rotation on a GPU, in one launch that makes its own angles: see `rope.cu`.

use std::collections::HashMap;
use std::sync::Mutex;

use weft_tensor::cuda::{Grid, Launch, Source, Type, Variant};
use weft_tensor::{DType, Device, Result, Tensor};

use super::rope::Layout;

/// Heads of a thread, `HEADS` of the source.
const HEADS: usize = 4;

/// The kernel, for each dtype and layout, with 16-byte accesses and with single elements.
pub static KERNELS: Source = Source {
    name: "rope",
    text: include_str!("rope.cu"),
    variants: |_| {
        let dtypes = [DType::F64, DType::F32, DType::BF16];
        let layouts = [Layout::Half, Layout::Adjacent];
        let pairs = dtypes.iter().flat_map(|&d| layouts.map(|l| (d, l)));
        pairs
            .flat_map(|(d, l)| [variant(d, l, true), variant(d, l, false)])
            .collect()
    },
};

fn variant(dtype: DType, layout: Layout, wide: bool) -> Variant {
    let width = if wide { Type::from(dtype).vector() } else { 1 };
    Variant::new(&KERNELS, dtype)
        .vector(width)
        .constant("V16", u32::from(wide))
        .constant("ADJACENT", u32::from(layout == Layout::Adjacent))
}

/// A layer's frequencies on the GPUs it has run on, uploaded once.
#[derive(Default)]
pub(super) struct Frequencies(Mutex<HashMap<Device, Tensor>>);

impl Frequencies {
    pub(super) fn on(&self, device: Device, values: &[f64]) -> Result<Tensor> {
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = known.get(&device) {
            return Ok(found.clone());
        }
        let made = Tensor::from_slice(values, &[values.len()], &device)?;
        known.insert(device, made.clone());
        Ok(made)
    }
}

/// Angles as the kernel makes them.
#[derive(Clone)]
pub(super) struct Angles {
    /// f64 [n/2]
    pub(super) frequencies: Tensor,
    /// Where all sequences start, or one i64 for each.
    pub(super) starts: Result<usize, Tensor>,
}

/// x [B, T, H, D] turned, or turned back.
pub(super) fn rotate(x: &Tensor, angles: &Angles, layout: Layout, back: bool) -> Result<Tensor> {
    let x = x.contiguous()?;
    let ([b, t, h, d], n) = (x.dims()?, angles.frequencies.count());
    if x.count() == 0 {
        return Ok(x);
    }
    let probe = Launch::new("rope", variant(x.dtype(), layout, true), x.device())?;
    let width = Type::from(x.dtype()).vector() as usize;
    let wide = n.is_multiple_of(width)
        && d.is_multiple_of(width)
        && probe.address(&x, x.dtype())?.is_multiple_of(16);
    let mut launch = Launch::new("rope", variant(x.dtype(), layout, wide), x.device())?;
    let y = launch.output(x.shape(), x.dtype())?;
    launch.input(&x, x.dtype())?;
    launch.input(&angles.frequencies, DType::F64)?;
    match &angles.starts {
        Ok(same) => {
            launch.u64(0);
            launch.u64(*same as u64);
        }
        Err(each) => {
            launch.input(each, DType::I64)?;
            launch.u64(0);
        }
    }
    launch.f64(if back { -1.0 } else { 1.0 });
    for n in [b, t, h, d, n] {
        launch.u64(n as u64);
    }
    let width = if wide { width } else { 1 };
    let pieces = n / width + (d - 2 * n).div_ceil(width);
    let threads = b * t * h.div_ceil(HEADS) * pieces;
    // SAFETY: the parameters of `rope`; `starts` has an entry for each sequence and 2 n is at most d (`Table::check`).
    unsafe { launch.run("rope", Grid::threads(threads as u64)) }?;
    Ok(y)
}
