//! One token of a whole layer on a GPU in one launch, from the projections to the input of the last one, in place on the
//! state and on the convolution's last inputs: see `layer_step.cu`. Token by token the launches of the single operations
//! would take longer than the state's bytes.

use weft_tensor::cuda::{Grid, Launch, Source, Variant};
use weft_tensor::{DType, Device, Tensor};

use super::super::L2_EPS;
use super::super::layer::{DeltaLayer, Heads, OutputGate, Projected};
use crate::error::{Error, Result};
use crate::params::Param;
use crate::state::State;

/// Key and value channels that the kernel is compiled for: heads whose state fits the registers of a block.
const SIZES: [[usize; 2]; 4] = [[64, 64], [64, 128], [128, 64], [128, 128]];
/// Taps of the convolution that it is compiled for.
const TAPS: usize = 4;
/// `THREADS` of the source.
const THREADS: u32 = 512;

const _: () = assert!(L2_EPS == 1e-6, "the source has it as a number");

/// The kernel, for each size of heads, dtype of activations and dtype of weights.
pub static KERNEL: Source = Source {
    name: "delta_layer_step",
    text: include_str!("layer_step.cu"),
    variants: |_| {
        let dtypes = [
            (DType::F32, DType::F32),
            (DType::BF16, DType::F32),
            (DType::BF16, DType::BF16),
        ];
        SIZES
            .iter()
            .flat_map(|&size| dtypes.map(|(t, u)| variant(size, t, u)))
            .collect()
    },
};

fn variant([keys, values]: [usize; 2], activations: DType, weights: DType) -> Variant {
    Variant::new(&KERNEL, activations)
        .second(weights)
        .constant("KD", keys as u32)
        .constant("VD", values as u32)
        .constant("TAPS", TAPS as u32)
}

/// Whether there is a kernel for such heads on a device.
pub fn fits(h: &Heads, device: Device) -> bool {
    device != Device::Cpu && SIZES.contains(&[h.key_dim, h.value_dim]) && h.taps == TAPS
}

/// Whether it takes these projections of one token and this state: with a decay and an output gate.
pub fn takes(layer: &DeltaLayer, p: &Projected, state: &State) -> Result<bool> {
    if layer.decay.is_none() || p.decay.is_none() || p.gate.is_none() {
        return Ok(false);
    }
    let activations = p.qkv.dtype();
    let dtypes = matches!(activations, DType::F32 | DType::BF16)
        && state.get("state")?.dtype() == DType::F32
        && state.get("conv")?.dtype() == activations;
    Ok(dtypes && fits(&layer.heads, p.qkv.device()))
}

/// Address, heads and width of a gate's logits.
fn logits<'a>(launch: &mut Launch<'a>, x: &'a Tensor, dtype: DType) -> Result<()> {
    let width = if x.rank() == 4 { x.dim(3)? } else { 1 };
    let words = [launch.address(x, dtype)?, x.dim(2)? as u64, width as u64];
    launch.words(&words);
    Ok(())
}

/// RMSNorm_V(o) norm.weight act(gate) of one token [B, 1, HV V]; moves the state on.
pub fn step(layer: &DeltaLayer, p: &Projected, state: &mut State) -> Result<Tensor> {
    let h = &layer.heads;
    let activations = p.qkv.dtype();
    let plain = |x: &Tensor| x.detach().to_dtype(activations)?.contiguous();
    let (Some(rates), Some(decay), Some(gate)) = (&layer.decay, &p.decay, &p.gate) else {
        let detail = "this step needs a decay and an output gate";
        return Err(Error::config(layer.name, detail));
    };
    let (qkv, decay, erase) = (plain(&p.qkv)?, plain(decay)?, plain(&p.erase)?);
    let (write, gate) = (p.write.as_ref().map(plain).transpose()?, plain(gate)?);

    let weights = layer.conv.weights.iter().chain([&layer.norm.weight]);
    let narrow =
        activations == DType::BF16 && weights.clone().all(|w| w.get().dtype() == DType::BF16);
    let dtype = if narrow { DType::BF16 } else { DType::F32 };
    let weights = weights
        .map(|w| Ok(w.cast(dtype)?.detach().contiguous()?))
        .collect::<Result<Vec<_>>>()?;
    let per_head = |x: &Param| Ok::<_, Error>(x.cast(DType::F32)?.detach().contiguous()?);
    let (a_log, dt_bias) = (per_head(&rates.a_log)?, per_head(&rates.dt_bias)?);

    let batch = qkv.dim(0)?;
    let (mut matrix, mut inputs) = (state.take("state")?, state.take("conv")?);
    let size = [h.key_dim, h.value_dim];
    let mut launch = Launch::new(
        "delta_layer_step",
        variant(size, activations, dtype),
        qkv.device(),
    )?;
    launch.in_place(&mut matrix, DType::F32)?;
    launch.in_place(&mut inputs, activations)?;
    let y = launch.output(&[batch, 1, h.values()], activations)?;
    launch.input(&qkv, activations)?;
    // One parameter for all channels, or one each for q, k and v.
    let [norm, convolutions] = [&weights[weights.len() - 1..], &weights[..weights.len() - 1]];
    let mut channel = 0;
    for count in [h.keys(), h.keys(), h.values()] {
        let mut first = 0;
        for w in convolutions {
            let own = w.dim(0)?;
            if (first..first + own).contains(&channel) {
                let bytes = (channel - first) * TAPS * dtype.size();
                let address = launch.address(w, dtype)? + bytes as u64;
                launch.u64(address);
            }
            first += own;
        }
        channel += count;
    }
    logits(&mut launch, &decay, activations)?;
    launch.input(&a_log, DType::F32)?;
    launch.input(&dt_bias, DType::F32)?;
    launch.f32(rates.lower_bound.unwrap_or(0.0) as f32);
    launch.u32(rates.lower_bound.is_some().into());
    logits(&mut launch, &erase, activations)?;
    launch.f32(if layer.allow_neg_eigval { 2.0 } else { 1.0 });
    match &write {
        Some(write) => launch.input(write, activations)?,
        None => launch.u64(0),
    }
    launch.input(&gate, activations)?;
    launch.input(&norm[0], dtype)?;
    launch.f32(layer.norm.eps as f32);
    launch.f32(if layer.norm.plus_one { 1.0 } else { 0.0 });
    launch.u32((layer.output_gate == OutputGate::Sigmoid).into());
    for n in [batch, h.heads, h.value_heads] {
        launch.u32(n as u32);
    }
    let blocks = (batch * h.heads) as u64;
    // SAFETY: the parameters of `layer_step`; the layer has checked its state's shapes, and the projections' are its own.
    unsafe { launch.run("layer_step", Grid::blocks(blocks, THREADS)) }?;
    state.put("state", matrix)?;
    state.put("conv", inputs)?;
    Ok(y)
}
