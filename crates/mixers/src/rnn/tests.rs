//! The fused scan against the plain form where the laws do not reach: unbounded activations, clipped gradients,
//! many rows and heads; the identities between the cells; the bidirectional wrapper.

use serde_json::json;
use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::elman::Elman;
use super::gru::{Gru, Reset};
use super::jordan::Jordan;
use super::lstm::{Gates, Lstm};
use super::{Activation, Bidirectional, elman, jacobian_norms, truncated};
use crate::golden::assert_close;
use crate::params::{Params, Scope};
use crate::registry::{self, Options};
use crate::shared::recurrent::{Cell, How, Operands, recurrence, scan};
use crate::state::State;

fn normal(seed: u64, shape: &[usize], std: f64) -> Tensor {
    Rng::new(seed)
        .normal(shape, 0.0, std, DType::F64, &Device::Cpu)
        .unwrap()
}

/// Random operands of a cell, as leaves.
fn operands<C: Cell>(cell: &C, [b, t, n]: [usize; 3]) -> Operands {
    let s = cell.sizes();
    let leaf = |x: Tensor| x.requires_grad().unwrap();
    let products = [Some(s.first), s.second].into_iter().flatten().enumerate();
    let weights = products.map(|(i, [n_in, n_out])| {
        leaf(normal(
            10 + i as u64,
            &[n, n_out, n_in],
            0.5 / (n_in as f64).sqrt(),
        ))
    });
    Operands {
        x: leaf(normal(1, &[b, t, n, s.input], 1.0)),
        weights: weights.collect(),
        params: (s.params > 0).then(|| leaf(normal(2, &[n, s.params], 0.3))),
        state: leaf(normal(3, &[b, n, s.state], 0.5)),
    }
}

fn leaves(x: &Operands) -> Vec<&Tensor> {
    std::iter::once(&x.x)
        .chain(&x.weights)
        .chain(&x.params)
        .chain([&x.state])
        .collect()
}

/// Values and gradients of sum(o w) + sum(state w) in both forms.
fn compare<C: Cell>(name: &str, cell: &C, sizes: [usize; 3], how: &How) {
    let x = operands(cell, sizes);
    let run = |run: fn(&C, &Operands, &How) -> weft_tensor::Result<(Tensor, Tensor)>| {
        let (o, state) = run(cell, &x, how).unwrap();
        let weighted = |x: &Tensor, seed| {
            x.mul(&normal(seed, x.shape(), 1.0))
                .unwrap()
                .sum_all()
                .unwrap()
        };
        let loss = weighted(&o, 20).add(&weighted(&state, 21)).unwrap();
        (o, state, grad(&[&loss], None, &leaves(&x), false).unwrap())
    };
    let (got, want) = (run(scan), run(recurrence));
    assert_close(&format!("{name}: o"), &got.0, &want.0, 1e-12);
    assert_close(&format!("{name}: state"), &got.1, &want.1, 1e-12);
    for (i, (g, w)) in got.2.iter().zip(&want.2).enumerate() {
        let label = format!("{name}: gradient of operand {i}");
        assert_close(&label, g.as_ref().unwrap(), w.as_ref().unwrap(), 1e-11);
    }
}

/// Every cell, with every option that changes its arithmetic.
fn each(mut check: impl FnMut(&str, &dyn Fn([usize; 3], &How))) {
    use Activation::{Identity, Relu, Sigmoid, Tanh};
    for activation in [Sigmoid, Tanh, Relu, Identity] {
        for leak in [1.0, 0.3] {
            let cell = Elman {
                units: 6,
                activation,
                leak,
            };
            let name = format!("elman {activation:?} {leak}");
            check(&name, &|sizes, how| compare(&name, &cell, sizes, how));
        }
    }
    let jordan = Jordan {
        units: 7,
        outputs: 5,
        activation: Tanh,
    };
    check("jordan", &|sizes, how| {
        compare("jordan", &jordan, sizes, how)
    });
    for gates in [Gates::Both, Gates::Input, Gates::Coupled] {
        for (peepholes, input_squash, output_squash) in
            [(false, Tanh, Tanh), (true, Sigmoid, Identity)]
        {
            let cell = Lstm {
                units: 6,
                gates,
                peepholes,
                input_squash,
                output_squash,
            };
            let name = format!("lstm {gates:?} {peepholes}");
            check(&name, &|sizes, how| compare(&name, &cell, sizes, how));
        }
    }
    for reset in [Reset::After, Reset::Before] {
        let cell = Gru { units: 6, reset };
        let name = format!("gru {reset:?}");
        check(&name, &|sizes, how| compare(&name, &cell, sizes, how));
    }
}

#[test]
fn the_scan_equals_the_plain_form() {
    // Whole and broken blocks of rows, one segment and several, one head and several.
    for sizes in [[1, 1, 1], [3, 20, 2], [6, 70, 1], [4, 130, 3]] {
        each(|_, check| check(sizes, &How::default()));
    }
}

