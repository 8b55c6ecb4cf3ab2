//! Every primitive on the GPU against the CPU: the table of `common` in three dtypes with gradients of first and
//! second order, then sizes that make kernels take their other paths. All new memory is filled with NaN first.
//!
//! Skipped where there is no GPU; with WEFT_REQUIRE_GPU=1 that is a failure. WEFT_BIG=1 adds tensors of more
//! than 2^31 elements.

mod common;

use common::{CPU, gradient_norm, inputs, loss, table};
use weft_tensor::{DType, Device, Error, Result, Rng, Tensor, bf16, grad, memory};

fn gpu() -> Option<Device> {
    memory::poison(true);
    match Device::cuda(0) {
        Ok(d) => Some(d),
        Err(e) if std::env::var("WEFT_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

/// |got - want| / |want|, infinite if only one of two elements is NaN or infinite, or if the signs of two
/// infinities differ.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()));
    let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let (mut difference, mut size) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(&want) {
        if w.is_finite() {
            difference += (g - w) * (g - w);
            size += w * w;
        } else if g.is_nan() != w.is_nan() || (!w.is_nan() && g != w) {
            return f64::INFINITY;
        }
    }
    let d = (difference / f64::max(size, 1e-30)).sqrt();
    if d.is_nan() { f64::INFINITY } else { d }
}

/// What rounding may do: a few units in the last place times the depth of the composition. bf16 keeps 8 bits,
/// and the CPU and the GPU round at the same places but not always to the same side.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 5e-6,
        DType::BF16 => 1e-2,
        DType::I64 | DType::U8 => 0.0,
    }
}

fn assert_near(what: &str, got: &Tensor, want: &Tensor) {
    let d = distance(got, want);
    let tolerance = tolerance(want.dtype());
    assert!(
        d <= tolerance,
        "{what} {}: {d:e} from the CPU, {tolerance:e} allowed",
        want.dtype()
    );
}

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

/// An operation at sizes that the table does not reach.
fn compare(
    what: &str,
    device: &Device,
    shapes: &[&[usize]],
    dtypes: &[DType],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for &dtype in dtypes {
        let mut rng = Rng::new(7);
        let x: Vec<Tensor> = shapes
            .iter()
            .map(|s| {
                rng.normal(s, 0.0, 1.0, DType::F64, &CPU)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap()
            })
            .collect();
        let moved: Vec<Tensor> = x.iter().map(|t| t.to_device(device).unwrap()).collect();
        assert_near(
            &format!("{what} {shapes:?}"),
            &f(&moved).unwrap(),
            &f(&x).unwrap(),
        );
    }
}

const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16];
const F32: &[DType] = &[DType::F32];

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

#[test]
fn indices() {
    let Some(d) = gpu() else { return };
    let ids = |n: usize, size: i64, device: &Device| {
        Rng::new(n as u64)
            .integers(&[n], 0, size, &CPU)?
            .to_device(device)
    };
    for (rows, width, n) in [
        (7, 1, 10_000),
        (7, 33, 3000),
        (1000, 64, 5000),
        (50_000, 8, 100),
        (3, 300, 33),
    ] {
        compare("embedding", &d, &[&[rows, width]], FLOATS, |x| {
            x[0].embedding(&ids(n, rows as i64, &x[0].device())?)
        });
        // Sums of thousands of bf16 numbers are rounded once on the GPU and at every step on the CPU.
        compare(
            "index_add",
            &d,
            &[&[rows, width], &[n, width]],
            &FLOATS[..2],
            |x| x[0].index_add(0, &ids(n, rows as i64, &x[0].device())?, &x[1]),
        );
    }
    for (outer, size, n, inner) in [(3, 50, 5000, 2), (200, 9, 20, 100), (1, 100_000, 70_000, 1)] {
        let index = |device: &Device| {
            Rng::new(1)
                .integers(&[outer, n, inner], 0, size as i64, &CPU)?
                .to_device(device)
        };
        compare("gather", &d, &[&[outer, size, inner]], FLOATS, |x| {
            x[0].gather(1, &index(&x[0].device())?)
        });
        compare(
            "scatter_add",
            &d,
            &[&[outer, size, inner], &[outer, n, inner]],
            &FLOATS[..2],
            |x| x[0].scatter_add(1, &index(&x[0].device())?, &x[1]),
        );
    }
}

