//! One token on a GPU, in one launch: see `step.cu`. The state is read once and written once, so that the step takes
//! the time of a copy of the state.

use weft_tensor::cuda::{Grid, Launch, Source, Variant};
use weft_tensor::{DType, Result, Tensor};

use super::op::Operands;
use super::{Dims, L2_EPS};

/// Key channels that the kernel is compiled for.
const KEYS: [usize; 3] = [64, 128, 256];
/// Value columns of a block, `COLUMNS` of the source.
const COLUMNS: usize = 32;
/// `THREADS` of the source.
const THREADS: u32 = 128;

/// The kernel, for each number of key channels and dtype of activations.
pub static KERNELS: Source = Source {
    name: "delta_rule_step",
    text: include_str!("step.cu"),
    variants: |_| {
        let dtypes = [DType::F32, DType::BF16];
        KEYS.iter()
            .flat_map(|&k| dtypes.map(|d| variant(d, k)))
            .collect()
    },
};

fn variant(dtype: DType, key_dim: usize) -> Variant {
    Variant::new(&KERNELS, dtype).constant("KD", key_dim as u32)
}

/// Whether there is a kernel for heads of this size with a state of this dtype.
pub fn fits(key_dim: usize, value_dim: usize, state: DType) -> bool {
    KEYS.contains(&key_dim) && value_dim.is_multiple_of(COLUMNS) && state == DType::F32
}

/// Outputs [B, 1, HV, V] in the dtype of qkv, and the state, changed in place where it has no other owner.
pub fn step(x: Operands, dims: Dims) -> Result<(Tensor, Tensor)> {
    // The source has it as a number.
    const { assert!(L2_EPS == 1e-6) };
    let activations = match x.qkv.dtype() {
        DType::BF16 => DType::BF16,
        _ => DType::F32,
    };
    let f32 = |x: &Tensor| x.detach().to_dtype(DType::F32)?.contiguous();
    let qkv = x.qkv.detach().to_dtype(activations)?.contiguous()?;
    let decay = x.decay.as_ref().map(f32).transpose()?;
    let (erase, write) = (f32(&x.erase)?, f32(&x.write)?);
    let mut state = x.state.into_detached();
    let width = |gate: &Tensor| {
        if gate.rank() == 4 { gate.dim(3) } else { Ok(1) }
    };
    let variant = variant(activations, dims.key_dim);
    let mut launch = Launch::new("delta_rule_step", variant, qkv.device())?;
    launch.in_place(&mut state, DType::F32)?;
    let o = launch.output(
        &[dims.batch, 1, dims.value_heads, dims.value_dim],
        activations,
    )?;
    launch.input(&qkv, activations)?;
    match &decay {
        Some(decay) => {
            launch.input(decay, DType::F32)?;
            launch.u64(decay.dim(2)? as u64);
            launch.u64(width(decay)? as u64);
        }
        None => [0, 1, 1].into_iter().for_each(|n| launch.u64(n)),
    }
    launch.input(&erase, DType::F32)?;
    launch.u64(erase.dim(2)? as u64);
    launch.u64(width(&erase)? as u64);
    launch.input(&write, DType::F32)?;
    launch.u64(width(&write)? as u64);
    for n in [dims.batch, dims.heads, dims.value_heads, dims.value_dim] {
        launch.u64(n as u64);
    }
    let blocks = dims.batch * dims.value_heads * dims.value_dim / COLUMNS;
    // SAFETY: the parameters of `step`; `dims` were checked against every operand's shape, and rows of the state are a
    // whole number of 16-byte pieces.
    unsafe { launch.run("step", Grid::blocks(blocks as u64, THREADS)) }?;
    Ok((o, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::assert_close;
    use crate::laws::test_device;
    use crate::shared::delta_rule::{delta_rule_step, recurrence};
    use weft_tensor::{Device, Rng, memory};

    /// Every way to shape the gates, on the GPU that WEFT_TEST_DEVICE names, against the recurrence in f64.
    #[test]
    fn the_kernel_equals_the_recurrence() {
        let gpu = test_device();
        if gpu == Device::Cpu {
            eprintln!("skipped: WEFT_TEST_DEVICE is not cuda");
            return;
        }
        memory::poison(true);
        let mut rng = Rng::new(1);
        let mut draw = |shape: &[usize], lo, hi| {
            rng.uniform(shape, lo, hi, DType::F64, &Device::Cpu)
                .unwrap()
        };
        for (b, h, hv, k, v) in [(3, 2, 2, 64, 32), (2, 2, 6, 128, 128), (1, 1, 2, 256, 96)] {
            for (decay, erase, write) in [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 2, v), (2, 3, v)] {
                // 1: one number for a value head, 2: K for a value head, 3: K for a key head.
                let mut gate = |kind: usize, lo, hi| match kind {
                    1 => draw(&[b, 1, hv], lo, hi),
                    2 => draw(&[b, 1, hv, k], lo, hi),
                    _ => draw(&[b, 1, h, k], lo, hi),
                };
                let decay = (decay > 0).then(|| gate(decay, -2.0, 0.0));
                let erase = gate(erase, 0.0, 1.0);
                let write = match write {
                    1 => draw(&[b, 1, hv], 0.0, 1.0),
                    _ => draw(&[b, 1, hv, v], 0.0, 1.0),
                };
                let x = Operands {
                    qkv: draw(&[b, 1, 2 * h * k + hv * v], -1.0, 1.0),
                    decay,
                    erase,
                    write,
                    state: draw(&[b, hv, k, v], -1.0, 1.0),
                };
                for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                    let rounded = |x: &Tensor, dtype| x.to_dtype(dtype).unwrap();
                    let x = Operands {
                        qkv: rounded(&rounded(&x.qkv, dtype), DType::F64),
                        ..x.clone()
                    };
                    let (o, s) = recurrence(&x).unwrap();
                    let moved = |x: &Tensor, dtype| rounded(x, dtype).to_device(&gpu).unwrap();
                    let on_gpu = Operands {
                        qkv: moved(&x.qkv, dtype),
                        decay: x.decay.as_ref().map(|g| moved(g, DType::F32)),
                        erase: moved(&x.erase, DType::F32),
                        write: moved(&x.write, DType::F32),
                        state: moved(&x.state, DType::F32),
                    };
                    let before = on_gpu.state.clone();
                    let (o2, s2) = delta_rule_step(on_gpu).unwrap();
                    assert_eq!(o2.dtype(), dtype);
                    let label = format!("K {k}, V {v}, {hv} heads, {dtype}");
                    assert_close(&format!("{label}: o"), &o2, &o, tolerance);
                    assert_close(&format!("{label}: state"), &s2, &s, 1e-5);
                    assert_close("another owner's state", &before, &x.state, 1e-6);
                }
            }
        }
    }
}
