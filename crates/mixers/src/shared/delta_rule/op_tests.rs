//! The operation on tensors: limits in which the mixers of the family become each other, second order, dtypes.

use weft_tensor::{DType, Device, Rng, Tensor, grad, no_grad};

use super::*;
use crate::golden::assert_close;

const B: usize = 2;
const T: usize = 70;
const H: usize = 2;
const K: usize = 8;
const V: usize = 12;

fn uniform(seed: u64, shape: &[usize], lo: f64, hi: f64) -> Tensor {
    Rng::new(seed)
        .uniform(shape, lo, hi, DType::F64, &Device::Cpu)
        .unwrap()
}

fn wide(x: &Tensor, width: usize) -> Tensor {
    let [b, t, h] = x.dims().unwrap();
    x.unsqueeze(-1)
        .unwrap()
        .broadcast_to(&[b, t, h, width])
        .unwrap()
}

/// One beta for both gates.
fn tied(decay: Option<Tensor>) -> Operands {
    let beta = uniform(2, &[B, T, H], 0.0, 1.0);
    Operands {
        qkv: uniform(1, &[B, T, H * (2 * K + V)], -1.0, 1.0),
        decay,
        erase: beta.clone(),
        write: beta,
        state: uniform(3, &[B, H, K, V], -1.0, 1.0),
    }
}

/// The same with a gate for each channel.
fn separate(x: &Operands, decay: Option<Tensor>) -> Operands {
    Operands {
        decay,
        erase: wide(&x.erase, K),
        write: wide(&x.write, V),
        ..x.clone()
    }
}

fn same(what: &str, a: &Operands, b: &Operands) {
    let ((o, s), (want_o, want_s)) = (delta_rule(a, CHUNK).unwrap(), delta_rule(b, CHUNK).unwrap());
    assert_close(&format!("{what}: o"), &o, &want_o, 1e-12);
    assert_close(&format!("{what}: state"), &s, &want_s, 1e-12);
}

#[test]
fn gdn2_with_one_gate_is_kda() {
    let g = uniform(4, &[B, T, H, K], -1.0, 0.0);
    let kda = tied(Some(g.clone()));
    same("b = w = beta", &separate(&kda, Some(g)), &kda);
}

#[test]
fn equal_channels_are_gated_deltanet() {
    let g = uniform(4, &[B, T, H], -1.0, 0.0);
    let gdn = tied(Some(g.clone()));
    same("KDA with equal channels", &tied(Some(wide(&g, K))), &gdn);
    same(
        "GDN-2 with equal channels",
        &separate(&gdn, Some(wide(&g, K))),
        &gdn,
    );
}

#[test]
fn no_decay_is_deltanet() {
    let deltanet = tied(None);
    for shape in [&[B, T, H][..], &[B, T, H, K]] {
        let zero = Tensor::zeros(shape, DType::F64, &Device::Cpu);
        same("g = 0", &tied(Some(zero)), &deltanet);
    }
}

/// beta = 2 turns the transition into a reflection: the same key twice, nothing written, restores the state.
#[test]
fn two_reflections_restore_the_state() {
    let key = uniform(5, &[B, 1, 2 * H * K], -1.0, 1.0);
    let key = Tensor::cat(
        &[
            &key,
            &Tensor::zeros(&[B, 1, H * V], DType::F64, &Device::Cpu),
        ],
        -1,
    )
    .unwrap();
    let two = Tensor::full(&[B, 2, H], 2.0, DType::F64, &Device::Cpu);
    let state = uniform(3, &[B, H, K, V], -1.0, 1.0);
    let x = Operands {
        qkv: Tensor::cat(&[&key, &key], 1).unwrap(),
        decay: None,
        erase: two.clone(),
        write: two,
        state: state.clone(),
    };
    let (_, after) = delta_rule(&x, CHUNK).unwrap();
    // Keys are unit up to the epsilon in their norm.
    assert_close("two reflections", &after, &state, 1e-5);
    let once = |x: &Tensor| x.narrow(1, 0, 1).unwrap();
    let x = Operands {
        qkv: once(&x.qkv),
        erase: once(&x.erase),
        write: once(&x.write),
        ..x
    };
    let (_, after) = delta_rule(&x, CHUNK).unwrap();
    let moved = crate::golden::relative_error(&after, &state).unwrap();
    assert!(moved > 0.1, "one reflection changes the state");
}

