//! The kernels against the plain form in f64 on the CPU, on the GPU that WEFT_TEST_DEVICE names: values, log-sum-exp and
//! all gradients, over sizes around the borders of tiles, groups of heads, windows, sinks, rings, cut rows.

use weft_tensor::{DType, Device, Rng, Tensor, grad, memory};

use super::super::op::{KeyPositions, Visibility, attend, attend_at, plain};
use super::{Place, Places};
use crate::golden::assert_close;
use crate::laws::test_device;

/// T, S, Hq, Hkv.
type Sizes = [usize; 4];

fn gpu() -> Option<Device> {
    let device = test_device();
    if device == Device::Cpu {
        eprintln!("skipped: WEFT_TEST_DEVICE is not cuda");
        return None;
    }
    memory::poison(true);
    Some(device)
}

/// Normal numbers that bf16 holds, in f64 on the CPU.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let rng = &mut Rng::new(seed);
    let x = rng
        .normal(shape, 0.0, 1.0, DType::F64, &Device::Cpu)
        .unwrap();
    let x = x.to_dtype(DType::BF16).unwrap();
    x.to_dtype(DType::F64).unwrap()
}

fn runs(starts: &[i64], first_keys: &[i64], window: Option<i64>, sinks: i64) -> Visibility {
    Visibility {
        query_start: starts.to_vec(),
        keys: KeyPositions::Range(first_keys.to_vec()),
        window,
        sinks,
    }
}

/// Position p in slot p mod n, the last n of `seen`, and then `new` positions more.
fn ring(n: i64, seen: i64, new: i64) -> impl Iterator<Item = i64> {
    let slot = move |s| (0..seen).rev().find(|p| p % n == s).unwrap_or(-1);
    (0..n).map(slot).chain(seen..seen + new)
}

fn slots(starts: &[i64], slots: Vec<i64>, window: i64, sinks: i64) -> Visibility {
    Visibility {
        keys: KeyPositions::Slots(slots),
        ..runs(starts, &[], Some(window), sinks)
    }
}

fn setups() -> Vec<(Sizes, Visibility)> {
    let causal = |starts: &[i64]| runs(starts, &[0, 0], None, 0);
    let near = |window, sinks| runs(&[0, 0], &[0, 0], Some(window), sinks);
    let mut all: Vec<(Sizes, Visibility)> = [1, 2, 63, 64, 65, 127, 128, 129, 257]
        .map(|n| ([n, n, 4, 2], causal(&[0, 0])))
        .to_vec();
    all.extend([
        ([40, 130, 2, 2], causal(&[0, 40])),
        ([100, 256, 2, 2], causal(&[0, 0])),
        ([200, 300, 4, 2], causal(&[60, 60])),
        ([90, 100, 3, 1], causal(&[-10, 5])),
        ([20, 20, 2, 2], causal(&[-30, 0])),
        ([150, 150, 4, 1], near(1, 0)),
        ([300, 300, 4, 2], near(70, 0)),
        ([500, 500, 2, 1], near(100, 3)),
        ([200, 200, 2, 2], near(40, 100)),
        ([200, 333, 4, 2], runs(&[60, 133], &[-13, 0], Some(50), 20)),
        (
            [30, 50, 4, 2],
            slots(
                &[33, 0],
                ring(20, 33, 30).chain(ring(20, 0, 30)).collect(),
                20,
                0,
            ),
        ),
        (
            [150, 350, 2, 1],
            slots(
                &[533, 7],
                ring(200, 533, 150).chain(ring(200, 7, 150)).collect(),
                200,
                5,
            ),
        ),
    ]);
    all
}

/// What nobody sees becomes NaN.
fn spoil(x: &Tensor, sees: &Visibility, queries: usize) -> Tensor {
    let [b, s, h, d] = x.dims().unwrap();
    let at = |row: usize, key: usize| match &sees.keys {
        KeyPositions::Range(first) => first[row] + key as i64,
        KeyPositions::Slots(slots) => slots[row * s + key],
    };
    let seen = |row: usize, key: usize| {
        let at = at(row, key);
        (0..queries as i64).any(|t| {
            let query = sees.query_start[row] + t;
            let near = sees.window.is_none_or(|w| query - at < w) || at < sees.sinks;
            0 <= at && at <= query && near
        })
    };
    let list: Vec<f64> = (0..b * s)
        .map(|i| if seen(i / s, i % s) { 0.0 } else { f64::NAN })
        .collect();
    let nan = Tensor::from_vec(list, &[b, s, 1, 1], &Device::Cpu).unwrap();
    x.add(&nan).unwrap().broadcast_to(&[b, s, h, d]).unwrap()
}

