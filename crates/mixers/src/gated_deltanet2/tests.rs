//! The layer against the authors' one.

use serde_json::{Value, json};

use super::ENTRY;
use crate::error::Result;
use crate::golden::{Case, cases};
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