#[test]
fn nothing_erased_and_nothing_written_leaves_decay_alone() {
    let g = uniform(4, &[B, T, H, K], -0.1, 0.0);
    let zero = Tensor::zeros(&[B, T, H], DType::F64, &Device::Cpu);
    let x = Operands {
        erase: zero.clone(),
        write: zero,
        ..tied(Some(g.clone()))
    };
    let (_, state) = delta_rule(&x, CHUNK).unwrap();
    let decay = g
        .sum(&[1], false)
        .unwrap()
        .exp()
        .unwrap()
        .unsqueeze(-1)
        .unwrap();
    assert_close("b = w = 0", &state, &x.state.mul(&decay).unwrap(), 1e-12);
}

/// The gradient of a gradient, where the operation falls back on its reference.
#[test]
fn second_order_equals_that_of_the_recurrence() {
    let leaves = |x: Operands| {
        let leaf = |x: &Tensor| x.narrow(1, 0, 5).unwrap().detach().requires_grad().unwrap();
        let qkv = leaf(&x.qkv);
        (
            qkv.clone(),
            Operands {
                qkv,
                decay: x.decay.as_ref().map(leaf),
                erase: leaf(&x.erase),
                write: leaf(&x.write),
                ..x
            },
        )
    };
    let (qkv, x) = leaves(tied(Some(uniform(4, &[B, T, H, K], -1.0, 0.0))));
    let second = |o: Tensor| {
        let loss = o.square().unwrap().sum_all().unwrap();
        let first = grad(&[&loss], None, &[&qkv], true)
            .unwrap()
            .remove(0)
            .unwrap();
        let loss = first.square().unwrap().sum_all().unwrap();
        grad(&[&loss], None, &[&qkv], false)
            .unwrap()
            .remove(0)
            .unwrap()
    };
    let want = second(recurrence(&x).unwrap().0);
    assert_close(
        "second order",
        &second(delta_rule(&x, CHUNK).unwrap().0),
        &want,
        1e-10,
    );
}

/// bf16 operands are computed in f32: only their own rounding shows.
#[test]
fn half_precision_operands() {
    let x = tied(Some(uniform(4, &[B, T, H, K], -1.0, 0.0)));
    let to = |x: &Tensor, dtype| x.to_dtype(dtype).unwrap();
    let all = |dtype| Operands {
        qkv: to(&x.qkv, DType::BF16).to_dtype(dtype).unwrap(),
        decay: x.decay.as_ref().map(|g| to(g, DType::F32)),
        erase: to(&x.erase, DType::F32),
        write: to(&x.write, DType::F32),
        state: to(&x.state, DType::F32),
    };
    let ((half, half_state), (full, full_state)) = (
        delta_rule(&all(DType::BF16), CHUNK).unwrap(),
        delta_rule(&all(DType::F32), CHUNK).unwrap(),
    );
    assert_eq!(
        (half.dtype(), half_state.dtype()),
        (DType::BF16, DType::F32)
    );
    assert_close("state", &half_state, &full_state, 0.0);
    assert_close("o", &half, &full.to_dtype(DType::BF16).unwrap(), 0.0);
}

