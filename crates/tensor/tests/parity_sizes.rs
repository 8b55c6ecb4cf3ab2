//! Elementwise functions, conversions, reductions, scans and sorts on the GPU against the CPU, at sizes that make
//! kernels take their other paths: odd, unaligned, broadcast, long rows, many rows, ties and NaN.
//!
//! Skipped where there is no GPU; with WEFT_REQUIRE_GPU=1 that is a failure.

mod common;

use common::CPU;
use common::device::{FLOATS, assert_near, compare};
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::{DType, Result, Rng, Tensor};

#[test]
fn elementwise_sizes() {
    let Some(d) = gpu() else { return };
    for n in [0, 1, 2, 3, 7, 8, 9, 255, 1_000_003] {
        compare("exp", &d, &[&[n]], FLOATS, |x| x[0].exp());
        compare("mul", &d, &[&[n], &[n]], FLOATS, |x| x[0].mul(&x[1]));
    }
    compare("row broadcast", &d, &[&[257, 64], &[64]], FLOATS, |x| {
        x[0].add(&x[1])
    });
    compare(
        "column broadcast",
        &d,
        &[&[257, 64], &[257, 1]],
        FLOATS,
        |x| x[0].add(&x[1]),
    );
    compare(
        "both broadcast",
        &d,
        &[&[33, 1, 17, 5], &[1, 65, 1, 5]],
        FLOATS,
        |x| x[0].sub(&x[1]),
    );
    compare("scalar", &d, &[&[70_000, 3], &[]], FLOATS, |x| {
        x[0].div(&x[1])
    });
    compare("transposed", &d, &[&[130, 70]], FLOATS, |x| {
        x[0].transpose(0, 1)?.contiguous()
    });
    compare("batch transposed", &d, &[&[5, 3, 67, 129]], FLOATS, |x| {
        x[0].transpose(-1, -2)?.contiguous()
    });
    compare("permuted", &d, &[&[6, 33, 4, 64]], FLOATS, |x| {
        x[0].permute(&[0, 2, 1, 3])?.contiguous()
    });
    compare("reversed axes", &d, &[&[9, 10, 11, 12]], FLOATS, |x| {
        x[0].permute(&[3, 2, 1, 0])?.contiguous()
    });
    compare("narrow", &d, &[&[40, 37]], FLOATS, |x| {
        x[0].narrow(1, 3, 31)?.exp()
    });
    compare("cat", &d, &[&[70_000, 3], &[70_000, 5]], FLOATS, |x| {
        Tensor::cat(&[&x[0], &x[1]], 1)
    });
    compare("where", &d, &[&[64, 48], &[48]], FLOATS, |x| {
        x[0].gt(&x[1])?.where_cond(&x[0], &x[1])
    });
    compare("full", &d, &[&[3]], FLOATS, |x| {
        Tensor::full(&[1001], 0.1, x[0].dtype(), &x[0].device()).mul_scalar(3.0)
    });
}

#[test]
fn conversions() {
    let Some(d) = gpu() else { return };
    let special = vec![
        0.0,
        -0.0,
        0.5,
        1.5,
        2.5,
        -1.5,
        255.0,
        256.0,
        300.7,
        -3.2,
        1e30,
        -1e30,
        3.389e38,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1.0 + 2f64.powi(-8),
        1e-40,
        16_777_217.0,
    ];
    let n = special.len();
    let x = Tensor::from_vec(special, &[n], &CPU).unwrap();
    let all = [DType::F64, DType::F32, DType::BF16, DType::I64, DType::U8];
    for from in all {
        for to in all {
            let f = |x: &Tensor| x.to_dtype(from)?.to_dtype(to)?.to_f64_vec();
            let (want, got) = (f(&x).unwrap(), f(&x.to_device(&d).unwrap()).unwrap());
            let same = want
                .iter()
                .zip(&got)
                .all(|(w, g)| w == g || (w.is_nan() && g.is_nan()));
            assert!(same, "{from} to {to}: {got:?}, CPU {want:?}");
        }
    }
    // Just above a tie: rounded once, it goes up.
    let above = Tensor::scalar(1.0 + 2f64.powi(-8) + 2f64.powi(-40), &d).unwrap();
    let rounded = above.to_dtype(DType::BF16).unwrap();
    assert_eq!(rounded.item_f64().unwrap(), 1.0 + 2f64.powi(-7));
}