#[test]
fn the_same_bits_every_time() {
    let Some(d) = gpu() else { return };
    let mut rng = Rng::new(5);
    let x = rng
        .normal(&[100_000, 16], 0.0, 1.0, DType::F32, &d)
        .unwrap();
    let at = rng.integers(&[100_000], 0, 50, &d).unwrap();
    let w = Tensor::ones(&[16], DType::F32, &d).requires_grad().unwrap();
    let once = || {
        let sum = Tensor::zeros(&[50, 16], DType::F32, &d)
            .index_add(0, &at, &x)?
            .to_vec::<f32>()?;
        let norm = x.rms_norm(&w, 1e-5)?.sum_all()?;
        let dw = grad(&[&norm], None, &[&w], false)?.remove(0).unwrap();
        Ok::<_, Error>((sum, dw.to_vec::<f32>()?, norm.item::<f32>()?))
    };
    let first = once().unwrap();
    for _ in 0..5 {
        assert!(once().unwrap() == first);
    }
}

#[test]
fn products() {
    let Some(d) = gpu() else { return };
    let plain = |x: &[Tensor]| x[0].matmul(&x[1]);
    for [m, k, n] in [
        [1, 1, 1],
        [1, 64, 1],
        [5, 3, 7],
        [128, 256, 64],
        [33, 1000, 65],
        [2, 0, 3],
    ] {
        compare("matmul", &d, &[&[m, k], &[k, n]], FLOATS, plain);
        compare("A^T B^T", &d, &[&[k, m], &[n, k]], FLOATS, |x| {
            x[0].transpose(0, 1)?.matmul(&x[1].transpose(0, 1)?)
        });
        compare("batch", &d, &[&[6, m, k], &[6, k, n]], FLOATS, plain);
        compare("shared left", &d, &[&[m, k], &[6, k, n]], FLOATS, plain);
        compare("broadcast", &d, &[&[2, 1, m, k], &[3, k, n]], FLOATS, plain);
    }
    compare(
        "heads",
        &d,
        &[&[3, 20, 4, 16], &[3, 20, 4, 16]],
        FLOATS,
        |x| {
            let (q, k) = (x[0].transpose(1, 2)?, x[1].transpose(1, 2)?);
            q.matmul(&k.transpose(-1, -2)?)
        },
    );
    compare("many", &d, &[&[70_000, 2, 3], &[70_000, 3, 2]], F32, plain);
    compare("odd offset", &d, &[&[20, 19], &[17, 20]], FLOATS, |x| {
        x[0].narrow(1, 3, 15)?.matmul(&x[1].narrow(0, 1, 15)?)
    });
    compare("gaps", &d, &[&[20, 38], &[19, 20]], FLOATS, |x| {
        x[0].slice_axis(1, 1, 19, 2)?.matmul(&x[1])
    });
    for upper in [false, true] {
        compare(
            "tri_solve",
            &d,
            &[&[5, 64, 64], &[5, 64, 33]],
            &FLOATS[..2],
            |x| x[0].mul_scalar(0.05)?.tri_solve(&x[1], upper, true),
        );
    }
}

