//! The layer against the authors' code, the power law of the feedback, and its limits.

use serde_json::json;
use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::ENTRY;
use super::feedback::{Past, blocks, recurrence};
use crate::golden::{Case, assert_close, cases};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Params, Scope};
use crate::registry::Options;

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F64, &Device::Cpu)
}

/// LayerNorm in front of the mixer: part of the authors' layer, of the block here.
fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let centred = x.sub(&x.mean(&[-1], true).unwrap()).unwrap();
    let variance = centred.square().unwrap().mean(&[-1], true).unwrap();
    let unit = centred
        .mul(&variance.add_scalar(1e-5).unwrap().rsqrt().unwrap())
        .unwrap();
    unit.mul(weight).unwrap().add(bias).unwrap()
}

fn built(case: &Case) -> (Box<dyn Mixer>, Params) {
    let settings = json!({
        "num_heads": case.info["n_heads"], "num_kv_heads": case.info["n_kv_heads"],
        "gamma_max": case.info["gamma_max"], "rope": case.info["forward_rope"],
    });
    let source =
        |name: &str, _: &[usize]| Ok(case.tensor(&format!("p/{name}"))?.to_dtype(DType::F64)?);
    let mut params = Params::new();
    let mut scope = Scope::from_source(&mut params, &source, &Device::Cpu);
    let width = case.number("D").unwrap() as usize;
    (
        (ENTRY.build)(&Options::new(width, settings), &mut scope).unwrap(),
        params,
    )
}

fn layer(case: &Case) {
    let tol = case.number("tol").unwrap();
    let (mixer, params) = built(case);
    for form in [Form::Reference, Form::Chunk] {
        let label = |what: &str| format!("{} {form}: {what}", case.label);
        let leaf = |name: &str| case.tensor(name).unwrap().requires_grad().unwrap();
        let (x, weight, bias) = (leaf("x"), leaf("p/ln.weight"), leaf("p/ln.bias"));
        let [b, t, d] = x.dims().unwrap();
        let mut state = mixer.init_state(b, DType::F64).unwrap();
        let normed = layer_norm(&x, &weight, &bias);
        let y = mixer
            .forward(&normed, &mut state, &Call::with_form(form))
            .unwrap();
        let y = x.add(&y).unwrap();
        assert_close(&label("y"), &y, case.tensor("y").unwrap(), tol);
        let s = state
            .get("s")
            .unwrap()
            .narrow(1, 0, t)
            .unwrap()
            .reshape(&[b, t, d])
            .unwrap();
        assert_close(&label("s"), &s, case.tensor("s").unwrap(), tol);
        let loss = y.mul(case.tensor("w").unwrap()).unwrap().sum_all().unwrap();
        let (mut names, mut leaves) = (vec!["x", "ln.weight", "ln.bias"], vec![x, weight, bias]);
        names.extend(params.iter().map(|p| p.name()));
        leaves.extend(params.iter().map(|p| p.get()));
        let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
        for (name, g) in names.into_iter().zip(grads) {
            let want = case.tensor(&format!("grad.{name}")).unwrap();
            // gamma_bias and its gradient are stored in f32. That of k's bias nearly cancels, as softmax does not see a
            // shift of all scores: with large weights it keeps fewer digits than its terms.
            let tol = match (want.dtype(), name) {
                (DType::F32, _) => 1e-6,
                (_, "mixer.k_proj.bias") => 10.0 * tol,
                _ => tol,
            };
            assert_close(&label(&format!("grad.{name}")), &g.unwrap(), want, tol);
        }
    }
}

/// A column of (I - B)^-1 with uniform routing and a constant gain, by either form.
fn resolvent_column(tokens: usize, column: usize, gain: f64, form: Form) -> Tensor {
    let mut f = vec![0.0; tokens];
    f[column] = 1.0;
    let f = Tensor::from_vec(f, &[1, tokens, 1], &Device::Cpu).unwrap();
    let (gamma, keys) = (
        Tensor::full(&[1, tokens, 1], gain, DType::F64, &Device::Cpu),
        zeros(&[1, tokens, 1]),
    );
    let past = Past::new(&zeros(&[1, 0, 1]), &zeros(&[1, 0, 1]), &[0]).unwrap();
    let run = if form == Form::Reference {
        recurrence
    } else {
        blocks
    };
    run(&f, &gamma, (&keys, &keys), &past)
        .unwrap()
        .reshape(&[tokens])
        .unwrap()
}

