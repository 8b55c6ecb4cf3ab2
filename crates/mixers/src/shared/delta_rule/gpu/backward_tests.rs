//! The kernels of the way back, on the GPU that WEFT_TEST_DEVICE names: gradients of every operand against those of the
//! CPU's chunks in f64, of the same rounded operands.

use weft_tensor::{DType, Device, Result, Rng, Tensor, grad};

use super::super::{CHUNK, Operands, delta_rule};
use super::tests::Fine::{Absent, Channel, Head, KeyChannel};
use super::tests::{Case, gpu, moved};

/// Products of bf16 with f32 sums, as a distance: |x - y| / |y|.
const TOLERANCE: f64 = 1e-2;

/// Gradients of sum(o . a) + sum(state . b) for random a and b that bf16 holds.
fn gradients(x: &Operands) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = x
        .list()
        .iter()
        .map(|t| t.requires_grad().unwrap())
        .collect();
    let (o, state) = delta_rule(&Operands::from_list(&leaves).unwrap(), CHUNK).unwrap();
    let mut rng = Rng::new(3);
    let mut weigh = |y: &Tensor| -> Result<Tensor> {
        let weights = rng.uniform(y.shape(), -1.0, 1.0, DType::F64, &Device::Cpu)?;
        let weights = weights.to_dtype(DType::BF16)?.to_dtype(y.dtype())?;
        y.mul(&weights.to_device(&y.device())?)?
            .to_dtype(state.dtype())?
            .sum_all()
    };
    let loss = weigh(&o).unwrap().add(&weigh(&state).unwrap()).unwrap();
    let leaves: Vec<&Tensor> = leaves.iter().collect();
    let grads = grad(&[&loss], None, &leaves, false).unwrap();
    grads.into_iter().map(Option::unwrap).collect()
}

fn distance(x: &Tensor, y: &Tensor) -> f64 {
    assert_eq!(x.shape(), y.shape());
    let (x, y) = (x.to_device(&Device::Cpu).unwrap(), y.to_f64_vec().unwrap());
    let x = x.to_f64_vec().unwrap();
    let difference: f64 = x.iter().zip(&y).map(|(x, y)| (x - y) * (x - y)).sum();
    let size: f64 = y.iter().map(|y| y * y).sum();
    (difference / size).sqrt()
}

fn check(case: Case, device: &Device) {
    let x = case.operands(case.batch);
    let want = gradients(&x);
    let got = gradients(&moved(&x, device));
    assert_eq!(got.len(), want.len());
    let names = match x.decay {
        Some(_) => &["qkv", "decay", "erase", "write", "state"][..],
        None => &["qkv", "erase", "write", "state"],
    };
    for ((got, want), name) in got.iter().zip(&want).zip(names) {
        let d = distance(got, want);
        assert!(d <= TOLERANCE, "{case:?}: {name}: {d:.1e}");
    }
}

#[test]
fn gradients_for_every_kind_of_gate_and_head() {
    let Some(device) = gpu() else { return };
    let all = [
        [Absent, Head, Head],
        [Head, Head, Head],
        [Channel, Head, Head],
        [KeyChannel, Head, Channel],
        [KeyChannel, KeyChannel, Channel],
        [Channel, Channel, Channel],
        [Head, Channel, Head],
        [Head, KeyChannel, Channel],
    ];
    for (heads, dims) in [
        ([2, 4], [128, 128]),
        ([1, 3], [64, 64]),
        ([2, 2], [64, 128]),
        ([1, 2], [256, 256]),
        ([1, 1], [128, 64]),
        ([1, 2], [256, 64]),
    ] {
        for gates in all {
            for extreme in [false, true] {
                let case = Case {
                    batch: 2,
                    tokens: 130,
                    heads,
                    dims,
                    gates,
                    extreme,
                };
                check(case, &device);
            }
        }
    }
}

#[test]
fn gradients_for_lengths_around_every_border() {
    let Some(device) = gpu() else { return };
    for tokens in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000] {
        for gates in [[Head, Head, Head], [Channel, KeyChannel, Channel]] {
            // Enough sums that none which nearly cancels, and so keeps few digits, decides.
            let case = Case {
                batch: 8,
                tokens,
                heads: [1, 2],
                dims: [64, 64],
                gates,
                extreme: false,
            };
            check(case, &device);
        }
    }
}

#[test]
fn gradients_for_more_sequences_than_a_grid_is_wide() {
    let Some(device) = gpu() else { return };
    for gates in [[Head, Head, Head], [Channel, Head, Head]] {
        let case = Case {
            batch: 66_000,
            tokens: 2,
            heads: [1, 1],
            dims: [64, 64],
            gates,
            extreme: false,
        };
        check(case, &device);
    }
}
