//! The kernels, on the GPU that WEFT_TEST_DEVICE names, against the recurrence in f64 of the same rounded operands.

use serde_json::json;
use weft_tensor::{DType, Device, Rng, Tensor, grad, memory};

use super::super::CHUNK;
use super::super::op::each_sequence;
use super::super::{Operands, delta_rule, delta_rule_packed, recurrence};
use crate::golden::assert_close;
use crate::laws::{Subject, test_device};
use crate::mixer::Form;
use crate::registry::{Options, find};

/// Products of bf16 with f32 sums.
const TOLERANCE: f64 = 1e-2;

pub(super) fn gpu() -> Option<Device> {
    memory::poison(true);
    let device = test_device();
    if device == Device::Cpu {
        eprintln!("skipped: WEFT_TEST_DEVICE is not cuda");
        return None;
    }
    Some(device)
}

/// How fine a gate is: none, one number for a value head, one for each channel of a value head or of a key head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fine {
    Absent,
    Head,
    Channel,
    KeyChannel,
}
use Fine::{Absent, Channel, Head, KeyChannel};

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) heads: [usize; 2],
    pub(super) dims: [usize; 2],
    pub(super) gates: [Fine; 3],
    /// Gates at their ends: decays of -50 and 0, erase and write gates of 0 and 1.
    pub(super) extreme: bool,
}

impl Case {
    /// Operands in f64, qkv rounded to bf16 and the rest to f32; `sequences` states.
    pub(super) fn operands(&self, sequences: usize) -> Operands {
        let [heads, value_heads] = self.heads;
        let [key_dim, value_dim] = self.dims;
        let mut rng = Rng::new(7);
        let mut draw = |shape: &[usize], lo, hi, dtype| {
            let x = rng
                .uniform(shape, lo, hi, DType::F64, &Device::Cpu)
                .unwrap();
            x.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap()
        };
        let mut gate = |fine: Fine, channels, lo: f64, hi: f64| {
            let shape = match fine {
                Absent => return None,
                Head => vec![self.batch, self.tokens, value_heads],
                Channel => vec![self.batch, self.tokens, value_heads, channels],
                KeyChannel => vec![self.batch, self.tokens, heads, channels],
            };
            if !self.extreme {
                return Some(draw(&shape, lo, hi, DType::F32));
            }
            // A third each at the lower end, anywhere and at the upper end.
            let x = draw(&shape, 2.0 * lo - hi, 2.0 * hi - lo, DType::F32);
            Some(x.clamp(lo, hi).unwrap())
        };
        let low = if self.extreme { -50.0 } else { -0.5 };
        Operands {
            decay: gate(self.gates[0], key_dim, low, 0.0),
            erase: gate(self.gates[1], key_dim, 0.0, 1.0).unwrap(),
            write: gate(self.gates[2], value_dim, 0.0, 1.0).unwrap(),
            qkv: draw(
                &[
                    self.batch,
                    self.tokens,
                    2 * heads * key_dim + value_heads * value_dim,
                ],
                -1.0,
                1.0,
                DType::BF16,
            ),
            state: draw(
                &[sequences, value_heads, key_dim, value_dim],
                -1.0,
                1.0,
                DType::F32,
            ),
        }
    }
}

pub(super) fn moved(x: &Operands, device: &Device) -> Operands {
    let to = |x: &Tensor, dtype| x.to_dtype(dtype).unwrap().to_device(device).unwrap();
    Operands {
        qkv: to(&x.qkv, DType::BF16),
        decay: x.decay.as_ref().map(|g| to(g, DType::F32)),
        erase: to(&x.erase, DType::F32),
        write: to(&x.write, DType::F32),
        state: to(&x.state, DType::F32),
    }
}

fn check(case: Case, device: &Device) {
    let x = case.operands(case.batch);
    let (o, s) = recurrence(&x).unwrap();
    let on_gpu = moved(&x, device);
    assert!(super::takes(&on_gpu, on_gpu.dims().unwrap(), None));
    let (o2, s2) = delta_rule(&on_gpu, CHUNK).unwrap();
    assert_eq!(o2.dtype(), DType::BF16);
    assert_close(&format!("{case:?}: o"), &o2, &o, TOLERANCE);
    assert_close(&format!("{case:?}: state"), &s2, &s, TOLERANCE);
}

#[test]
fn the_kernels_equal_the_recurrence() {
    let Some(device) = gpu() else { return };
    let all = [
        [Absent, Head, Head],
        [Head, Head, Head],
        [Channel, Head, Head],
        [KeyChannel, KeyChannel, Channel],
        [Channel, Channel, Channel],
        [Head, Channel, Head],
    ];
    for (heads, dims) in [
        ([2, 4], [128, 128]),
        ([1, 5], [64, 64]),
        ([2, 2], [64, 192]),
        ([1, 1], [256, 256]),
        ([1, 2], [128, 64]),
    ] {
        for gates in all {
            for extreme in [false, true] {
                check(
                    Case {
                        batch: 2,
                        tokens: 130,
                        heads,
                        dims,
                        gates,
                        extreme,
                    },
                    &device,
                );
            }
        }
    }
}

