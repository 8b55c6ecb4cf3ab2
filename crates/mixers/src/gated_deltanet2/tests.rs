//! The layer against the authors' one.

use serde_json::{Value, json};
use weft_tensor::{DType, Device, Rng, Tensor, no_grad};

use super::ENTRY;
use crate::error::Result;
use crate::golden::{Case, assert_close, cases};
use crate::mixer::{Call, Mixer};
use crate::params::{Params, Scope};
use crate::registry::Options;
use crate::shared::delta_rule::golden_layer::{check, same_names};

fn settings(case: &Case, gate: &str) -> Result<Value> {
    let whole = |key: &str| Ok::<_, crate::Error>(case.number(key)? as usize);
    Ok(json!({
        "num_heads": whole("num_heads")?,
        "num_v_heads": whole("num_v_heads")?,
        "head_dim": whole("head_dim")?,
        "head_v_dim": whole("head_v_dim")?,
        "conv_size": whole("conv_size")?,
        "allow_neg_eigval": case.info["allow_neg_eigval"],
        "norm_eps": case.number("norm_eps")?,
        "output_gate": gate,
    }))
}

#[test]
fn golden_gated_deltanet_2_layer() {
    let mut run = 0;
    for case in cases("gated-deltanet-2").unwrap() {
        if case.kind() != "layer" {
            continue;
        }
        for (gate, want) in [("silu", "y"), ("sigmoid", "y_sigmoid_gate")] {
            check(
                &ENTRY,
                &case,
                settings(&case, gate).unwrap(),
                &same_names,
                want,
            )
            .unwrap();
            run += 1;
        }
    }
    assert!(run > 0, "no layer case was run");
}

fn built(settings: Value) -> Result<Box<dyn Mixer>> {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 1, DType::F32, &Device::Cpu);
    (ENTRY.build)(&Options::new(24, settings), &mut scope)
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (settings, reason) in [
        (
            json!({"num_heads": 2, "num_v_heads": 3}),
            "num_v_heads 3 is not a multiple of num_heads 2",
        ),
        (json!({"conv_size": 1}), "conv_size 1"),
        (json!({"num_heads": 0}), "at least 1"),
        (json!({"head_dim": 0}), "at least 1"),
        (json!({"heads": 2}), "unknown field `heads`"),
        (json!({"output_gate": "relu"}), "unknown variant `relu`"),
    ] {
        let e = built(settings).err().unwrap().to_string();
        assert!(e.contains(reason), "{e:?} does not say {reason:?}");
    }
}

/// A state of this mixer but of other sizes is refused, and still there afterwards.
#[test]
fn a_state_of_other_sizes_is_refused_untouched() {
    let layer = built(json!({"num_heads": 2, "head_dim": 8})).unwrap();
    let other = built(json!({"num_heads": 2, "head_dim": 12})).unwrap();
    let mut state = other.init_state(1, DType::F32).unwrap();
    let x = Tensor::ones(&[1, 1, 24], DType::F32, &Device::Cpu);
    for form in layer.forms() {
        let e = no_grad(|| layer.forward(&x, &mut state, &Call::with_form(*form)))
            .err()
            .unwrap()
            .to_string();
        assert!(e.contains("this layer needs [1, 2, 8, 8]"), "{e}");
    }
    no_grad(|| other.forward(&x, &mut state, &Call::default())).unwrap();
    assert_eq!(state.positions(), [1]);
}

/// Activations in bf16, parameters and state in f32: the output differs by bf16's rounding only.
#[test]
fn half_precision_activations() {
    let layer = built(json!({"num_heads": 2, "head_dim": 8})).unwrap();
    let x = Rng::new(3)
        .normal(&[2, 70, 24], 0.0, 1.0, DType::F32, &Device::Cpu)
        .unwrap();
    let run = |dtype| {
        let mut state = layer.init_state(2, dtype).unwrap();
        let y = layer
            .forward(&x.to_dtype(dtype).unwrap(), &mut state, &Call::default())
            .unwrap();
        assert_eq!(state.bytes(), 2 * layer.state_bytes(70, dtype));
        assert_eq!(
            (y.dtype(), state.get("state").unwrap().dtype()),
            (dtype, DType::F32)
        );
        y
    };
    // 8 bits of precision in each of the projections and products on the way.
    assert_close("bf16", &run(DType::BF16), &run(DType::F32), 0.05);
}
