//! The optimisers on a GPU against those on the CPU; skipped where there is no GPU, unless WEFT_REQUIRE_GPU is 1.

use weft_mixers::{Init, Params, Scope};
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::{DType, Device, Rng, Tensor};

use super::*;
use crate::recipe::{AdamW, Muon};

/// More tensors than one launch takes: matrices of two shapes, a large one, and vectors.
fn model(device: &Device) -> Params {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 1, DType::F32, device);
    let init = Init::Normal { std: 0.5 };
    for i in 0..70 {
        let shape: &[usize] = if i % 2 == 0 { &[33, 40] } else { &[40, 33] };
        scope
            .weight(&format!("{i}.weight"), shape, init.clone())
            .unwrap();
        scope
            .vector(&format!("{i}.bias"), &[i + 1], init.clone())
            .unwrap();
    }
    scope
        .weight("embed_tokens.weight", &[500, 301], init)
        .unwrap();
    params
}

fn grads(params: &Params, seed: u64, device: &Device) -> Grads {
    let mut rng = Rng::new(seed);
    let draw = |p: &Param| {
        let g = rng.normal(p.shape(), 0.0, 0.3, DType::F32, &Device::Cpu);
        // One parameter without a gradient.
        (p.name() != "3.bias").then(|| g.unwrap().to_device(device).unwrap())
    };
    Grads::from_vec(params.iter().map(draw).collect())
}

fn rules() -> [recipe::Optimizer; 2] {
    let adamw = AdamW {
        lr: 0.01,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.3,
    };
    let muon = Muon {
        adamw: adamw.clone(),
        muon_lr: 0.02,
        muon_momentum: 0.95,
    };
    [
        recipe::Optimizer::AdamW(adamw),
        recipe::Optimizer::Muon(muon),
    ]
}

fn near(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(&want).map(|(g, w)| square(g - w)).sum();
    let size: f64 = want.iter().map(|w| square(*w)).sum();
    let distance = (difference / size.max(1e-30)).sqrt();
    assert!(distance <= tolerance, "{what}: {distance:e} from the CPU");
}

fn loss(value: f64, device: &Device) -> Tensor {
    Tensor::full(&[], value, DType::F32, device)
}

#[test]
fn steps_equal_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for rule in rules() {
        let sides = [Device::Cpu, gpu].map(|d| {
            let params = model(&d);
            let optimizer = Optimizer::new(&params, &rule).unwrap();
            (d, params, optimizer)
        });
        let [(_, want, mut on_host), (_, got, mut on_gpu)] = sides;
        for step in 0..4 {
            // A clip that shortens at two of the steps, and two summed gradients.
            let (rate, summed, clip) = (1.0 / (step + 1) as f64, 2, [0.0, 1.0][step % 2]);
            let take = |optimizer: &mut Optimizer, params: &Params, d: &Device| {
                let (grads, losses) = (grads(params, step as u64, d), loss(3.0, d));
                let measured = optimizer.clipped_step(&grads, &losses, rate, summed, clip);
                measured.unwrap()
            };
            let want = take(&mut on_host, &want, &Device::Cpu);
            let got = take(&mut on_gpu, &got, &gpu);
            assert!((got.norm / want.norm - 1.0).abs() < 1e-12, "{got:?}");
            assert_eq!((got.loss, want.loss), (1.5, 1.5));
        }
        let plain = |o: &mut Optimizer, p: &Params, d: &Device| {
            o.step(&grads(p, 9, d), 0.5, 0.7).unwrap();
        };
        plain(&mut on_host, &want, &Device::Cpu);
        plain(&mut on_gpu, &got, &gpu);
        for (got, want) in got.iter().zip(want.iter()) {
            // Newton-Schulz steps amplify the rounding of their products.
            near(got.name(), &got.get(), &want.get(), 1e-5);
        }
        for ((name, got), (_, want)) in on_gpu.state().zip(on_host.state()) {
            assert_eq!(got.device(), gpu);
            near(&name, got, want, 1e-6);
        }
        assert_eq!((on_gpu.steps(), on_host.steps()), (5, 5));
    }
}

#[test]
fn a_gradient_or_a_loss_that_is_not_finite_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    for rule in rules() {
        let params = model(&gpu);
        let mut optimizer = Optimizer::new(&params, &rule).unwrap();
        optimizer
            .clipped_step(&grads(&params, 1, &gpu), &loss(1.0, &gpu), 1.0, 1, 1.0)
            .unwrap();
        let all = |optimizer: &Optimizer| -> Vec<Vec<f32>> {
            let values = params.iter().map(|p| p.get());
            let moments = optimizer.state().map(|(_, t)| t.clone());
            values.chain(moments).map(|t| t.to_vec().unwrap()).collect()
        };
        let before = all(&optimizer);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut list = grads(&params, 2, &gpu).as_slice().to_vec();
            let last = list.last_mut().unwrap();
            *last = Some(Tensor::full(&[500, 301], f64::from(bad), DType::F32, &gpu));
            let bad = Grads::from_vec(list);
            let measured = optimizer.clipped_step(&bad, &loss(1.0, &gpu), 1.0, 1, 1.0);
            assert!(!measured.unwrap().norm.is_finite());
            assert_eq!(bad.not_finite(&params).unwrap(), ["embed_tokens.weight"]);
        }
        for bad in [f64::NAN, f64::INFINITY] {
            let grads = grads(&params, 2, &gpu);
            let measured = optimizer.clipped_step(&grads, &loss(bad, &gpu), 1.0, 1, 1.0);
            assert!(measured.unwrap().norm.is_finite());
        }
        assert!(all(&optimizer) == before && optimizer.steps() == 1);
    }
}

#[test]
fn gradients_are_added_and_measured() {
    let Some(gpu) = gpu() else { return };
    let params = model(&gpu);
    let sum = |d: &Device| {
        let mut sum = grads(&params, 1, d);
        sum.add(grads(&params, 2, d)).unwrap();
        sum.add(grads(&params, 3, d)).unwrap();
        sum
    };
    let (got, want) = (sum(&gpu), sum(&Device::Cpu));
    for (got, want) in got.as_slice().iter().zip(want.as_slice()) {
        match (got, want) {
            (Some(got), Some(want)) => near("sum", got, want, 1e-7),
            (got, want) => assert!(got.is_none() && want.is_none()),
        }
    }
    let ratio = got.norm().unwrap() / want.norm().unwrap();
    assert!((ratio - 1.0).abs() < 1e-12, "{ratio}");
}
