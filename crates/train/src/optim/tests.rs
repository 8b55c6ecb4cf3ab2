use std::collections::HashMap;

use weft_mixers::{Init, Params, Scope};
use weft_tensor::{DType, Device, Rng, Tensor};

use super::*;
use crate::recipe::{AdamW, Muon};

fn adamw(lr: f64, weight_decay: f64) -> AdamW {
    AdamW {
        lr,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay,
    }
}

fn with_adamw(lr: f64, weight_decay: f64) -> recipe::Optimizer {
    recipe::Optimizer::AdamW(adamw(lr, weight_decay))
}

fn with_muon(muon_lr: f64, weight_decay: f64) -> recipe::Optimizer {
    recipe::Optimizer::Muon(Muon {
        adamw: adamw(0.1, weight_decay),
        muon_lr,
        muon_momentum: 0.95,
    })
}

fn matrix(rows: usize, cols: usize, data: &[f64]) -> Tensor {
    let t = Tensor::from_slice(data, &[rows, cols], &Device::Cpu).unwrap();
    t.to_dtype(DType::F32).unwrap()
}

/// A matrix of 33 x 40 (Muon takes it), an embedding and a vector.
fn model(seed: u64) -> Params {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, seed, DType::F32, &Device::Cpu);
    let init = Init::Normal { std: 0.5 };
    scope
        .weight("layer.weight", &[33, 40], init.clone())
        .unwrap();
    scope
        .weight("embed_tokens.weight", &[50, 20], init.clone())
        .unwrap();
    scope.vector("norm.weight", &[40], init).unwrap();
    params
}

fn random_grads(params: &Params, rng: &mut Rng) -> Grads {
    let draw = |p: &Param| {
        let g = rng.normal(p.shape(), 0.0, 0.3, DType::F32, &Device::Cpu);
        Some(g.unwrap())
    };
    Grads::from_vec(params.iter().map(draw).collect())
}

fn values(params: &Params) -> Vec<Vec<f32>> {
    params.iter().map(|p| p.get().to_vec().unwrap()).collect()
}

fn moments(optimizer: &Optimizer) -> HashMap<String, Tensor> {
    optimizer.state().map(|(n, t)| (n, t.clone())).collect()
}

#[test]
fn adamw_follows_the_paper_in_double_precision() {
    let params = model(1);
    let mut optimizer = Optimizer::new(&params, &with_adamw(0.01, 0.3)).unwrap();
    let mut rng = Rng::new(2);
    let mut want: Vec<Vec<f64>> = params
        .iter()
        .map(|p| p.get().to_f64_vec().unwrap())
        .collect();
    let mut m: Vec<Vec<f64>> = want.iter().map(|w| vec![0.0; w.len()]).collect();
    let mut v = m.clone();
    for t in 1..=20 {
        let (rate, scale) = (1.0 / f64::from(t).sqrt(), 0.7);
        let lr = 0.01 * rate;
        let grads = random_grads(&params, &mut rng);
        optimizer.step(&grads, rate, scale).unwrap();
        for (i, param) in params.iter().enumerate() {
            let decay = if param.decays() { 0.3 } else { 0.0 };
            let g = grads.as_slice()[i].as_ref().unwrap().to_f64_vec().unwrap();
            for j in 0..g.len() {
                let g = g[j] * scale;
                m[i][j] = 0.9 * m[i][j] + 0.1 * g;
                v[i][j] = 0.95 * v[i][j] + 0.05 * g * g;
                let mean = m[i][j] / (1.0 - 0.9f64.powi(t));
                let square = v[i][j] / (1.0 - 0.95f64.powi(t));
                want[i][j] -= lr * decay * want[i][j] + lr * mean / (square.sqrt() + 1e-8);
            }
        }
        for (param, want) in params.iter().zip(&want) {
            for (got, want) in param.get().to_f64_vec().unwrap().iter().zip(want) {
                // 20 roundings of a value near 1 in f32.
                assert!((got - want).abs() < 2e-6, "step {t}: {got} is not {want}");
            }
        }
    }
    assert_eq!(optimizer.steps(), 20);
}

#[test]
fn only_hidden_matrices_go_to_muon() {
    let optimizer = Optimizer::new(&model(0), &with_muon(0.02, 0.1)).unwrap();
    let names: Vec<String> = optimizer.state().map(|(n, _)| n).collect();
    let want = [
        "layer.weight.momentum",
        "embed_tokens.weight.mean",
        "embed_tokens.weight.square",
        "norm.weight.mean",
        "norm.weight.square",
    ];
    assert_eq!(names, want);
}

/// I - 2 v v^T / |v|^2: orthogonal.
fn reflection(n: usize, rng: &mut Rng) -> Tensor {
    let v = rng
        .normal(&[n, 1], 0.0, 1.0, DType::F64, &Device::Cpu)
        .unwrap();
    let vv = v.matmul(&v.transpose(0, 1).unwrap()).unwrap();
    let square = v.square().unwrap().sum_all().unwrap().item_f64().unwrap();
    let eye = Tensor::eye(n, DType::F64, &Device::Cpu).unwrap();
    (&eye - &vv.mul_scalar(2.0 / square).unwrap()).unwrap()
}

