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
