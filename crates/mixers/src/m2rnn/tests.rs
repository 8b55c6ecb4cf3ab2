//! The fused scan against the plain form where the laws do not reach, and the limits of the recurrence.

use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::op::{Clip, Operands, m2rnn, recurrence};
use crate::golden::assert_close;

fn normal(seed: u64, shape: &[usize], std: f64) -> Tensor {
    Rng::new(seed)
        .normal(shape, 0.0, std, DType::F64, &Device::Cpu)
        .unwrap()
}

/// Random operands as leaves: [B, T, N, Nq, Nk, K, V].
fn operands([b, t, n, nq, nk, k, v]: [usize; 7]) -> Operands {
    let leaf = |x: Tensor| x.requires_grad().unwrap();
    Operands {
        q: leaf(normal(1, &[b, t, nq, k], 1.0)),
        k: leaf(normal(2, &[b, t, nk, k], 1.0)),
        v: leaf(normal(3, &[b, t, n, v], 1.0)),
        f: leaf(normal(4, &[b, t, n], 1.0).sigmoid().unwrap().detach()),
        w: leaf(normal(5, &[n, v, v], 0.8 / (v as f64).sqrt())),
        state: leaf(normal(6, &[b, n, k, v], 0.3)),
        linear: false,
    }
}

fn leaves(x: &Operands) -> [&Tensor; 6] {
    [&x.q, &x.k, &x.v, &x.f, &x.w, &x.state]
}

type Run = fn(&Operands, Clip) -> weft_tensor::Result<(Tensor, Tensor)>;

