//! Every primitive on the GPU against the CPU: the table of `common` in three dtypes with gradients of first and
//! second order, and through views with gaps. All new memory is filled with NaN first.
//!
//! Skipped where there is no GPU; with WEFT_REQUIRE_GPU=1 that is a failure.

mod common;

use common::device::assert_near;
use common::{CPU, gradient_norm, inputs, loss, table};
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::{DType, Device, Result, Rng, Tensor, bf16, grad};

fn drawn(case: &common::Case, seed: u64, dtype: DType) -> Vec<Tensor> {
    let x = inputs(case, &mut Rng::new(seed));
    x.iter().map(|t| t.to_dtype(dtype).unwrap()).collect()
}

fn on(device: &Device, x: &[Tensor]) -> Vec<Tensor> {
    x.iter()
        .map(|t| t.to_device(device).unwrap().requires_grad().unwrap())
        .collect()
}

fn gradients(f: common::Op, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let l = loss(f, x, &mut None)?;
    let refs: Vec<&Tensor> = x.iter().collect();
    let found = grad(&[&l], None, &refs, false)?;
    Ok(found
        .into_iter()
        .zip(x)
        .map(|(g, t)| g.unwrap_or_else(|| t.zeros_like()))
        .collect())
}

#[test]
fn table_forward_and_first_order() {
    let Some(device) = gpu() else { return };
    for case in table() {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let x = drawn(&case, 1, dtype);
            let (a, b) = (on(&CPU, &x), on(&device, &x));
            let (want, got) = (case.3(&a).unwrap(), case.3(&b).unwrap());
            assert_eq!(got.device(), device);
            assert_near(case.0, &got, &want);
            let (want, got) = (
                gradients(case.3, &a).unwrap(),
                gradients(case.3, &b).unwrap(),
            );
            for (i, (w, g)) in want.iter().zip(&got).enumerate() {
                assert_near(&format!("{}: gradient {i}", case.0), g, w);
            }
        }
    }
}

#[test]
fn table_second_order() {
    let Some(device) = gpu() else { return };
    // The second order of bf16 is noise: its first order already carries 8 bits.
    for (case, dtype) in table()
        .iter()
        .flat_map(|c| [(c, DType::F64), (c, DType::F32)])
    {
        let x = drawn(case, 2, dtype);
        let second = |x: &[Tensor]| {
            let norm = gradient_norm(case.3, x, &mut None, true).unwrap().unwrap();
            let refs: Vec<&Tensor> = x.iter().collect();
            match norm.is_tracked() {
                true => grad(&[&norm], None, &refs, false).unwrap(),
                false => vec![None; x.len()],
            }
        };
        let (want, got) = (second(&on(&CPU, &x)), second(&on(&device, &x)));
        for (w, g) in want.iter().zip(&got) {
            assert_eq!(w.is_some(), g.is_some(), "{}", case.0);
            if let (Some(w), Some(g)) = (w, g) {
                assert_near(&format!("{}: second order", case.0), g, w);
            }
        }
    }
}

#[test]
fn table_strided_and_offset_inputs() {
    let Some(device) = gpu() else { return };
    for case in table() {
        let x = drawn(&case, 3, DType::F32);
        // The same values as a view into a larger tensor: odd offset, gaps between the elements.
        let spread = |device: &Device| -> Vec<Tensor> {
            let view = |t: &Tensor| {
                let wide = t
                    .unsqueeze(-1)?
                    .repeat_interleave(-1, 3)?
                    .to_device(device)?;
                wide.select(-1, 1)
            };
            x.iter().map(|t| view(t).unwrap()).collect()
        };
        let (want, got) = (
            case.3(&spread(&CPU)).unwrap(),
            case.3(&spread(&device)).unwrap(),
        );
        assert_near(case.0, &got, &want);
    }
}

#[test]
fn transfers_and_errors() {
    let Some(d) = gpu() else { return };
    // Larger than all staging buffers, odd.
    let n = 5_000_011;
    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let t = Tensor::from_slice(&x, &[n], &d).unwrap();
    assert!(t.to_vec::<f32>().unwrap() == x);
    assert!(t.narrow(0, 3, n - 3).unwrap().to_vec::<f32>().unwrap() == x[3..]);
    let b = Tensor::from_slice(&[bf16::from_f64(1.5)], &[1], &d).unwrap();
    assert_eq!(b.item_f64().unwrap(), 1.5);
    // The gradient comes back to where the leaf lives.
    let leaf = Tensor::ones(&[3], DType::F64, &CPU)
        .requires_grad()
        .unwrap();
    let g = leaf
        .to_device(&d)
        .unwrap()
        .square()
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    assert_eq!(g.get(&leaf).unwrap().to_vec::<f64>().unwrap(), [2.0; 3]);
    let text = |r: Result<Tensor>| r.unwrap_err().to_string();
    let differ = text(t.add(&Tensor::ones(&[n], DType::F32, &CPU)));
    assert!(differ.contains("cuda:0 and cpu"), "{differ}");
    assert!(
        t.slice::<f32>()
            .unwrap_err()
            .to_string()
            .contains("to_device")
    );
    assert!(
        t.clone()
            .write::<f32, _>(|_| ())
            .unwrap_err()
            .to_string()
            .contains("to_device")
    );
    assert!(Device::cuda(15).is_err() && Device::cuda(99).is_err());
}
