//! Every differentiable primitive against finite differences in f64, in first and in second order.
//! A new primitive is one more line of the table in `common`.

mod common;

use common::{CPU, gradient_norm, inputs, loss, table};
use weft_tensor::{Rng, Tensor, grad};

/// Central differences of a scalar function with respect to input i.
fn differences(x: &[Tensor], i: usize, mut f: impl FnMut(&[Tensor]) -> f64) -> Vec<f64> {
    let base = x[i].to_vec::<f64>().unwrap();
    let h = 1e-5;
    let mut at = |j: usize, d: f64| {
        let mut v = base.clone();
        v[j] += d;
        let mut moved = x.to_vec();
        moved[i] = Tensor::from_vec(v, x[i].shape(), &CPU).unwrap();
        f(&moved)
    };
    (0..base.len())
        .map(|j| (at(j, h) - at(j, -h)) / (2.0 * h))
        .collect()
}

fn assert_close(name: &str, order: &str, got: &Tensor, want: &[f64]) {
    let got = got.to_vec::<f64>().unwrap();
    // Central differences with h = 1e-5 carry about h^2 + eps / h = 1e-10 .. 1e-9 of error, times the size.
    let size = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!(
            (g - w).abs() < 2e-8 * size,
            "{name}: {order} gradient {g} against {w} (all: {got:?} {want:?})"
        );
    }
}

#[test]
fn first_order_gradients_equal_finite_differences() {
    for case in table() {
        let x = inputs(&case, &mut Rng::new(1));
        let mut w = None;
        let leaves: Vec<Tensor> = x.iter().map(|t| t.requires_grad().unwrap()).collect();
        let l = loss(case.3, &leaves, &mut w).unwrap();
        let refs: Vec<&Tensor> = leaves.iter().collect();
        let grads = grad(&[&l], None, &refs, false).unwrap();
        for (i, g) in grads.iter().enumerate() {
            let want = differences(&x, i, |x| {
                loss(case.3, x, &mut w).unwrap().item::<f64>().unwrap()
            });
            assert_close(
                case.0,
                "first",
                g.as_ref().unwrap_or(&x[i].zeros_like()),
                &want,
            );
        }
    }
}

#[test]
fn second_order_gradients_equal_finite_differences() {
    for case in table() {
        let x = inputs(&case, &mut Rng::new(2));
        let mut w = None;
        let leaves: Vec<Tensor> = x.iter().map(|t| t.requires_grad().unwrap()).collect();
        let norm = gradient_norm(case.3, &leaves, &mut w, true)
            .unwrap()
            .unwrap();
        let refs: Vec<&Tensor> = leaves.iter().collect();
        // A function that is linear in everything has a constant gradient: its norm has no graph.
        let grads = if norm.is_tracked() {
            grad(&[&norm], None, &refs, false).unwrap()
        } else {
            vec![None; x.len()]
        };
        for (i, g) in grads.iter().enumerate() {
            let want = differences(&x, i, |x| {
                let x: Vec<Tensor> = x.iter().map(|t| t.requires_grad().unwrap()).collect();
                gradient_norm(case.3, &x, &mut w, false)
                    .unwrap()
                    .unwrap()
                    .item::<f64>()
                    .unwrap()
            });
            assert_close(
                case.0,
                "second",
                g.as_ref().unwrap_or(&x[i].zeros_like()),
                &want,
            );
        }
    }
}