fn outcome(run: Run, x: &Operands, clip: Clip) -> (Tensor, Tensor, Vec<Tensor>) {
    let (o, state) = run(x, clip).unwrap();
    let weighted = |x: &Tensor, seed| {
        x.mul(&normal(seed, x.shape(), 1.0))
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let loss = weighted(&o, 20).add(&weighted(&state, 21)).unwrap();
    let grads = grad(&[&loss], None, &leaves(x), false).unwrap();
    (o, state, grads.into_iter().map(Option::unwrap).collect())
}

#[test]
fn the_scan_equals_the_plain_form() {
    // Shared and separate queries and keys; whole and broken lanes, rows and units; one segment and several.
    let sizes = [
        [1, 1, 1, 1, 1, 1, 1],
        [2, 70, 6, 2, 3, 9, 5],
        [1, 130, 10, 1, 1, 16, 16],
        [2, 20, 4, 4, 2, 3, 35],
    ];
    for size in sizes {
        for linear in [false, true] {
            for clip in [Clip::None, Clip::Carry(0.1), Clip::Total(0.1)] {
                let x = Operands {
                    linear,
                    ..operands(size)
                };
                let (got, want) = (outcome(m2rnn, &x, clip), outcome(recurrence, &x, clip));
                let label = |what: &str| format!("{size:?} linear {linear} {clip:?}: {what}");
                assert_close(&label("o"), &got.0, &want.0, 1e-11);
                assert_close(&label("state"), &got.1, &want.1, 1e-11);
                for (i, (g, w)) in got.2.iter().zip(&want.2).enumerate() {
                    assert_close(&label(&format!("gradient of operand {i}")), g, w, 1e-10);
                }
            }
        }
    }
}

#[test]
fn the_two_rules_of_clipping_differ() {
    let x = operands([1, 30, 2, 1, 1, 8, 4]);
    let (carry, total) = (
        outcome(m2rnn, &x, Clip::Carry(0.05)),
        outcome(m2rnn, &x, Clip::Total(0.05)),
    );
    let e = crate::golden::relative_error(&carry.2[4], &total.2[4]).unwrap();
    assert!(e > 0.1, "gradients of W differ by {e}");
}

/// f = 1: the state stays, bit for bit, and nothing is learned from k, v and W.
#[test]
fn an_open_gate_keeps_the_state() {
    let x = operands([2, 12, 3, 1, 1, 8, 4]);
    let x = Operands {
        f: x.f.ones_like().requires_grad().unwrap(),
        ..x
    };
    let (_, state, grads) = outcome(m2rnn, &x, Clip::None);
    assert_eq!(state.to_f64_vec().unwrap(), x.state.to_f64_vec().unwrap());
    for i in [1, 2, 4] {
        assert!(
            grads[i].to_f64_vec().unwrap().iter().all(|g| *g == 0.0),
            "operand {i}"
        );
    }
}

/// W = 0 and f = 0: H_t = tanh(k_t v_t^T).
#[test]
fn without_weights_and_gate_there_is_no_memory() {
    let x = operands([1, 7, 2, 2, 2, 3, 4]);
    let x = Operands {
        f: x.f.zeros_like(),
        w: x.w.zeros_like(),
        ..x
    };
    let (o, _) = m2rnn(&x, Clip::None).unwrap();
    let h =
        x.k.unsqueeze(-1)
            .unwrap()
            .mul(&x.v.unsqueeze(-2).unwrap())
            .unwrap()
            .tanh()
            .unwrap();
    let want = h
        .mul(&x.q.unsqueeze(-1).unwrap())
        .unwrap()
        .sum(&[-2], false)
        .unwrap();
    assert_close("o", &o, &want, 1e-12);
}

/// W = I without tanh: H_t = H_{t-1} + (1 - f_t) k_t v_t^T, linear attention with an input gate.
#[test]
fn the_linear_form_is_linear_attention() {
    let x = operands([1, 9, 1, 1, 1, 3, 4]);
    let eye = Tensor::eye(4, DType::F64, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let x = Operands {
        w: eye,
        state: x.state.zeros_like(),
        linear: true,
        ..x
    };
    let (o, _) = m2rnn(&x, Clip::None).unwrap();
    // [1, T, K] and [1, T, V]
    let flat = |x: &Tensor| x.squeeze(2).unwrap();
    let scores = flat(&x.q)
        .matmul(&flat(&x.k).transpose(1, 2).unwrap())
        .unwrap()
        .tril(0)
        .unwrap();
    let gated = flat(&x.v).mul(&x.f.affine(-1.0, 1.0).unwrap()).unwrap();
    assert_close("o", &flat(&o), &scores.matmul(&gated).unwrap(), 1e-12);
}

/// One row of two saturated units as the automaton of parity (any automaton fits in this way): no error in 10,000
/// tokens. Unit 0 fires (1, else -1) if the parity was odd and the bit is 0, unit 1 if it was even and the bit is 1;
/// the parity is odd if one of them fires, so u_0 + u_1 is 0 for odd and -2 for even.
#[test]
fn saturated_units_count_parity() {
    let (tokens, gain) = (10_000, 20.0);
    let mut rng = Rng::new(9);
    let bits: Vec<bool> = (0..tokens).map(|_| rng.below(2) == 1).collect();
    // W adds gain (u_0 + u_1) to unit 0 and takes it from unit 1; the value sets the threshold for the bit.
    let w = vec![gain, -gain, gain, -gain];
    let threshold = |bit: bool| {
        if bit {
            [-gain, -gain]
        } else {
            [gain, -3.0 * gain]
        }
    };
    let v: Vec<f64> = bits.iter().flat_map(|&b| threshold(b)).collect();
    let all = |shape: &[usize], value: f64| Tensor::full(shape, value, DType::F64, &Device::Cpu);
    let x = Operands {
        q: all(&[1, tokens, 1, 1], 1.0),
        k: all(&[1, tokens, 1, 1], 1.0),
        v: Tensor::from_vec(v, &[1, tokens, 1, 2], &Device::Cpu).unwrap(),
        f: all(&[1, tokens, 1], 0.0),
        w: Tensor::from_vec(w, &[1, 2, 2], &Device::Cpu).unwrap(),
        state: all(&[1, 1, 1, 2], -1.0),
        linear: false,
    };
    let (o, _) = m2rnn(&x, Clip::None).unwrap();
    let mut odd = false;
    for (t, units) in o.to_f64_vec().unwrap().chunks(2).enumerate() {
        odd ^= bits[t];
        assert_eq!(units[0] + units[1] > -1.0, odd, "token {t}: {units:?}");
    }
}