#[test]
fn orthogonalize_keeps_singular_vectors_and_brings_singular_values_near_one() {
    let mut rng = Rng::new(3);
    for (rows, cols) in [(12, 12), (12, 30), (30, 12)] {
        let (u, v) = (reflection(rows, &mut rng), reflection(cols, &mut rng));
        let singular: Vec<f64> = (0..12).map(|i| 10.0 * 0.75f64.powi(i)).collect();
        let mut s = vec![0.0; rows * cols];
        (0..12).for_each(|i| s[i * cols + i] = singular[i]);
        let s = Tensor::from_vec(s, &[rows, cols], &Device::Cpu).unwrap();
        let g = u.matmul(&s).unwrap().matmul(&v).unwrap();
        let o = orthogonalize(&g).unwrap();
        // Reflections are their own inverse: this undoes U and V.
        let d = u
            .matmul(&o)
            .unwrap()
            .matmul(&v)
            .unwrap()
            .to_f64_vec()
            .unwrap();
        let norm = singular.iter().map(|s| s * s).sum::<f64>().sqrt() + 1e-7;
        for i in 0..rows {
            for j in 0..cols {
                let got = d[i * cols + j];
                if i != j {
                    assert!(got.abs() < 1e-12, "{got} beside the diagonal");
                    continue;
                }
                let poly = |x: f64| 3.4445 * x - 4.7750 * x.powi(3) + 2.0315 * x.powi(5);
                let want = (0..5).fold(singular[i] / norm, |x, _| poly(x));
                assert!((got - want).abs() < 1e-10, "{got} is not {want}");
                assert!((0.67..1.21).contains(&got), "singular value {got}");
            }
        }
    }
    let zero = Tensor::zeros(&[10, 10], DType::F32, &Device::Cpu);
    assert_eq!(
        orthogonalize(&zero).unwrap().to_vec::<f32>().unwrap(),
        [0.0; 100]
    );
}

/// Mean of (W A - B)^2 for random A [40, 64], B [33, 64], before and after 60 steps.
fn descend(rule: &recipe::Optimizer) -> (f64, f64, Vec<Vec<f32>>) {
    let params = model(4);
    let mut rng = Rng::new(5);
    let a = rng
        .normal(&[40, 64], 0.0, 1.0, DType::F32, &Device::Cpu)
        .unwrap();
    let truth = rng
        .normal(&[33, 40], 0.0, 1.0, DType::F32, &Device::Cpu)
        .unwrap();
    let b = truth.matmul(&a).unwrap();
    let mut optimizer = Optimizer::new(&params, rule).unwrap();
    let loss = || {
        let w = params.get("layer.weight").unwrap().get();
        let error = (&w.matmul(&a).unwrap() - &b).unwrap();
        error.square().unwrap().mean_all().unwrap()
    };
    let first = loss().item_f64().unwrap();
    for i in 0..60 {
        let mut gradients = loss().backward().unwrap();
        let grads = Grads::take(&params, &mut gradients);
        let rate = 1.0 - f64::from(i) / 60.0;
        optimizer.step(&grads, rate, 1.0).unwrap();
    }
    (first, loss().item_f64().unwrap(), values(&params))
}

#[test]
fn both_rules_solve_a_least_squares_problem_the_same_way_each_time() {
    for rule in [with_adamw(0.1, 0.0), with_muon(1.0, 0.0)] {
        let (first, last, values) = descend(&rule);
        assert!(last < 0.02 * first, "{rule:?}: from {first} to {last}");
        assert_eq!(values, descend(&rule).2, "{rule:?}");
    }
}

#[test]
fn a_missing_gradient_lets_moments_fade_and_weights_decay() {
    let params = model(6);
    let before = values(&params);
    let mut optimizer = Optimizer::new(&params, &with_adamw(1.0, 0.1)).unwrap();
    let none = Grads::from_vec(vec![None, None, None]);
    optimizer.step(&none, 0.5, 1.0).unwrap();
    let after = values(&params);
    for (got, was) in after[0].iter().zip(&before[0]) {
        assert!((got - 0.95 * was).abs() < 1e-6);
    }
    assert_eq!(after[2], before[2], "vectors do not decay");
}