#[test]
fn values_and_gradients_equal_the_plain_form() {
    let Some(gpu) = gpu() else { return };
    for (seed, ([t, s, heads, kv_heads], sees)) in setups().into_iter().enumerate() {
        for d in super::HEAD_DIMS {
            let label = format!("T {t}, S {s}, heads {heads}/{kv_heads} of {d}");
            let draw = |n: u64, shape: &[usize]| random(shape, 10 * seed as u64 + n);
            let q = draw(0, &[2, t, heads, d]);
            let k = spoil(&draw(1, &[2, s, kv_heads, d]), &sees, t);
            let v = spoil(&draw(2, &[2, s, kv_heads, d]), &sees, t);
            let (wo, wl) = (draw(3, &[2, t, heads, d]), draw(4, &[2, heads, t]));
            let scale = 0.8 / (d as f64).sqrt();
            let blind = sees.query_start.iter().any(|&start| start < 0);
            let run = |on_gpu: bool| {
                let put = |x: &Tensor| {
                    let dtype = if on_gpu { DType::BF16 } else { DType::F64 };
                    let device = if on_gpu { gpu } else { Device::Cpu };
                    let x = x.to_dtype(dtype).unwrap().to_device(&device).unwrap();
                    x.requires_grad().unwrap()
                };
                let (q, k, v) = (put(&q), put(&k), put(&v));
                let f = if on_gpu { attend } else { plain };
                let (o, lse) = f(&q, &k, &v, &sees, scale).unwrap();
                let mut loss = o
                    .mul(
                        &wo.to_dtype(o.dtype())
                            .unwrap()
                            .to_device(&o.device())
                            .unwrap(),
                    )
                    .unwrap()
                    .to_dtype(lse.dtype())
                    .unwrap()
                    .sum_all()
                    .unwrap();
                // A log-sum-exp of -inf has no gradient.
                if !blind {
                    let wl = wl.to_dtype(lse.dtype()).unwrap();
                    let part = lse.mul(&wl.to_device(&lse.device()).unwrap()).unwrap();
                    loss = loss.add(&part.sum_all().unwrap()).unwrap();
                }
                let grads = grad(&[&loss], None, &[&q, &k, &v], false).unwrap();
                let mut all = vec![o, lse];
                all.extend(grads.into_iter().map(Option::unwrap));
                all
            };
            let (found, wanted) = (run(true), run(false));
            let again = run(true);
            // bf16 keeps 8 bits, of o, of the weights, and of their gradients.
            let tolerances = [6e-3, 1e-5, 1e-2, 1e-2, 1e-2];
            let names = ["o", "lse", "dq", "dk", "dv"];
            for i in 0..5 {
                let label = format!("{label}: {}", names[i]);
                assert_close(&label, &found[i], &wanted[i], tolerances[i]);
                let bits = |x: &Tensor| x.to_f64_vec().unwrap();
                let same = bits(&found[i])
                    .iter()
                    .map(|x| x.to_bits())
                    .eq(bits(&again[i]).iter().map(|x| x.to_bits()));
                assert!(same, "{label}: two runs differ");
            }
        }
    }
}