#[test]
fn clipped_gradients_and_padding_equal_the_plain_form() {
    let lengths = [0, 70, 33, 69, 64];
    each(|_, check| {
        check(
            [5, 70, 2],
            &How {
                clip: Some(0.05),
                lengths: None,
            },
        );
        check(
            [5, 70, 2],
            &How {
                clip: Some(0.05),
                lengths: Some(&lengths),
            },
        );
    });
}

#[test]
fn a_clip_changes_gradients_only_where_it_is_reached() {
    let cell = Gru {
        units: 6,
        reset: Reset::After,
    };
    let x = operands(&cell, [2, 40, 1]);
    let gradient = |clip| {
        let (o, _) = scan(
            &cell,
            &x,
            &How {
                clip,
                lengths: None,
            },
        )
        .unwrap();
        let loss = o.square().unwrap().sum_all().unwrap();
        grad(&[&loss], None, &[&x.x], false)
            .unwrap()
            .remove(0)
            .unwrap()
    };
    let free = gradient(None);
    assert_close("a wide clip", &gradient(Some(1e9)), &free, 0.0);
    let difference = gradient(Some(1e-3)).sub(&free).unwrap().abs().unwrap();
    assert!(
        difference
            .max(0, false)
            .unwrap()
            .to_f64_vec()
            .unwrap()
            .iter()
            .any(|d| *d > 1e-3)
    );
}

#[test]
fn second_order_gradients_come_from_the_plain_form() {
    let cell = Lstm {
        units: 4,
        gates: Gates::Both,
        peepholes: true,
        input_squash: Activation::Tanh,
        output_squash: Activation::Tanh,
    };
    let x = operands(&cell, [2, 9, 1]);
    let twice = |run: fn(&Lstm, &Operands, &How) -> weft_tensor::Result<(Tensor, Tensor)>| {
        let (o, _) = run(&cell, &x, &How::default()).unwrap();
        let loss = o.square().unwrap().sum_all().unwrap();
        let g = grad(&[&loss], None, &[&x.weights[0]], true)
            .unwrap()
            .remove(0)
            .unwrap();
        let loss = g.square().unwrap().sum_all().unwrap();
        grad(&[&loss], None, &[&x.x], false)
            .unwrap()
            .remove(0)
            .unwrap()
    };
    assert_close("second order", &twice(scan), &twice(recurrence), 1e-10);
}

/// A forget gate that is always open makes the cell of 1997; a reset gate that is always open makes the two GRUs
/// one.
#[test]
fn open_gates_reduce_one_cell_to_another() {
    let (t, n) = (12, 4);
    let blocks = |x: &Tensor, wanted: &[usize]| {
        let parts: Vec<Tensor> = wanted
            .iter()
            .map(|&i| x.narrow(-1, i * n, n).unwrap())
            .collect();
        Tensor::cat(&parts.iter().collect::<Vec<_>>(), -1).unwrap()
    };
    let lstm = |gates| Lstm {
        units: n,
        gates,
        peepholes: false,
        input_squash: Activation::Tanh,
        output_squash: Activation::Tanh,
    };
    let x = operands(&lstm(Gates::Both), [2, t, 1]);
    let shift = Tensor::cat(
        &[
            &Tensor::zeros(&[n], DType::F64, &Device::Cpu),
            &Tensor::full(&[n], 60.0, DType::F64, &Device::Cpu),
            &Tensor::zeros(&[2 * n], DType::F64, &Device::Cpu),
        ],
        0,
    )
    .unwrap();
    let open = Operands {
        x: x.x.add(&shift).unwrap(),
        ..x.clone()
    };
    let weights = x.weights[0].transpose(1, 2).unwrap();
    let old = Operands {
        x: blocks(&x.x, &[0, 2, 3]),
        weights: vec![blocks(&weights, &[0, 2, 3]).transpose(1, 2).unwrap()],
        ..x.clone()
    };
    let (a, _) = scan(&lstm(Gates::Both), &open, &How::default()).unwrap();
    let (b, _) = scan(&lstm(Gates::Input), &old, &How::default()).unwrap();
    assert_close("f = 1", &a, &b, 1e-12);

    let x = operands(
        &Gru {
            units: n,
            reset: Reset::After,
        },
        [2, t, 1],
    );
    let bias = Tensor::zeros(&[1, n], DType::F64, &Device::Cpu);
    let r_open = Tensor::cat(
        &[
            &Tensor::full(&[n], 60.0, DType::F64, &Device::Cpu),
            &Tensor::zeros(&[2 * n], DType::F64, &Device::Cpu),
        ],
        0,
    )
    .unwrap();
    let after = Operands {
        x: x.x.add(&r_open).unwrap(),
        params: Some(bias),
        ..x.clone()
    };
    let before = Operands {
        weights: vec![
            x.weights[0].narrow(1, 0, 2 * n).unwrap(),
            x.weights[0].narrow(1, 2 * n, n).unwrap(),
        ],
        params: None,
        ..after.clone()
    };
    let (a, _) = scan(
        &Gru {
            units: n,
            reset: Reset::After,
        },
        &after,
        &How::default(),
    )
    .unwrap();
    let (b, _) = scan(
        &Gru {
            units: n,
            reset: Reset::Before,
        },
        &before,
        &How::default(),
    )
    .unwrap();
    assert_close("r = 1", &a, &b, 1e-12);
}

