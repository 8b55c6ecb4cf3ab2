//! The gradient graph itself: several outputs, checkpointing, scopes, depth, gradients inside a forward.

use weft_tensor::{
    Context, DType, Device, Function, Result, Rng, Tensor, apply, checkpoint, grad, no_grad,
};

const CPU: Device = Device::Cpu;

fn random(shape: &[usize], seed: u64) -> Tensor {
    Rng::new(seed)
        .normal(shape, 0.0, 1.0, DType::F64, &CPU)
        .unwrap()
}

fn leaf(shape: &[usize], seed: u64) -> Tensor {
    random(shape, seed).requires_grad().unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

/// (a + b, a - b) with an explicit way back that also counts which gradients it was asked for.
struct SumAndDifference;
impl Function for SumAndDifference {
    fn name(&self) -> &'static str {
        "sum_and_difference"
    }
    fn backward(&self, ctx: &Context, g: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let zero = Tensor::zeros(ctx.output_shape(0), DType::F64, &CPU);
        let (s, d) = (
            g[0].as_ref().unwrap_or(&zero),
            g[1].as_ref().unwrap_or(&zero),
        );
        Ok(vec![
            Some(s.add(d)?),
            if ctx.needs(1) { Some(s.sub(d)?) } else { None },
        ])
    }
}

#[test]
fn a_function_may_have_several_inputs_and_outputs() {
    let (a, b) = (leaf(&[3], 1), leaf(&[3], 2));
    let outputs = [
        a.detach().add(&b.detach()).unwrap(),
        a.detach().sub(&b.detach()).unwrap(),
    ];
    let y = apply(SumAndDifference, &[&a, &b], outputs);
    // sum(s * d) = sum(a^2 - b^2)
    let l = y[0].mul(&y[1]).unwrap().sum_all().unwrap();
    let g = l.backward().unwrap();
    for (leaf, factor) in [(&a, 2.0), (&b, -2.0)] {
        for (x, want) in list(&g.get(leaf).unwrap()).iter().zip(list(leaf)) {
            assert!((x - factor * want).abs() < 1e-14);
        }
    }
    // One output unused: its gradient is None, not garbage.
    let only = grad(&[&y[1].sum_all().unwrap()], None, &[&b], false).unwrap();
    assert_eq!(list(only[0].as_ref().unwrap()), [-1.0; 3]);
}

#[test]
fn a_wrong_gradient_shape_is_caught_and_named() {
    struct Wrong;
    impl Function for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }
        fn backward(&self, _: &Context, _: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![Some(Tensor::zeros(&[7], DType::F64, &CPU))])
        }
    }
    let x = leaf(&[2], 1);
    let [y] = apply(Wrong, &[&x], [x.detach()]);
    let e = y.sum_all().unwrap().backward().err().unwrap().to_string();
    assert!(
        e.contains("wrong") && e.contains("[7]") && e.contains("[2]"),
        "{e}"
    );
}

#[test]
fn no_grad_records_nothing_and_nests() {
    let x = leaf(&[2], 1);
    let y = no_grad(|| {
        no_grad(|| ());
        x.exp().unwrap()
    });
    assert!(!y.is_tracked());
    assert!(x.exp().unwrap().is_tracked());
    let e = y.sum_all().unwrap().backward().err().unwrap().to_string();
    assert!(e.contains("no output depends"), "{e}");
}

#[test]
fn a_graph_of_a_hundred_thousand_steps_is_run_and_dropped_without_recursion() {
    let x = leaf(&[1], 1);
    let mut y = x.clone();
    for _ in 0..100_000 {
        y = y.mul_scalar(1.0).unwrap();
    }
    let g = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(list(&g.get(&x).unwrap()), [1.0]);
    // Closures that hold tensors are dropped by the same loop.
    let mut y = x.clone();
    for _ in 0..100_000 {
        y = y
            .mul(&y.detach())
            .unwrap()
            .add(&x)
            .unwrap()
            .sigmoid()
            .unwrap();
    }
    drop(y);
}

fn layer(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(w)?
        .silu()?
        .matmul(w)?
        .rms_norm(&Tensor::ones(&[x.dim(-1)?], DType::F64, &CPU), 1e-5)
}