#[test]
fn few_queries_equal_the_plain_form() {
    let Some(gpu) = gpu() else { return };
    let every_third = |_| (0..600).map(|s| if s % 3 == 0 { -1 } else { 599 - s });
    let setups: Vec<(Sizes, Visibility)> = vec![
        ([1, 1, 4, 2], runs(&[0, 0], &[0, 0], None, 0)),
        ([1, 1000, 8, 2], runs(&[999, 3], &[0, 0], None, 0)),
        ([8, 3000, 16, 2], runs(&[2900, 2900], &[0, 0], None, 0)),
        ([3, 700, 6, 2], runs(&[-2, 690], &[0, 0], None, 0)),
        ([2, 5000, 4, 1], runs(&[4990, 900], &[0, 0], Some(300), 4)),
        (
            [1, 600, 8, 1],
            slots(&[599, 300], (0..2).flat_map(every_third).collect(), 400, 0),
        ),
    ];
    for (seed, ([t, s, heads, kv_heads], sees)) in setups.into_iter().enumerate() {
        for (d, dtype, tolerances) in super::HEAD_DIMS.into_iter().flat_map(|d| {
            [
                (d, DType::BF16, [6e-3, 1e-5]),
                (d, DType::F32, [1e-5, 1e-5]),
            ]
        }) {
            let draw = |n: u64, shape: &[usize]| random(shape, 10 * seed as u64 + n);
            let q = draw(0, &[2, t, heads, d]);
            let k = spoil(&draw(1, &[2, s, kv_heads, d]), &sees, t);
            let v = spoil(&draw(2, &[2, s, kv_heads, d]), &sees, t);
            let scale = 0.8 / (d as f64).sqrt();
            let wanted = plain(&q, &k, &v, &sees, scale).unwrap();
            let put = |x: &Tensor| x.to_dtype(dtype).unwrap().to_device(&gpu).unwrap();
            let (q, k, v) = (put(&q), put(&k), put(&v));
            let places = Places {
                query_start: Place::Each(
                    Tensor::from_slice(&sees.query_start, &[2], &gpu).unwrap(),
                ),
                ..Places::of(&sees, &gpu).unwrap()
            };
            let label = format!("T {t}, S {s}, heads {heads}/{kv_heads} of {d}, {dtype}");
            for found in [
                attend(&q, &k, &v, &sees, scale).unwrap(),
                attend_at(&q, &k, &v, &places, scale).unwrap(),
            ] {
                assert_eq!(found.0.dtype(), dtype);
                assert_close(&format!("{label}: o"), &found.0, &wanted.0, tolerances[0]);
                assert_close(&format!("{label}: lse"), &found.1, &wanted.1, tolerances[1]);
            }
        }
    }
}

#[test]
fn more_heads_than_a_grid_has_rows() {
    let Some(gpu) = gpu() else { return };
    let (b, t, d) = (33000, 9, 64);
    let sees = runs(&vec![0; b], &vec![0; b], None, 0);
    let some = random(&[64, t, 2, d], 1);
    let put = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_device(&gpu).unwrap();
    let copies = |x: &Tensor| Tensor::cat(&vec![x; b.div_ceil(64)], 0).unwrap();
    let x = copies(&put(&some)).narrow(0, 0, b).unwrap();
    let (o, _) = attend(&x, &x, &x, &sees, 0.1).unwrap();
    let first = runs(&[0; 64], &[0; 64], None, 0);
    let (wanted, _) = plain(&some, &some, &some, &first, 0.1).unwrap();
    let last = (b / 64 - 1) * 64;
    for from in [0, last] {
        let part = o.narrow(0, from, 64).unwrap();
        assert_close(&format!("from row {from}"), &part, &wanted, 6e-3);
    }
}

#[test]
fn calls_without_a_kernel_are_refused_or_composed() {
    let Some(gpu) = gpu() else { return };
    let put = |shape: &[usize]| random(shape, 1).to_dtype(DType::BF16).unwrap();
    let x = put(&[1, 9, 2, 64]).to_device(&gpu).unwrap();
    let sees = runs(&[0], &[0], None, 0);
    let places = Places::of(&sees, &gpu).unwrap();
    let error = attend_at(&x, &x, &x, &places, 1.0).unwrap_err().to_string();
    assert!(error.contains("9 queries"), "{error}");
    let y = put(&[1, 9, 2, 24]);
    let wanted = plain(
        &y.to_dtype(DType::F64).unwrap(),
        &y.to_dtype(DType::F64).unwrap(),
        &y.to_dtype(DType::F64).unwrap(),
        &sees,
        0.2,
    )
    .unwrap();
    let y = y.to_device(&gpu).unwrap();
    let (o, _) = attend(&y, &y, &y, &sees, 0.2).unwrap();
    assert_close("composed", &o, &wanted.0, 6e-3);
}