fn built(name: &str, d: usize, table: serde_json::Value) -> (Box<dyn crate::Mixer>, Params) {
    let mut params = Params::new();
    let entry = registry::find(name).unwrap();
    let mut scope = Scope::random(&mut params, 7, DType::F64, &Device::Cpu);
    (
        (entry.build)(&Options::new(d, table), &mut scope).unwrap(),
        params,
    )
}

#[test]
fn a_window_as_long_as_the_text_is_the_full_way_back() {
    let (mixer, params) = built("gru", 6, json!({}));
    let x = normal(4, &[2, 24, 6], 1.0);
    let leaf = params.get("weight_hh").unwrap().get();
    let gradient = |window| {
        let mut state = mixer.init_state(2, DType::F64).unwrap();
        let y = truncated(&*mixer, &x, &mut state, window).unwrap();
        assert_eq!(state.positions(), [24, 24]);
        let loss = y.square().unwrap().sum_all().unwrap();
        (
            y,
            grad(&[&loss], None, &[&leaf], false)
                .unwrap()
                .remove(0)
                .unwrap(),
        )
    };
    let (whole, long, short) = (gradient(24), gradient(100), gradient(5));
    assert_close("outputs", &short.0, &whole.0, 1e-12);
    assert_close("a longer window", &long.1, &whole.1, 0.0);
    let e = crate::golden::relative_error(&short.1, &whole.1).unwrap();
    assert!(e > 1e-3, "a window of 5 changed the gradient by {e}");
}

#[test]
fn linear_jacobians_follow_the_spectral_radius() {
    for radius in [0.5, 1.0, 1.5] {
        let (mixer, params) = built("elman", 6, json!({"activation": "identity"}));
        let w = params.get("weight_hh").unwrap();
        w.set(&w.get().mul_scalar(radius).unwrap()).unwrap();
        let state: State = mixer.init_state(1, DType::F64).unwrap();
        let norms = jacobian_norms(&*mixer, &normal(5, &[1, 50, 6], 1.0), &state, "state").unwrap();
        for (i, norm) in norms.iter().enumerate() {
            let want = f64::powi(radius, i as i32);
            assert!(
                (norm / want - 1.0).abs() < 1e-9,
                "radius {radius}, {i} steps: {norm}, not {want}"
            );
        }
    }
}

#[test]
fn the_bidirectional_wrapper_is_two_mixers_and_not_causal() {
    let options = Options::new(6, json!({}));
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 7, DType::F64, &Device::Cpu);
    let both = Bidirectional::new(&elman::ENTRY, &options, &mut scope).unwrap();
    let x = normal(6, &[2, 10, 6], 1.0);
    let y = both.forward(&x, None).unwrap();

    // A later token changes an earlier output.
    let changed = Tensor::cat(
        &[&x.narrow(1, 0, 9).unwrap(), &normal(8, &[2, 1, 6], 1.0)],
        1,
    )
    .unwrap();
    let moved = both.forward(&changed, None).unwrap().sub(&y).unwrap();
    let first = moved
        .select(1, 0)
        .unwrap()
        .abs()
        .unwrap()
        .to_f64_vec()
        .unwrap();
    assert!(
        first.iter().any(|d| *d > 1e-12),
        "the last token did not reach the first output"
    );

    // Swapping the two directions' weights and the direction of time reverses the outputs.
    for p in params.iter().filter(|p| p.name().starts_with("forward.")) {
        let twin = params
            .get(&p.name().replace("forward.", "backward."))
            .unwrap();
        let (a, b) = (p.get(), twin.get());
        p.set(&b).unwrap();
        twin.set(&a).unwrap();
    }
    let mirrored = both
        .forward(&x.flip(1).unwrap(), None)
        .unwrap()
        .flip(1)
        .unwrap();
    assert_close("mirrored", &mirrored, &y, 1e-12);

    // Rows are reversed within their own length; padding may hold anything.
    let lengths = [10, 4];
    let nan = Tensor::full(&[1, 6, 6], f64::NAN, DType::F64, &Device::Cpu);
    let short = x.narrow(0, 1, 1).unwrap().narrow(1, 0, 4).unwrap();
    let dirty = Tensor::cat(
        &[
            &x.narrow(0, 0, 1).unwrap(),
            &Tensor::cat(&[&short, &nan], 1).unwrap(),
        ],
        0,
    )
    .unwrap();
    let y = both.forward(&dirty, Some(&lengths)).unwrap();
    let alone = both.forward(&short, None).unwrap();
    assert_close(
        "a short row",
        &y.narrow(0, 1, 1).unwrap().narrow(1, 0, 4).unwrap(),
        &alone,
        1e-12,
    );
    assert!(both.forward(&x, Some(&[10, 11])).is_err());
}