/// A state that is shared, as after a fork, is copied before the step writes to it; one that is not, is not.
#[test]
fn a_step_writes_in_place_only_what_it_owns() {
    let x = tied(None);
    let once = |x: &Tensor| x.narrow(1, 0, 1).unwrap();
    let token = |state| Operands {
        qkv: once(&x.qkv),
        decay: None,
        erase: once(&x.erase),
        write: once(&x.write),
        state,
    };
    no_grad(|| {
        let fork = x.state.clone();
        let before = fork.to_vec::<f64>().unwrap();
        let (_, own) = delta_rule_step(token(x.state.clone())).unwrap();
        assert_eq!(fork.to_vec::<f64>().unwrap(), before);
        let address = own.slice::<f64>().unwrap().as_ptr();
        let (_, again) = delta_rule_step(token(own)).unwrap();
        assert_eq!(again.slice::<f64>().unwrap().as_ptr(), address);
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused_in_one_sentence() {
    let good = tied(Some(uniform(4, &[B, T, H, K], -1.0, 0.0)));
    let bad = [
        Operands {
            qkv: good.qkv.narrow(2, 0, 3).unwrap(),
            ..good.clone()
        },
        Operands {
            erase: good.erase.narrow(1, 0, 3).unwrap(),
            ..good.clone()
        },
        Operands {
            decay: good.decay.as_ref().map(|g| g.narrow(3, 0, 3).unwrap()),
            ..good.clone()
        },
        Operands {
            state: good.state.narrow(0, 0, 1).unwrap(),
            ..good.clone()
        },
        Operands {
            qkv: good.qkv.narrow(1, 0, 0).unwrap(),
            ..good.clone()
        },
    ];
    for x in bad {
        let e = delta_rule(&x, CHUNK).err().unwrap().to_string();
        assert!(
            e.starts_with("delta_rule: qkv [") && e.contains("expected"),
            "{e}"
        );
    }
}

/// The form of devices without a kernel: values and the gradients of every operand against the recurrence.
#[test]
fn matrix_products_equal_the_recurrence() {
    let (h, hv) = (2, 4);
    let shape = |t, heads, width| [B, t, heads, width];
    let gates = |t: usize, lo: f64| -> Vec<(&str, Operands)> {
        let x = Operands {
            qkv: uniform(1, &[B, t, 2 * h * K + hv * V], -1.0, 1.0),
            decay: None,
            erase: uniform(2, &[B, t, hv], 0.0, 1.0),
            write: uniform(3, &[B, t, hv], 0.0, 1.0),
            state: uniform(4, &[B, hv, K, V], -1.0, 1.0),
        };
        let per_head = Operands {
            decay: Some(uniform(5, &[B, t, hv], lo, 0.0)),
            ..x.clone()
        };
        let per_channel = Operands {
            decay: Some(uniform(6, &shape(t, h, K), lo, 0.0)),
            erase: uniform(7, &shape(t, h, K), 0.0, 1.0),
            write: uniform(8, &shape(t, hv, V), 0.0, 1.0),
            ..x.clone()
        };
        vec![
            ("none", x),
            ("per head", per_head),
            ("per channel", per_channel),
        ]
    };
    for (t, chunk, lo) in [
        (1, 64, -1.0),
        (17, 64, -1.0),
        (70, 32, -1.0),
        (150, 64, -50.0),
    ] {
        for (name, x) in gates(t, lo) {
            let run = |f: &dyn Fn(&Operands) -> weft_tensor::Result<(Tensor, Tensor)>| {
                let list: Vec<Tensor> = x
                    .list()
                    .iter()
                    .map(|x| x.requires_grad().unwrap())
                    .collect();
                let (o, s) = f(&Operands::from_list(&list).unwrap()).unwrap();
                let weigh = |x: &Tensor, seed| {
                    x.mul(&uniform(seed, x.shape(), -1.0, 1.0))
                        .unwrap()
                        .sum_all()
                        .unwrap()
                };
                let loss = weigh(&o, 9).add(&weigh(&s, 10)).unwrap();
                let leaves: Vec<&Tensor> = list.iter().collect();
                let g = grad(&[&loss], None, &leaves, false).unwrap();
                [o, s]
                    .into_iter()
                    .chain(g.into_iter().flatten())
                    .collect::<Vec<_>>()
            };
            let (got, want) = (run(&|x| super::op::compose(x, chunk)), run(&recurrence));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_close(&format!("decay {name}, {t} tokens, {i}"), got, want, 1e-9);
            }
        }
    }
}
