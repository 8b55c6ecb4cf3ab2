//! The optimisers on a GPU: every kernel takes a list of many tensors, so that a step of a whole model is a handful of
//! launches, and the norm of the gradients, the clipping and the decision to skip a step never leave the GPU.

use weft_tensor::cuda::{Grid, Launch, Source, Variant};
use weft_tensor::{DType, Device, Tensor};

use super::Measured;
use crate::error::Result;

/// The kernels.
pub static KERNELS: Source = Source {
    name: "optim",
    text: include_str!("optim.cu"),
    variants: |s| vec![Variant::new(s, DType::F32)],
};

/// Elements of one block, `CHUNK` of the source.
const CHUNK: usize = 16384;
/// Entries of one launch, `MOST` of the source.
const MOST: usize = 64;
/// Threads of a block.
const THREADS: u32 = 256;

/// N tensors of one parameter and two numbers, `Entry` of the source.
struct Entry<const N: usize> {
    at: [u64; N],
    count: usize,
    numbers: [f32; 2],
}

/// Send `kernel` over all entries, `MOST` at a time; `rest` adds the arguments behind the list, given the number of
/// blocks before. All tensors behind the addresses must be alive, on the launch's GPU, f32 and of `count` elements.
fn over<'a, const N: usize>(
    op: &'static str,
    kernel: &'static str,
    device: Device,
    entries: &[Entry<N>],
    mut rest: impl FnMut(&mut Launch<'a>, u64) -> Result<()>,
) -> Result<()> {
    let mut before = 0;
    for part in entries.chunks(MOST) {
        let mut list = vec![part.len() as u64];
        let mut blocks = 0;
        for entry in part {
            let [x, y] = entry.numbers.map(|n| u64::from(n.to_bits()));
            list.extend(entry.at);
            list.extend([entry.count as u64, blocks, x | y << 32]);
            blocks += entry.count.div_ceil(CHUNK) as u64;
        }
        list.resize(1 + MOST * (N + 3), 0);
        let mut launch = Launch::new(op, variant(), device)?;
        launch.words(&list);
        launch.u64(blocks);
        rest(&mut launch, before)?;
        // SAFETY: the list has the source's layout, and each block stays below its entry's count.
        unsafe { launch.run(kernel, Grid::blocks(blocks, THREADS)) }?;
        before += blocks;
    }
    Ok(())
}

fn variant() -> Variant {
    Variant::new(&KERNELS, DType::F32)
}

/// Collects addresses; `None` is a null pointer.
struct Addresses<'a>(Launch<'a>);

impl<'a> Addresses<'a> {
    fn new(op: &'static str, device: Device) -> Result<Self> {
        Ok(Self(Launch::new(op, variant(), device)?))
    }
    fn read(&self, t: Option<&'a Tensor>) -> Result<u64> {
        Ok(t.map_or(Ok(0), |t| self.0.address(t, DType::F32))?)
    }
    fn change(&self, t: &'a mut Tensor) -> Result<u64> {
        Ok(self.0.address_to_change(t, DType::F32)?)
    }
}

/// The norm of the gradients, the factor on them and the loss, in the GPU's memory.
pub(super) struct Guard(Tensor);

impl Guard {
    /// The norm of the mean of `summed` f32 gradients, the factor that averages and clips them, and the mean of as many
    /// losses, given as their sum.
    pub(super) fn measure(
        device: Device,
        grads: &[Option<Tensor>],
        losses: Option<&Tensor>,
        summed: u64,
        clip: f64,
    ) -> Result<Self> {
        const OP: &str = "gradient_norm";
        let addresses = Addresses::new(OP, device)?;
        let entry = |g| -> Result<Entry<1>> {
            let at = [addresses.read(Some(g))?];
            Ok(Entry {
                at,
                count: g.count(),
                numbers: [0.0; 2],
            })
        };
        let entries = grads
            .iter()
            .flatten()
            .map(entry)
            .collect::<Result<Vec<_>>>()?;
        let blocks: usize = entries.iter().map(|e| e.count.div_ceil(CHUNK)).sum();
        let parts = {
            let mut launch = Launch::new(OP, variant(), device)?;
            launch.output(&[blocks.max(1)], DType::F64)?
        };
        over(OP, "square_sums", device, &entries, |launch, before| {
            launch.input(&parts, DType::F64)?;
            launch.u64(before);
            Ok(())
        })?;
        let mut launch = Launch::new(OP, variant(), device)?;
        let guard = launch.output(&[3], DType::F64)?;
        launch.input(&parts, DType::F64)?;
        launch.u64(blocks as u64);
        match losses {
            Some(losses) => launch.input(losses, DType::F32)?,
            None => launch.u64(0),
        }
        launch.f64(summed as f64);
        launch.f64(clip);
        // SAFETY: the parameters of `guard`; `parts` has that many elements.
        unsafe { launch.run("guard", Grid::blocks(1, THREADS)) }?;
        Ok(Self(guard))
    }