#[test]
fn checkpointing_changes_no_gradient() {
    let (x, w, v) = (leaf(&[4, 5], 1), leaf(&[5, 5], 2), leaf(&[5, 5], 3));
    let plain = |x: &Tensor| layer(&layer(x, &w)?, &v)?.square()?.sum_all();
    let saved = |x: &Tensor| {
        // w and v are captured leaves, not inputs.
        let (w, v) = (w.clone(), v.clone());
        let [mut y] = checkpoint(&[x], move |t| Ok([layer(&t[0], &w)?]))?;
        [y] = checkpoint(&[&y], move |t| Ok([layer(&t[0], &v)?]))?;
        y.square()?.sum_all()
    };
    let (a, b) = (
        plain(&x).unwrap().backward().unwrap(),
        saved(&x).unwrap().backward().unwrap(),
    );
    for t in [&x, &w, &v] {
        assert_eq!(list(&a.get(t).unwrap()), list(&b.get(t).unwrap()));
    }
    // Captured leaves are found even when no input needs a gradient, and when they alone are asked for.
    let data = x.detach();
    let (want, got) = (plain(&data).unwrap(), saved(&data).unwrap());
    let want = grad(&[&want], None, &[&w], false).unwrap();
    let got = grad(&[&got], None, &[&w], false).unwrap();
    assert_eq!(
        list(want[0].as_ref().unwrap()),
        list(got[0].as_ref().unwrap())
    );
}

#[test]
fn checkpointing_can_be_differentiated_twice() {
    let x = leaf(&[2, 3], 1);
    let w = leaf(&[3, 3], 2);
    let run = |save: bool| {
        let v = w.clone();
        let y = if save {
            checkpoint(&[&x, &w], |t| Ok([layer(&t[0], &t[1])?]))?[0].clone()
        } else {
            layer(&x, &v)?
        };
        let g = grad(
            &[&y.mul(&random(&[2, 3], 9))?.sum_all()?],
            None,
            &[&x],
            true,
        )?
        .remove(0);
        let g = g.ok_or(weft_tensor::Error::Gradient("none".into()))?;
        grad(&[&g.square()?.sum_all()?], None, &[&w], false)
    };
    let (a, b) = (
        run(false).unwrap().remove(0).unwrap(),
        run(true).unwrap().remove(0).unwrap(),
    );
    for (p, q) in list(&a).iter().zip(list(&b)) {
        assert!((p - q).abs() < 1e-10 * (1.0 + p.abs()), "{p} {q}");
    }
}

/// One step of learning inside the forward, as test-time training does; the outer gradient is checked by
/// finite differences.
#[test]
fn a_gradient_inside_a_forward_can_be_trained_through() {
    let (k, v, q) = (random(&[6, 3], 1), random(&[6, 2], 2), random(&[4, 3], 3));
    let outer = |w0: &Tensor| -> Result<Tensor> {
        // The inner weights must be tracked for the inner gradient, whether or not the outer one is wanted.
        let mut w = if w0.is_tracked() {
            w0.clone()
        } else {
            w0.requires_grad()?
        };
        for _ in 0..2 {
            let inner = k.matmul(&w)?.tanh()?.sub(&v)?.square()?.sum_all()?;
            let g = grad(&[&inner], None, &[&w], true)?.remove(0);
            let g = g.ok_or(weft_tensor::Error::Gradient("none".into()))?;
            w = w.sub(&g.mul_scalar(0.05)?)?;
        }
        q.matmul(&w)?.square()?.sum_all()
    };
    let w = leaf(&[3, 2], 4);
    let g = list(&outer(&w).unwrap().backward().unwrap().get(&w).unwrap());
    for (i, g) in g.iter().enumerate() {
        let at = |d: f64| {
            let mut v = list(&w);
            v[i] += d;
            outer(&Tensor::from_vec(v, &[3, 2], &CPU).unwrap())
                .unwrap()
                .item::<f64>()
                .unwrap()
        };
        let want = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((g - want).abs() < 1e-6 * (1.0 + want.abs()), "{g} {want}");
    }
}

#[test]
fn gradients_add_up_when_the_first_is_the_beginning_of_a_larger_block() {
    // The way back of cat gives x a view of the first half of its own gradient; the second use of x adds to it.
    let (x, y) = (leaf(&[3], 1), random(&[3], 2));
    let used_twice = x.mul_scalar(2.0).unwrap();
    let first = used_twice.square().unwrap();
    let joined = Tensor::cat(&[&used_twice, &y], 0).unwrap();
    let weight = random(&[6], 3);
    let loss = joined.mul(&weight).unwrap().sum_all().unwrap();
    let loss = loss.add(&first.sum_all().unwrap()).unwrap();
    let got = loss.backward().unwrap().get(&x).unwrap();
    let (x, w) = (list(&x), list(&weight));
    let want: Vec<f64> = (0..3).map(|i| 2.0 * w[i] + 8.0 * x[i]).collect();
    list(&got)
        .iter()
        .zip(&want)
        .for_each(|(g, w)| assert!((g - w).abs() < 1e-12, "{g} {w}"));
}
