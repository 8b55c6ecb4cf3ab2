//! Without a decay, Gated DeltaNet is this layer. (The operation's golden vectors are run in
//! `shared::delta_rule::golden_tests`; there are none of the layer.)

use serde_json::json;
use weft_tensor::{DType, Device, Rng, Tensor};

use super::*;
use crate::error::Error;
use crate::gated_deltanet;
use crate::golden::assert_close;
use crate::mixer::Call;
use crate::params::Params;
use crate::shared::delta_rule::{Operands, delta_rule};

#[test]
fn gated_deltanet_without_decay_is_deltanet() {
    let device = Device::Cpu;
    let settings = json!({"num_heads": 2, "head_dim": 8, "head_v_dim": 12});
    let mut gated = settings.clone();
    gated["use_gate"] = true.into();
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 1, DType::F64, &device);
    let layer = (ENTRY.build)(&Options::new(24, gated), &mut scope).unwrap();
    // A rate of exp(-inf) = 0 decays nothing.
    let source = |name: &str, shape: &[usize]| match name {
        "A_log" => Ok(Tensor::full(shape, f64::NEG_INFINITY, DType::F64, &device)),
        "a_proj.weight" | "dt_bias" => Ok(Tensor::zeros(shape, DType::F64, &device)),
        _ => match params.get(name) {
            Some(p) => Ok(p.get()),
            None => Err(Error::config("gdn", format!("asks for {name}"))),
        },
    };
    let mut others = Params::new();
    let mut scope = Scope::from_source(&mut others, &source, &device);
    let gdn = (gated_deltanet::ENTRY.build)(&Options::new(24, settings), &mut scope).unwrap();
    let x = Rng::new(2)
        .normal(&[2, 70, 24], 0.0, 1.0, DType::F64, &device)
        .unwrap();
    let run = |m: &dyn Mixer| {
        let mut state = m.init_state(2, DType::F64).unwrap();
        let y = m.forward(&x, &mut state, &Call::default()).unwrap();
        (y, state.get("state").unwrap().clone())
    };
    let ((y, s), (want_y, want_s)) = (run(&*gdn), run(&*layer));
    assert_close("y", &y, &want_y, 1e-12);
    assert_close("state", &s, &want_s, 1e-12);
}

/// Tokens with the given keys and values, beta 1, one head. Keys are long, so that the epsilon of their norm is nothing.
fn written(keys: &Tensor, values: &Tensor) -> Tensor {
    let ([t, n], [_, v]) = (keys.dims().unwrap(), values.dims().unwrap());
    let keys = keys.mul_scalar(1e4).unwrap();
    let qkv = Tensor::cat(&[&keys, &keys, values], -1).unwrap();
    let one = Tensor::ones(&[1, t, 1], DType::F64, &Device::Cpu);
    let x = Operands {
        qkv: qkv.unsqueeze(0).unwrap(),
        decay: None,
        erase: one.clone(),
        write: one,
        state: Tensor::zeros(&[1, 1, n, v], DType::F64, &Device::Cpu),
    };
    let (_, state) = delta_rule(&x, 4).unwrap();
    state.reshape(&[n, v]).unwrap()
}

#[test]
fn orthonormal_keys_read_back_what_was_written() {
    let device = Device::Cpu;
    let keys = Tensor::eye(6, DType::F64, &device).unwrap();
    let values = Rng::new(1)
        .normal(&[6, 5], 0.0, 1.0, DType::F64, &device)
        .unwrap();
    let state = written(&keys, &values);
    assert_close("S^T k", &keys.matmul(&state).unwrap(), &values, 1e-9);
}

#[test]
fn writing_the_same_twice_changes_nothing() {
    let draw = |seed, width| {
        Rng::new(seed)
            .normal(&[7, width], 0.0, 1.0, DType::F64, &Device::Cpu)
            .unwrap()
    };
    let (keys, values) = (draw(1, 6), draw(2, 5));
    let last = |x: &Tensor| x.narrow(0, 6, 1).unwrap();
    let twice = |x: &Tensor| Tensor::cat(&[x, &last(x)], 0).unwrap();
    let again = written(&twice(&keys), &twice(&values));
    assert_close("state", &again, &written(&keys, &values), 1e-9);
}