fn tail(case: &Case, gain: f64) {
    let want = case.tensor("resolvent_col5").unwrap();
    for form in [Form::Reference, Form::Chunk] {
        let got = resolvent_column(want.count(), 5, gain, form);
        let label = format!("{} {form}", case.label);
        assert_close(&label, &got, want, case.number("tol").unwrap());
    }
}

#[test]
fn golden_sessa() {
    let (mut layers, mut tails) = (0, 0);
    for case in cases("sessa").unwrap() {
        match case.label.rsplit_once(":tail") {
            Some((_, gain)) => {
                tail(&case, gain.parse().unwrap());
                tails += 1;
            }
            None => {
                layer(&case);
                layers += 1;
            }
        }
    }
    assert!(layers > 0 && tails > 0, "{layers} layers, {tails} tails");
}

/// The influence of a token falls like lag^(gamma - 1): the paper's central claim.
#[test]
fn the_tail_is_a_power_law() {
    for gain in [0.3, 0.5, 0.9] {
        let s = resolvent_column(512, 5, gain, Form::Chunk)
            .to_f64_vec()
            .unwrap();
        let slope = (s[500] / s[100]).ln() / (500f64 / 100.0).ln();
        assert!(
            (slope - (gain - 1.0)).abs() < 0.02,
            "gain {gain}: slope {slope}"
        );
    }
}

/// The solution is the sum over all numbers of hops, s = f + B f + B^2 f + ..
#[test]
fn the_solution_is_the_sum_of_all_hops() {
    let (t, d) = (20, 6);
    let normal = |seed, shape: &[usize]| {
        Rng::new(seed)
            .normal(shape, 0.0, 1.0, DType::F64, &Device::Cpu)
            .unwrap()
    };
    let (f, q, k) = (
        normal(1, &[1, t, d]),
        normal(2, &[1, t, d]),
        normal(3, &[1, t, d]),
    );
    let gamma = normal(4, &[1, t, 1]).tanh().unwrap();
    let past = Past::new(&zeros(&[1, 0, d]), &zeros(&[1, 0, d]), &[0]).unwrap();
    let run = |f: &Tensor| blocks(f, &gamma, (&q, &k), &past).unwrap();
    let s = run(&f);
    // B, column by column: the solution of (I - B) x = e is e + B e + ..; B s = s - f.
    let eye = Tensor::eye(t, DType::F64, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let resolvent = run(&eye);
    let b = eye
        .sub(
            &resolvent
                .squeeze(0)
                .unwrap()
                .tri_solve(&eye.squeeze(0).unwrap(), false, true)
                .unwrap(),
        )
        .unwrap();
    let (mut term, mut sum) = (f.clone(), f.clone());
    for _ in 1..t {
        term = b.matmul(&term).unwrap();
        sum = sum.add(&term).unwrap();
    }
    assert_close("hops", &sum, &s, 1e-10);
    let largest = b
        .abs()
        .unwrap()
        .sum(&[-1], false)
        .unwrap()
        .to_f64_vec()
        .unwrap();
    assert!(
        largest.iter().all(|row| *row <= 1.0 + 1e-12),
        "rows of |B|: {largest:?}"
    );
}

/// Without gain the feedback is gone: s = f, and the layer is gated attention.
#[test]
fn without_gain_it_is_attention() {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 3, DType::F64, &Device::Cpu);
    let mixer = (ENTRY.build)(&Options::new(8, json!({"num_heads": 2})), &mut scope).unwrap();
    let x = Rng::new(5)
        .normal(&[1, 12, 8], 0.0, 1.0, DType::F64, &Device::Cpu)
        .unwrap();
    let outputs = || {
        let mut state = mixer.init_state(1, DType::F64).unwrap();
        let y = mixer.forward(&x, &mut state, &Call::default()).unwrap();
        (y, state)
    };
    let with = outputs().0;
    for name in ["mixer.gamma_bias", "mixer.gamma_ctx.weight"] {
        let p = params.get(name).unwrap();
        p.set(&zeros(p.shape())).unwrap();
    }
    let (without, _) = outputs();
    // Feedback keys can no longer matter.
    let p = params.get("mixer.proj_fb.weight").unwrap();
    p.set(&p.get().mul_scalar(-7.0).unwrap()).unwrap();
    assert_close("feedback keys", &outputs().0, &without, 0.0);
    assert!(crate::golden::relative_error(&with, &without).unwrap() > 1e-3);
}
