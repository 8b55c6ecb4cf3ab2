//! What training in bf16 under f32 masters is made of, on the GPU against the same in f64: products whose gradient of
//! the weight is never rounded to bf16, the loss whose logits never exist at once, and norms of sums.
//!
//! Skipped where there is no GPU; with WEFT_REQUIRE_GPU=1 that is a failure.

mod common;

use common::CPU;
use common::device::{FLOATS, compare, distance};
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::{DType, Device, Result, Rng, Tensor, grad};

/// bf16 operands are rounded to 8 bits before anything is computed.
const ROUNDED: f64 = 1e-2;

fn draw(shape: &[usize], scale: f64, seed: u64) -> Tensor {
    let x = Rng::new(seed).normal(shape, 0.0, scale, DType::F64, &CPU);
    // A value that bf16 has, so that the f64 side computes on the same numbers.
    let x = x.and_then(|x| x.to_dtype(DType::BF16)?.to_dtype(DType::F64));
    x.unwrap()
}

/// f's value and its gradients of x (in dtype `x`) and w (in dtype `w`) for fixed output gradients, all in f64.
fn with_gradients(
    device: &Device,
    [x, w]: [(&Tensor, DType); 2],
    f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Vec<Tensor> {
    let leaf = |(t, dtype): (&Tensor, DType)| {
        let t = t.to_dtype(dtype).unwrap().to_device(device).unwrap();
        t.requires_grad().unwrap()
    };
    let (x, w) = (leaf(x), leaf(w));
    let y = f(&x, &w).unwrap();
    let g = draw(y.shape(), 1.0, 9).to_dtype(y.dtype()).unwrap();
    let g = g.to_device(device).unwrap();
    let found = grad(&[&y], Some(&[g]), &[&x, &w], false).unwrap();
    let mut all = vec![y];
    all.extend(found.into_iter().map(Option::unwrap));
    let home = |t: Tensor| t.detach().to_device(&CPU).unwrap().to_dtype(DType::F64);
    all.into_iter().map(|t| home(t).unwrap()).collect()
}

fn near(what: &str, got: &[Tensor], want: &[Tensor], tolerances: [f64; 3]) {
    for (i, tolerance) in tolerances.into_iter().enumerate() {
        let d = distance(&got[i], &want[i]);
        assert!(d <= tolerance, "{what}, value {i}: {d:e}");
    }
}

#[test]
fn a_weight_in_f32_gets_a_gradient_in_f32() {
    let Some(d) = gpu() else { return };
    for [rows, k, n] in [[64, 64, 64], [1000, 96, 200], [7, 8, 16], [1, 64, 128]] {
        let (x, w) = (draw(&[rows, k], 1.0, 1), draw(&[n, k], 0.1, 2));
        let linear = |x: &Tensor, w: &Tensor| x.linear(w, None);
        let want = with_gradients(&CPU, [(&x, DType::F64), (&w, DType::F64)], linear);
        for device in [CPU, d] {
            let got = with_gradients(&device, [(&x, DType::BF16), (&w, DType::F32)], linear);
            // The output and dx are rounded to bf16; dw is a sum of exact products in f32.
            near("linear", &got, &want, [ROUNDED, ROUNDED, 1e-6]);
        }
    }
}

#[test]
fn losses_without_logits_equal_losses_of_logits() {
    let Some(d) = gpu() else { return };
    // The last one takes several pieces of rows.
    for [rows, k, n] in [
        [3, 8, 16],
        [100, 64, 1000],
        [257, 32, 4099],
        [5000, 16, 32_000],
    ] {
        let (x, w) = (draw(&[rows, k], 1.0, 1), draw(&[n, k], 0.3, 2));
        let targets = Rng::new(3).integers(&[rows], -1, n as i64, &CPU).unwrap();
        let loss =
            |x: &Tensor, w: &Tensor| x.linear_cross_entropy(w, &targets.to_device(&x.device())?);
        let want = with_gradients(&CPU, [(&x, DType::F64), (&w, DType::F64)], loss);
        for stored in [DType::F32, DType::BF16] {
            let got = with_gradients(&d, [(&x, DType::BF16), (&w, stored)], loss);
            near(&format!("{rows} {k} {n}"), &got, &want, [ROUNDED; 3]);
        }
    }
}

#[test]
fn norms_of_sums_with_gradients() {
    let Some(d) = gpu() else { return };
    // Rows in the registers of a warp, of a block, and neither.
    for [rows, n] in [
        [70_001, 8],
        [100, 768],
        [300, 1000],
        [9, 4096],
        [5, 37],
        [3, 20_000],
    ] {
        compare(
            "add_rms_norm",
            &d,
            &[&[rows, n], &[rows, n], &[n]],
            FLOATS,
            |x| {
                let leaves: Vec<Tensor> =
                    x.iter().map(|t| t.requires_grad()).collect::<Result<_>>()?;
                let [sum, normed] = leaves[0].add_rms_norm(&leaves[1], &leaves[2], 1e-5)?;
                let [g, h] = [1.0, 2.0].map(|f| sum.detach().mul_scalar(f).and_then(|t| t.sin()));
                let refs: Vec<&Tensor> = leaves.iter().collect();
                let grads = grad(&[&sum, &normed], Some(&[g?, h?]), &refs, false)?;
                let all = [sum, normed].into_iter().chain(grads.into_iter().flatten());
                let flat = all.map(|t| t.detach().flatten(0, -1));
                let flat = flat.collect::<Result<Vec<_>>>()?;
                Tensor::cat(&flat.iter().collect::<Vec<_>>(), 0)
            },
        );
    }
}
