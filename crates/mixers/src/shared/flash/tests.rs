//! The tiled kernels against the plain form: values, log-sum-exp and all gradients, over sizes around the
//! borders of tiles and panels, groupings of heads, windows, sinks, rings and empty slots.

use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::op::{KeyPositions, Visibility, attend, compose, plain};
use crate::golden::assert_close;

fn random(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    Rng::new(seed)
        .normal(shape, 0.0, 1.0, DType::F64, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

type Attend = fn(&Tensor, &Tensor, &Tensor, &Visibility, f64) -> crate::Result<(Tensor, Tensor)>;

struct Setup {
    label: String,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    /// Of queries and keys, and of values.
    dims: [usize; 2],
    /// Factor on the scores.
    scale: f64,
    sees: Visibility,
}

fn causal(starts: &[i64]) -> Visibility {
    Visibility {
        query_start: starts.to_vec(),
        keys: KeyPositions::Range(vec![0; starts.len()]),
        window: None,
        sinks: 0,
    }
}

fn setups() -> Vec<Setup> {
    let mut all = vec![];
    let mut add = |label: &str, queries, keys, (heads, kv_heads), sees| {
        let label = format!("{label} T={queries} S={keys} heads={heads}/{kv_heads}");
        all.push(Setup {
            label,
            queries,
            keys,
            heads,
            kv_heads,
            dims: [20, 12],
            scale: 0.3,
            sees,
        });
    };
    for n in [1, 2, 15, 16, 17, 63, 64, 65, 127, 300] {
        add("causal", n, n, (4, 2), causal(&[0, 0]));
    }
    for heads in [(4, 4), (4, 1), (3, 3)] {
        add("grouping", 37, 37, heads, causal(&[0, 0]));
    }
    add(
        "a cache in front, rows of different length",
        5,
        90,
        (2, 1),
        causal(&[70, 3]),
    );
    add("decoding", 1, 200, (8, 2), causal(&[150, 199]));
    add("keys that nobody sees", 3, 130, (2, 2), causal(&[0, 40]));
    for (window, sinks) in [(1, 0), (16, 0), (40, 3)] {
        let sees = Visibility {
            window: Some(window),
            sinks,
            ..causal(&[0, 0])
        };
        add(
            &format!("window {window}, {sinks} sinks"),
            150,
            150,
            (2, 1),
            sees,
        );
    }
    // A ring of 20 slots in rotated order with empty ones, then the new tokens; row 1 has seen nothing.
    let ring =
        |seen: i64| (0..20).map(move |s| (0..seen).rev().find(|p| p % 20 == s).unwrap_or(-1));
    let slots = [33i64, 0]
        .into_iter()
        .flat_map(|seen| ring(seen).chain(seen..seen + 30))
        .collect();
    let sees = Visibility {
        query_start: vec![33, 0],
        keys: KeyPositions::Slots(slots),
        window: Some(20),
        sinks: 0,
    };
    add("ring", 30, 50, (4, 2), sees);
    // Row 0 sees nothing at all: left padding at negative positions.
    add("blind rows", 4, 20, (2, 2), causal(&[-10, 5]));
    all.extend(decoding_setups());
    all
}

/// A few queries on a cache of several chunks: rows of different length, windows with and without sinks that lie in
/// another chunk, rings, groups of heads, head sizes around the vector width, scores beyond the range of exp.
fn decoding_setups() -> Vec<Setup> {
    let windowed = |starts: &[i64], window, sinks| Visibility {
        window: Some(window),
        sinks,
        ..causal(starts)
    };
    let empty_slots = |starts: &[i64]| Visibility {
        // Every third slot is empty, and the rest are in reverse order.
        keys: KeyPositions::Slots(
            (0..2 * 600)
                .map(|s| if s % 3 == 0 { -1 } else { 599 - s % 600 })
                .collect(),
        ),
        ..causal(starts)
    };
    let sees = [
        ("ragged rows", causal(&[3, 590])),
        ("a row that sees nothing", causal(&[-7, 300])),
        ("window", windowed(&[400, 598], 100, 0)),
        ("window and sinks", windowed(&[599, 300], 30, 4)),
        ("empty slots", empty_slots(&[598, 130])),
    ];
    let mut all = vec![];
    for (label, sees) in &sees {
        for (queries, heads, kv_heads) in [(1, 4, 4), (1, 8, 1), (1, 6, 2), (3, 4, 2), (8, 1, 1)] {
            for (dims, scale) in [([16, 16], 0.3), ([33, 7], 0.3), ([5, 64], 20.0)] {
                all.push(Setup {
                    label: format!(
                        "decode, {label} T={queries} heads={heads}/{kv_heads} {dims:?} {scale}"
                    ),
                    queries,
                    keys: 600,
                    heads,
                    kv_heads,
                    dims,
                    scale,
                    sees: sees.clone(),
                });
            }
        }
    }
    // The same sizes of heads and scores in the tiles of many queries.
    for (dims, scale) in [([16, 16], 0.3), ([33, 7], 0.3), ([5, 64], 20.0)] {
        all.push(Setup {
            label: format!("tiles {dims:?} {scale}"),
            queries: 70,
            keys: 100,
            heads: 3,
            kv_heads: 1,
            dims,
            scale,
            sees: windowed(&[30, 2], 40, 3),
        });
    }
    all
}

#[test]
fn tiles_equal_the_plain_form_with_all_gradients() {
    for s in setups() {
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
            let leaf = |shape: &[usize], seed| random(shape, seed, dtype).requires_grad().unwrap();
            let [dim, value_dim] = s.dims;
            let q = leaf(&[2, s.queries, s.heads, dim], 1);
            let k = leaf(&[2, s.keys, s.kv_heads, dim], 2);
            let v = leaf(&[2, s.keys, s.kv_heads, value_dim], 3);
            let run = |f: Attend| {
                let (o, lse) = f(&q, &k, &v, &s.sees, s.scale).unwrap();
                let wo = random(o.shape(), 4, dtype);
                let loss = o.mul(&wo).unwrap().sum_all().unwrap();
                // lse is -infinity where nothing is seen: only finite rows enter the loss.
                let finite = lse
                    .gt(&Tensor::full(&[], -1e30, dtype, &Device::Cpu))
                    .unwrap();
                let kept = finite.where_cond(&lse, &lse.zeros_like()).unwrap();
                let wl = random(lse.shape(), 5, dtype);
                let loss = loss
                    .add(&kept.mul(&wl).unwrap().sum_all().unwrap())
                    .unwrap();
                let g = grad(&[&loss], None, &[&q, &k, &v], false).unwrap();
                let g: Vec<Tensor> = g.into_iter().flatten().collect();
                (o.detach(), kept.detach(), g)
            };
            let (o2, lse2, g2) = run(plain);
            for (form, f) in [("tiles", attend as Attend), ("matrices", compose)] {
                let (o, lse, g) = run(f);
                let label = |what: &str| format!("{} {dtype} {form}: {what}", s.label);
                assert_close(&label("o"), &o, &o2, tolerance);
                assert_close(&label("lse"), &lse, &lse2, tolerance);
                for (name, (g, w)) in ["dq", "dk", "dv"].iter().zip(g.iter().zip(&g2)) {
                    assert_close(&label(name), g, w, 10.0 * tolerance);
                }
            }
        }
    }
}

#[test]
fn hidden_keys_may_hold_nan() {
    let q = random(&[1, 70, 2, 8], 1, DType::F32);
    let clean = random(&[1, 140, 2, 8], 2, DType::F32);
    let nan = Tensor::full(&[1, 70, 2, 8], f64::NAN, DType::F32, &Device::Cpu);
    let dirty = Tensor::cat(&[&clean.narrow(1, 0, 70).unwrap(), &nan], 1)
        .unwrap()
        .requires_grad()
        .unwrap();
    let (want, _) = attend(&q, &clean, &clean, &causal(&[0]), 1.0).unwrap();
    for f in [attend as Attend, compose] {
        let (o, _) = f(&q, &dirty, &dirty, &causal(&[0]), 1.0).unwrap();
        // The guarded sum runs in another order than the fast one: equal to rounding only.
        assert_close("NaN under the mask", &o, &want, 1e-6);
        let g = grad(&[&o.sum_all().unwrap()], None, &[&dirty], false)
            .unwrap()
            .remove(0)
            .unwrap();
        assert!(g.all_finite().unwrap());
    }
}

#[test]
fn second_order_goes_through_the_plain_form() {
    let leaf = |seed| {
        random(&[1, 6, 2, 4], seed, DType::F64)
            .requires_grad()
            .unwrap()
    };
    let (q, k, v) = (leaf(1), leaf(2), leaf(3));
    let run = |f: Attend| {
        let (o, _) = f(&q, &k, &v, &causal(&[0]), 0.5).unwrap();
        let g = grad(
            &[&o.square().unwrap().sum_all().unwrap()],
            None,
            &[&q],
            true,
        )
        .unwrap()
        .remove(0)
        .unwrap();
        grad(
            &[&g.square().unwrap().sum_all().unwrap()],
            None,
            &[&k],
            false,
        )
        .unwrap()
        .remove(0)
        .unwrap()
    };
    assert_close("second order", &run(attend), &run(plain), 1e-10);
}