#[test]
fn the_state_goes_on_where_it_was_saved() {
    for config in [with_adamw(0.1, 0.1), with_muon(0.1, 0.1)] {
        let params = model(7);
        let mut optimizer = Optimizer::new(&params, &config).unwrap();
        let mut rng = Rng::new(8);
        for _ in 0..3 {
            let grads = random_grads(&params, &mut rng);
            optimizer.step(&grads, 0.1, 1.0).unwrap();
        }
        let copy = model(99);
        for (to, from) in copy.iter().zip(params.iter()) {
            to.set(&from.get()).unwrap();
        }
        let mut resumed = Optimizer::new(&copy, &config).unwrap();
        resumed.load(moments(&optimizer), 3).unwrap();
        let grads = random_grads(&params, &mut rng);
        optimizer.step(&grads, 0.1, 1.0).unwrap();
        resumed.step(&grads, 0.1, 1.0).unwrap();
        assert_eq!(values(&params), values(&copy));
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let params = model(0);
    let mut optimizer = Optimizer::new(&params, &with_adamw(1.0, 0.1)).unwrap();
    let good = moments(&optimizer);
    let refuse = |optimizer: &mut Optimizer, edit: fn(&mut HashMap<String, Tensor>), part: &str| {
        let mut state = good.clone();
        edit(&mut state);
        let error = optimizer.load(state, 9).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(optimizer.steps(), 0);
    };
    refuse(
        &mut optimizer,
        |s| drop(s.remove("norm.weight.square")),
        "has no norm.weight.square",
    );
    refuse(
        &mut optimizer,
        |s| drop(s.insert("norm.weight.mean".into(), matrix(1, 1, &[0.0]))),
        "expected f32 [40]",
    );
    refuse(
        &mut optimizer,
        |s| drop(s.insert("x.mean".into(), matrix(1, 1, &[0.0]))),
        "x.mean",
    );
}

#[test]
fn parameters_must_be_f32_and_gradients_must_fit() {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 0, DType::BF16, &Device::Cpu);
    scope.weight("a.weight", &[2, 2], Init::Const(0.0)).unwrap();
    let error = Optimizer::new(&params, &with_adamw(1.0, 0.1))
        .err()
        .unwrap();
    assert!(error.to_string().contains("a.weight is bf16"), "{error}");

    let params = model(0);
    let mut optimizer = Optimizer::new(&params, &with_adamw(1.0, 0.1)).unwrap();
    let bad = Grads::from_vec(vec![Some(matrix(1, 1, &[1.0])), None, None]);
    let error = optimizer.step(&bad, 0.1, 1.0).unwrap_err().to_string();
    assert!(
        error.contains("layer.weight") && error.contains("[33, 40]"),
        "{error}"
    );
    let error = optimizer
        .step(&Grads::from_vec(vec![]), 0.1, 1.0)
        .unwrap_err();
    assert!(error.to_string().contains("0 gradients for 3"), "{error}");
}

#[test]
fn the_norm_is_that_of_all_gradients_together_and_clipping_limits_it() {
    let grads = Grads::from_vec(vec![
        Some(matrix(1, 2, &[3.0, 0.0])),
        None,
        Some(matrix(2, 1, &[0.0, -4.0])),
    ]);
    assert_eq!(grads.norm().unwrap(), 5.0);
    assert_eq!(clip_factor(5.0, 1.0), 0.2);
    assert_eq!(clip_factor(5.0, 6.0), 1.0);
    assert_eq!(clip_factor(5.0, 0.0), 1.0);

    // Long enough for several pieces and a tail; f32 sums would lose the last digits.
    let n = 100_003;
    let data: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let want: f64 = data.iter().map(|&x| f64::from(x).powi(2)).sum();
    let t = Tensor::from_vec(data, &[n], &Device::Cpu).unwrap();
    let got = Grads::from_vec(vec![Some(t)]).norm().unwrap();
    assert!((got / want.sqrt() - 1.0).abs() < 1e-12);
    let huge = matrix(1, 2, &[3e38, 3e38]);
    assert!(
        Grads::from_vec(vec![Some(huge)])
            .norm()
            .unwrap()
            .is_finite()
    );
}

#[test]
fn gradients_that_are_not_finite_are_named() {
    let params = model(0);
    let mut bad = vec![0.0f32; 40];
    bad[39] = f32::NAN;
    let bad = Tensor::from_vec(bad, &[40], &Device::Cpu).unwrap();
    let inf = Tensor::full(&[33, 40], f64::INFINITY, DType::F32, &Device::Cpu);
    let grads = Grads::from_vec(vec![Some(inf), None, Some(bad)]);
    assert!(!grads.norm().unwrap().is_finite());
    assert_eq!(
        grads.not_finite(&params).unwrap(),
        ["layer.weight", "norm.weight"]
    );
}

#[test]
fn micro_batches_add_up() {
    let (a, b) = (matrix(1, 2, &[1.0, 2.0]), matrix(1, 2, &[10.0, 20.0]));
    let mut sum = Grads::from_vec(vec![Some(a), None, Some(b.clone())]);
    sum.add(Grads::from_vec(vec![Some(b.clone()), Some(b), None]))
        .unwrap();
    let got: Vec<Vec<f32>> = sum
        .as_slice()
        .iter()
        .flatten()
        .map(|t| t.to_vec().unwrap())
        .collect();
    assert_eq!(got, [[11.0, 22.0], [10.0, 20.0], [10.0, 20.0]]);
    assert!(sum.add(Grads::from_vec(vec![])).is_err());
}
