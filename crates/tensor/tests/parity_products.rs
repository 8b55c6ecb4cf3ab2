//! Products, indices and fused operations on the GPU against the CPU, at sizes that the table does not reach.
//!
//! Skipped where there is no GPU; with WEFT_REQUIRE_GPU=1 that is a failure. WEFT_BIG=1 adds tensors of more
//! than 2^31 elements.

mod common;

use common::CPU;
use common::device::{F32, FLOATS, compare};
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::{DType, Device, Error, Result, Rng, Tensor, bf16, grad};

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
        // bf16 logits have losses in f32: see `parity_training`.
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