#[test]
fn reductions_and_scans() {
    let Some(d) = gpu() else { return };
    let shapes: [(&[usize], isize); 15] = [
        (&[1, 1_000_003], 1),
        (&[3, 20_000], 1),
        (&[70_001, 5], 1),
        (&[70_001, 5], 0),
        (&[2, 5, 70_001], 1),
        (&[3, 1000, 257], 1),
        (&[1, 5000, 3], 1),
        (&[33, 64], 1),
        (&[33, 65], 1),
        (&[33, 4096], 1),
        (&[4, 1, 7], 1),
        (&[4, 0, 7], 1),
        (&[1, 5000, 256], 1),
        (&[3, 40_000, 8], 1),
        (&[2, 300, 1028], 1),
    ];
    for (shape, axis) in shapes {
        // Against f64 on the CPU, rounded once: a running f32 sum over a million elements on the CPU is the worse
        // of the two.
        let run = |what: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            for &dtype in FLOATS {
                let x = Rng::new(7).normal(shape, 0.0, 1.0, DType::F64, &CPU);
                let x = x.unwrap().to_dtype(dtype).unwrap();
                let got = f(&x.to_device(&d).unwrap()).unwrap();
                let want = f(&x.to_dtype(DType::F64).unwrap()).unwrap();
                let want = want.to_dtype(got.dtype()).unwrap();
                assert_near(&format!("{what} {shape:?} axis {axis}"), &got, &want);
            }
        };
        run("sum", &|x| x.sum(&[axis], false));
        if shape[axis as usize] > 0 {
            run("max", &|x| x.max(axis, false));
            run("min", &|x| x.min(axis, true));
            run("argmax", &|x| x.argmax(axis, false));
            run("argmin", &|x| x.argmin(axis, false));
            run("softmax", &|x| x.softmax(axis));
            run("log_softmax", &|x| x.log_softmax(axis));
            run("logsumexp", &|x| x.logsumexp(axis, false));
            run("cummax", &|x| x.cummax(axis));
        }
        // Running sums of a million normal numbers lose digits in any order: positive numbers do not.
        run("cumsum", &|x| x.abs()?.cumsum(axis));
    }
    let ids = Rng::new(3).integers(&[13, 1000], -50, 50, &CPU).unwrap();
    let moved = ids.to_device(&d).unwrap();
    for f in [
        |x: &Tensor| x.sum(&[1], false),
        |x: &Tensor| x.max(0, false),
        |x: &Tensor| x.cumsum(1),
    ] {
        assert_eq!(
            f(&ids).unwrap().to_vec::<i64>().unwrap(),
            f(&moved).unwrap().to_vec::<i64>().unwrap()
        );
    }
}

#[test]
fn special_values_in_reductions() {
    let Some(d) = gpu() else { return };
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let rows = [
        [1.0, nan, 3.0, 2.0],
        [nan, 1.0, 2.0, 0.0],
        [-inf, -inf, -inf, -inf],
        [inf, 1.0, -inf, inf],
        [2.0, 2.0, 1.0, 2.0],
    ];
    let x = Tensor::from_vec(rows.concat(), &[5, 4], &CPU).unwrap();
    type Row = fn(&Tensor) -> Result<Tensor>;
    let ops: [(&str, Row); 8] = [
        ("max", |x| x.max(1, false)),
        ("min", |x| x.min(1, false)),
        ("argmax", |x| x.argmax(1, false)),
        ("argmin", |x| x.argmin(1, false)),
        ("softmax", |x| x.softmax(1)),
        ("logsumexp", |x| x.logsumexp(1, false)),
        ("ascending", |x| x.argsort(1, false)),
        ("descending", |x| x.argsort(1, true)),
    ];
    for (name, f) in ops {
        for dtype in FLOATS {
            let x = x.to_dtype(*dtype).unwrap();
            assert_near(
                name,
                &f(&x.to_device(&d).unwrap()).unwrap(),
                &f(&x).unwrap(),
            );
        }
    }
}

#[test]
fn sorting() {
    let Some(d) = gpu() else { return };
    for shape in [
        [3, 5000],
        [70_001, 7],
        [1, 100_003],
        [4, 2048],
        [4, 2049],
        [2, 1],
    ] {
        for dtype in [DType::F64, DType::F32, DType::BF16, DType::I64, DType::U8] {
            // Few distinct values: ties show whether the order is stable.
            let mut rng = Rng::new(11);
            let x = rng
                .normal(&shape, 3.0, 2.0, DType::F64, &CPU)
                .unwrap()
                .mul_scalar(8.0)
                .unwrap();
            let x = x.round().unwrap().to_dtype(dtype).unwrap();
            for descending in [false, true] {
                let order = |x: &Tensor| x.argsort(1, descending)?.to_vec::<i64>();
                let (want, got) = (
                    order(&x).unwrap(),
                    order(&x.to_device(&d).unwrap()).unwrap(),
                );
                assert!(
                    want == got,
                    "argsort {shape:?} {dtype} descending {descending}"
                );
            }
        }
    }
}
