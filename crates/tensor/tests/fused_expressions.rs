//! Expressions in one pass against the same in single operations: values and gradients of first and second order, with
//! broadcasting, views and mixed dtypes, on the CPU and, where there is one, on the GPU.

mod common;

use common::CPU;
use common::device::distance;
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::fuse::Expr;
use weft_tensor::{DType, Device, Result, Rng, Tensor, grad};

/// An expression, and the same by operations.
type Pair = (
    &'static str,
    &'static [&'static [usize]],
    fn(&[Expr]) -> Expr,
    fn(&[Tensor]) -> Result<Tensor>,
);

const PAIRS: &[Pair] = &[
    (
        "decay gate",
        &[&[2, 5, 3, 16], &[3, 16], &[3, 1]],
        |x| -((x[0].clone() + x[1].clone()).softplus() * x[2].exp()),
        |x| (&x[0] + &x[1])?.softplus()?.mul(&x[2].exp()?)?.neg(),
    ),
    (
        "gate",
        &[&[7, 33]],
        |x| x[0].sigmoid() * 2.0,
        |x| x[0].sigmoid()?.mul_scalar(2.0),
    ),
    (
        "gated product",
        &[&[4, 40], &[4, 40]],
        |x| x[0].silu() * x[1].clone(),
        |x| x[0].silu()?.mul(&x[1]),
    ),
    (
        "everything",
        &[&[3, 1, 17], &[2, 17], &[1]],
        |x| {
            let (a, b, c) = (x[0].clone(), x[1].clone(), x[2].clone());
            let p = (a.abs() + 1.0).ln() + (b.clone() * b.clone() + 0.5).sqrt();
            let q = a.tanh() - c.exp() / (b.abs() + 2.0);
            p.max(&q) * a.min(&b) + (c * 0.25 + 3.0).recip()
        },
        |x| {
            let (a, b, c) = (&x[0], &x[1], &x[2]);
            let p = a
                .abs()?
                .add_scalar(1.0)?
                .ln()?
                .add(&b.square()?.add_scalar(0.5)?.sqrt()?)?;
            let q = a.tanh()?.sub(&c.exp()?.div(&b.abs()?.add_scalar(2.0)?)?)?;
            p.maximum(&q)?
                .mul(&a.minimum(b)?)?
                .add(&c.affine(0.25, 3.0)?.recip()?)
        },
    ),
];

/// The value, its gradients for fixed output gradients, and the gradients of their norm.
fn orders(leaves: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let refs: Vec<&Tensor> = leaves.iter().collect();
    let y = f(leaves).unwrap();
    let weight = y.detach().sin().unwrap();
    let first = grad(&[&y], Some(&[weight]), &refs, true).unwrap();
    let first: Vec<Tensor> = first.into_iter().map(Option::unwrap).collect();
    let mut norm = first[0].square().unwrap().sum_all().unwrap();
    for g in &first[1..] {
        norm = norm.add(&g.square().unwrap().sum_all().unwrap()).unwrap();
    }
    let second = grad(&[&norm], None, &refs, false).unwrap();
    let all = [y]
        .into_iter()
        .chain(first)
        .chain(second.into_iter().flatten());
    all.map(|t| t.detach().to_device(&CPU).unwrap()).collect()
}

fn leaves(shapes: &[&[usize]], dtype: DType, device: &Device, spread: bool) -> Vec<Tensor> {
    let mut rng = Rng::new(5);
    let draw = |shape: &&[usize]| {
        let x = rng
            .normal(shape, 0.0, 1.0, DType::F64, &CPU)?
            .to_dtype(dtype)?;
        // The same values in a view with gaps.
        let x = match spread {
            true => x
                .unsqueeze(-1)?
                .repeat_interleave(-1, 3)?
                .to_device(device)?
                .select(-1, 1)?,
            false => x.to_device(device)?,
        };
        x.requires_grad()
    };
    shapes.iter().map(draw).collect::<Result<_>>().unwrap()
}

#[test]
fn one_pass_equals_single_operations() {
    let devices = [Some(CPU), gpu()];
    for device in devices.into_iter().flatten() {
        for &(name, shapes, expression, operations) in PAIRS {
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
                for spread in [false, true] {
                    let want = orders(&leaves(shapes, dtype, &CPU, false), operations);
                    let got = orders(&leaves(shapes, dtype, &device, spread), |x| {
                        Tensor::fused(name, &x.iter().collect::<Vec<_>>(), dtype, expression)
                    });
                    assert_eq!(got.len(), want.len(), "{name}");
                    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                        let d = distance(g, w);
                        assert!(d < tolerance, "{name} {dtype} {device}, value {i}: {d:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn inputs_of_several_dtypes_are_rounded_once() {
    let devices = [Some(CPU), gpu()];
    for device in devices.into_iter().flatten() {
        // More than one piece of work, and an odd end.
        let mut rng = Rng::new(1);
        let x = rng
            .normal(&[301, 333], 0.0, 2.0, DType::BF16, &CPU)
            .unwrap();
        let b = rng.normal(&[333], 0.0, 1.0, DType::F32, &CPU).unwrap();
        let [x, b] = [x, b].map(|t| t.to_device(&device).unwrap().requires_grad().unwrap());
        let y = Tensor::fused("gate", &[&x, &b], DType::F32, |v| {
            (v[0].clone() + v[1].clone()).sigmoid()
        });
        let y = y.unwrap();
        let wide = |t: &Tensor| {
            t.detach()
                .to_device(&CPU)
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap()
        };
        let want = (&wide(&x) + &wide(&b)).unwrap().sigmoid().unwrap();
        assert!(distance(&wide(&y), &want) < 1e-6);
        let grads = grad(&[&y], Some(&[y.ones_like()]), &[&x, &b], false).unwrap();
        let slope = want.sub(&want.square().unwrap()).unwrap();
        let dx = grads[0].as_ref().unwrap();
        assert_eq!(dx.dtype(), DType::BF16);
        assert!(distance(&wide(dx), &slope) < 4e-3);
        let db = wide(grads[1].as_ref().unwrap());
        assert!(distance(&db, &slope.sum(&[0], false).unwrap()) < 1e-5);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &CPU);
    let add = |x: &[Expr]| x[0].clone() + x[1].clone();
    let text = |r: Result<Tensor>| r.unwrap_err().to_string();
    let e = text(Tensor::fused(
        "sum",
        &[&ones(&[2]), &ones(&[3])],
        DType::F32,
        add,
    ));
    assert!(e.contains("sum") && e.contains("[2]"), "{e}");
    let ids = Tensor::ones(&[2], DType::I64, &CPU);
    let e = text(Tensor::fused("sum", &[&ones(&[2]), &ids], DType::F32, add));
    assert!(e.contains("i64"), "{e}");
    assert_eq!(
        Tensor::fused("sum", &[&ones(&[0, 2]), &ones(&[2])], DType::F32, add)
            .unwrap()
            .shape(),
        [0, 2]
    );
}