    /// A factor without a norm.
    pub(super) fn scale(device: Device, scale: f64) -> Result<Self> {
        Ok(Self(Tensor::from_slice(&[0.0, scale, 0.0], &[3], &device)?))
    }

    /// Norm and loss, on the host: waits for the GPU.
    pub(super) fn read(&self) -> Result<Measured> {
        let values = self.0.to_vec::<f64>()?;
        Ok(Measured {
            norm: values[0],
            loss: values[2],
        })
    }
}

/// a += b for each pair of f32 tensors.
pub(super) fn accumulate(device: Device, pairs: &mut [(&mut Tensor, &Tensor)]) -> Result<()> {
    const OP: &str = "accumulate_gradients";
    let addresses = Addresses::new(OP, device)?;
    let entry = |(a, b): &mut (&mut Tensor, &Tensor)| -> Result<Entry<2>> {
        Ok(Entry {
            count: b.count(),
            at: [addresses.change(a)?, addresses.read(Some(b))?],
            numbers: [0.0; 2],
        })
    };
    let entries = pairs.iter_mut().map(entry).collect::<Result<Vec<_>>>()?;
    over(OP, "accumulate", device, &entries, |_, _| Ok(()))
}

/// A parameter that AdamW moves.
pub(super) struct AdamWItem<'a> {
    pub(super) param: &'a mut Tensor,
    pub(super) mean: &'a mut Tensor,
    pub(super) square: &'a mut Tensor,
    pub(super) grad: Option<&'a Tensor>,
    /// 1 - lr decay
    pub(super) shrink: f32,
}

/// One step of AdamW; `numbers`: beta1, beta2, 1 - beta1, 1 - beta2, rate, correction, eps.
pub(super) fn adamw(
    device: Device,
    items: &mut [AdamWItem],
    guard: &Guard,
    numbers: [f32; 7],
) -> Result<()> {
    const OP: &str = "adamw";
    let addresses = Addresses::new(OP, device)?;
    let entry = |item: &mut AdamWItem| -> Result<Entry<4>> {
        Ok(Entry {
            count: item.param.count(),
            at: [
                addresses.change(item.param)?,
                addresses.change(item.mean)?,
                addresses.change(item.square)?,
                addresses.read(item.grad)?,
            ],
            numbers: [item.shrink, 0.0],
        })
    };
    let entries = items.iter_mut().map(entry).collect::<Result<Vec<_>>>()?;
    over(OP, "adamw", device, &entries, |launch, _| {
        launch.input(&guard.0, DType::F64)?;
        numbers.iter().for_each(|&n| launch.f32(n));
        Ok(())
    })
}

/// A matrix that Muon moves.
pub(super) struct MuonItem<'a> {
    pub(super) param: &'a mut Tensor,
    pub(super) momentum: &'a mut Tensor,
    pub(super) grad: Option<&'a Tensor>,
    /// 1 - lr decay
    pub(super) shrink: f32,
    /// lr sqrt(max(1, rows / cols))
    pub(super) rate: f32,
}

/// One step of Muon for matrices of one shape: their directions are orthogonalised in one batch.
pub(super) fn muon(device: Device, items: &mut [MuonItem], guard: &Guard, mu: f64) -> Result<()> {
    const OP: &str = "muon";
    let Some(first) = items.first() else {
        return Ok(());
    };
    let [rows, cols] = first.param.dims()?;
    let size = rows * cols;
    let mut directions = {
        let mut launch = Launch::new(OP, variant(), device)?;
        launch.output(&[items.len(), rows, cols], DType::F32)?
    };
    let slot = |base: u64, i: usize| base + (i * size * size_of::<f32>()) as u64;
    {
        let addresses = Addresses::new(OP, device)?;
        let base = addresses.change(&mut directions)?;
        let entry = |(i, item): (usize, &mut MuonItem)| -> Result<Entry<3>> {
            Ok(Entry {
                count: size,
                at: [
                    addresses.change(item.momentum)?,
                    slot(base, i),
                    addresses.read(item.grad)?,
                ],
                numbers: [mu as f32, (1.0 - mu) as f32],
            })
        };
        let entries = items.iter_mut().enumerate().map(entry);
        let entries = entries.collect::<Result<Vec<_>>>()?;
        over(OP, "muon_direction", device, &entries, |launch, _| {
            Ok(launch.input(&guard.0, DType::F64)?)
        })?;
    }
    let turned = super::orthogonalize(&directions)?.contiguous()?;
    let addresses = Addresses::new(OP, device)?;
    let base = addresses.read(Some(&turned))?;
    let entry = |(i, item): (usize, &mut MuonItem)| -> Result<Entry<2>> {
        Ok(Entry {
            count: size,
            at: [addresses.change(item.param)?, slot(base, i)],
            numbers: [item.shrink, item.rate],
        })
    };
    let entries = items.iter_mut().enumerate().map(entry);
    let entries = entries.collect::<Result<Vec<_>>>()?;
    over(OP, "muon_apply", device, &entries, |launch, _| {
        Ok(launch.input(&guard.0, DType::F64)?)
    })
}