#[test]
fn lengths_around_every_border() {
    let Some(device) = gpu() else { return };
    for tokens in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000] {
        for gates in [[Head, Head, Head], [Channel, KeyChannel, Channel]] {
            check(
                Case {
                    batch: 1,
                    tokens,
                    heads: [1, 2],
                    dims: [64, 64],
                    gates,
                    extreme: false,
                },
                &device,
            );
        }
    }
}

#[test]
fn more_sequences_than_a_grid_is_wide() {
    let Some(device) = gpu() else { return };
    for gates in [[Head, Head, Head], [Channel, Head, Head]] {
        check(
            Case {
                batch: 66_000,
                tokens: 2,
                heads: [1, 1],
                dims: [64, 64],
                gates,
                extreme: false,
            },
            &device,
        );
    }
}

#[test]
fn packed_sequences_equal_each_alone() {
    let Some(device) = gpu() else { return };
    let starts = [0i64, 1, 64, 64, 130, 235, 300];
    for gates in [[Head, Head, Head], [Channel, KeyChannel, Channel]] {
        let case = Case {
            batch: 1,
            tokens: 300,
            heads: [1, 2],
            dims: [128, 64],
            gates,
            extreme: false,
        };
        let x = case.operands(starts.len() - 1);
        let positions = Tensor::from_vec(starts.to_vec(), &[starts.len()], &Device::Cpu).unwrap();
        let (o, s) = each_sequence(&x, Some(&positions), recurrence).unwrap();
        let (o2, s2) = delta_rule_packed(
            &moved(&x, &device),
            &positions.to_device(&device).unwrap(),
            CHUNK,
        )
        .unwrap();
        assert_close("packed: o", &o2, &o, TOLERANCE);
        assert_close("packed: states", &s2, &s, TOLERANCE);
    }
}

#[test]
fn gradients_equal_those_of_the_recurrence() {
    let Some(device) = gpu() else { return };
    let case = Case {
        batch: 2,
        tokens: 100,
        heads: [1, 2],
        dims: [64, 64],
        gates: [Channel, KeyChannel, Channel],
        extreme: false,
    };
    let gradients = |x: Operands, f: fn(&Operands) -> weft_tensor::Result<(Tensor, Tensor)>| {
        let leaves: Vec<Tensor> = x
            .list()
            .into_iter()
            .map(|t| t.detach().requires_grad().unwrap())
            .collect();
        let (o, s) = f(&Operands::from_list(&leaves).unwrap()).unwrap();
        let loss = o.to_dtype(s.dtype()).unwrap().square().unwrap();
        let loss = loss
            .sum_all()
            .unwrap()
            .add(&s.square().unwrap().sum_all().unwrap())
            .unwrap();
        let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
        grads.into_iter().map(Option::unwrap).collect::<Vec<_>>()
    };
    let x = case.operands(case.batch);
    let want = gradients(x.clone(), recurrence);
    let got = gradients(moved(&x, &device), |x| delta_rule(x, CHUNK));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        // Of values that the forward rounded to bf16.
        assert_close(&format!("gradient {i}"), got, want, 2e-2);
    }
}

/// Layers of every kind of gates with heads that the kernels take.
fn layers() -> Vec<(&'static str, serde_json::Value)> {
    vec![
        (
            "gdn",
            json!({"num_heads": 2, "num_v_heads": 4, "head_dim": 64, "allow_neg_eigval": true}),
        ),
        (
            "gdn",
            json!({"num_heads": 1, "num_v_heads": 2, "head_dim": 128, "layout": "qwen3_next"}),
        ),
        ("kda", json!({"num_heads": 2, "head_dim": 128})),
        (
            "gdn2",
            json!({"num_heads": 2, "head_dim": 64, "head_v_dim": 128}),
        ),
        (
            "gdn2",
            json!({"num_heads": 1, "num_v_heads": 2, "head_dim": 128, "head_v_dim": 64}),
        ),
    ]
}

/// Tokens one by one, then all at once, against the reference form; then what follows from the state.
#[test]
fn layers_equal_their_reference() {
    let Some(device) = gpu() else { return };
    for (name, table) in layers() {
        for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 4e-2)] {
            let options = Options::new(96, table.clone());
            let s = Subject::new(find(name).unwrap(), &options, dtype, &device).unwrap();
            let (x, start) = (s.input(3, 3, 9), s.warm_state(3, 70).unwrap());
            let mut after = start.clone();
            let want = s.run_as(Form::Reference, &x, &mut after).unwrap();
            let follow = s.follow(&after).unwrap();
            for form in [Form::Step, Form::Chunk] {
                let mut state = start.clone();
                let y = match form {
                    Form::Step => s.token_by_token(&x, &mut state).unwrap(),
                    _ => s.run_as(form, &x, &mut state).unwrap(),
                };
                let label = format!("{name} {table} {dtype} {form}");
                assert_close(&label, &y, &want, tolerance);
                assert_close(
                    &format!("after {label}"),
                    &s.follow(&state).unwrap(),
                    &follow,
                    tolerance,
                );
            }
        }
    }
}