#[test]
fn fused_operations() {
    let Some(d) = gpu() else { return };
    let back = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>, x: &[Tensor]| {
        let leaves = x
            .iter()
            .map(|t| t.requires_grad())
            .collect::<Result<Vec<_>>>()?;
        let y = f(&leaves)?;
        let weights = y.detach().sin()?;
        let refs: Vec<&Tensor> = leaves.iter().collect();
        let g = grad(&[&y], Some(&[weights]), &refs, false)?;
        let mut all = vec![y.detach().reshape(&[y.count()])?];
        for g in g.iter().flatten() {
            all.push(g.reshape(&[g.count()])?);
        }
        Tensor::cat(&all.iter().collect::<Vec<_>>(), 0)
    };
    for shape in [
        [70_001, 8],
        [100, 768],
        [33, 1025],
        [9, 4096],
        [300, 13_000],
    ] {
        let (rows, n) = (shape[0], shape[1]);
        compare("rms_norm", &d, &[&shape, &[n]], FLOATS, |x| {
            back(&|x| x[0].rms_norm(&x[1], 1e-5), x)
        });
        compare("silu_mul", &d, &[&shape, &shape], FLOATS, |x| {
            back(&|x| x[0].silu_mul(&x[1]), x)
        });
        // The CPU keeps the log-sum-exp of bf16 rows in bf16, which is 4% of a probability.
        compare("cross_entropy", &d, &[&shape], &FLOATS[..2], |x| {
            let t = Rng::new(1)
                .integers(&[rows], -1, n as i64, &CPU)?
                .to_device(&x[0].device())?;
            back(&|x| x[0].cross_entropy(&t), x)
        });
    }
    compare("silu_mul unaligned", &d, &[&[1001], &[1001]], FLOATS, |x| {
        back(
            &|x| x[0].narrow(0, 1, 1000)?.silu_mul(&x[1].narrow(0, 1, 1000)?),
            x,
        )
    });
    for (b, t, c, k) in [
        (2, 63, 5, 4),
        (1, 64, 33, 4),
        (3, 65, 16, 2),
        (2, 200, 7, 3),
        (2, 1, 3, 4),
        (1, 130, 2, 9),
    ] {
        compare(
            "conv1d_silu",
            &d,
            &[&[b, t + k - 1, c], &[c, k]],
            FLOATS,
            |x| back(&|x| x[0].conv1d_silu(&x[1]), x),
        );
    }
}

#[test]
fn transfers_and_errors() {
    let Some(d) = gpu() else { return };
    // Larger than both staging buffers, odd.
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

#[test]
fn beyond_two_to_the_31() {
    let Some(d) = gpu() else { return };
    if std::env::var("WEFT_BIG").is_err() {
        return eprintln!("skipped: WEFT_BIG is not set");
    }
    // Position modulo 251 in bytes, then the last elements of what passes over them.
    let n = (1usize << 32) + 4099;
    let ones = Tensor::ones(&[n], DType::U8, &d);
    let last = |t: &Tensor| t.narrow(0, n - 3, 3).unwrap().to_f64_vec().unwrap();
    assert_eq!(last(&ones), [1.0; 3]);
    let y = ones.to_dtype(DType::BF16).unwrap();
    drop(ones);
    let z = y.mul_scalar(3.0).unwrap();
    assert_eq!(last(&z), [3.0; 3]);
    drop(y);
    // A strided view with more than 2^31 steps, and a reduction of it.
    let rows = n / 4099;
    let m = z
        .narrow(0, 0, rows * 4099)
        .unwrap()
        .reshape(&[rows, 4099])
        .unwrap();
    let mask = m.gt(&m.narrow(1, 0, 1).unwrap()).unwrap();
    assert_eq!(
        mask.max(1, false)
            .unwrap()
            .max(0, false)
            .unwrap()
            .item_f64()
            .unwrap(),
        0.0
    );
    drop(mask);
    let odd = m
        .narrow(1, 1, 4097)
        .unwrap()
        .add(&m.narrow(1, 0, 1).unwrap())
        .unwrap();
    assert_eq!(
        odd.narrow(0, rows - 1, 1)
            .unwrap()
            .max(1, false)
            .unwrap()
            .item_f64()
            .unwrap(),
        6.0
    );
    drop(odd);
    assert_eq!(
        m.sum(&[1], false)
            .unwrap()
            .min(0, false)
            .unwrap()
            .item_f64()
            .unwrap(),
        bf16::from_f64(3.0 * 4099.0).to_f64()
    );
}
