//! The layer against those of Qwen3-Next and Olmo Hybrid.

use serde_json::{Value, json};
use weft_tensor::Tensor;

use super::ENTRY;
use crate::error::Result;
use crate::golden::{Case, cases};
use crate::shared::delta_rule::golden_layer::{check, same_names};

/// What a config leaves out has the value that its model's code has there.
fn settings(case: &Case, layout: &str, allow_neg_eigval: bool, norm_eps: Option<f64>) -> Value {
    let config = &case.info["config"];
    let or = |key: &str, default: Value| config.get(key).cloned().unwrap_or(default);
    json!({
        "num_heads": config["linear_num_key_heads"],
        "num_v_heads": config["linear_num_value_heads"],
        "head_dim": config["linear_key_head_dim"],
        "head_v_dim": config["linear_value_head_dim"],
        "conv_size": or("linear_conv_kernel_dim", json!(4)),
        "allow_neg_eigval": or("linear_allow_neg_eigval", json!(allow_neg_eigval)),
        "norm_eps": norm_eps.map_or_else(|| or("rms_norm_eps", json!(1e-6)), |eps| json!(eps)),
        "layout": layout,
    })
}

/// The file stacks the three convolutions, as a running model does; released checkpoints have them apart.
fn apart(case: &Case, name: &str, x: &Tensor) -> Result<Vec<(String, Tensor)>> {
    if name != "conv1d.weight" {
        return same_names(name, x);
    }
    let rows = |part: &str| {
        case.tensor(&format!("param.{part}_proj.weight"))?
            .dim(0)
            .map_err(Into::into)
    };
    let sizes = ["q", "k", "v"]
        .into_iter()
        .map(rows)
        .collect::<Result<Vec<_>>>()?;
    let names = ["q", "k", "v"].map(|part| format!("{part}_conv1d.weight"));
    Ok(names.into_iter().zip(x.split(0, &sizes)?).collect())
}

/// Kinds of layer that belong to other mixers.
const OTHERS: [&str; 4] = [
    "layer:kda_kimi",
    "layer:mla_kimi",
    "layer:gated_attention_qwen3_next",
    "layer:mamba2",
];

#[test]
fn golden_delta_family_layers_gated_deltanet() {
    let mut run = 0;
    for case in cases("delta-family-layers").unwrap() {
        match case.kind() {
            "layer:gdn_qwen3_next" => {
                check(
                    &ENTRY,
                    &case,
                    settings(&case, "qwen3_next", false, None),
                    &same_names,
                    "y",
                )
                .unwrap();
            }
            "layer:gdn_olmo_hybrid" => {
                let rename = |name: &str, x: &Tensor| apart(&case, name, x);
                check(
                    &ENTRY,
                    &case,
                    settings(&case, "fla", true, Some(1e-5)),
                    &rename,
                    "y",
                )
                .unwrap();
            }
            kind => {
                assert!(
                    OTHERS.contains(&kind),
                    "{}: unknown kind {kind:?}",
                    case.label
                );
                println!("{}: {kind} is not a Gated DeltaNet layer", case.label);
                continue;
            }
        }
        run += 1;
    }
    assert!(run > 0, "no Gated DeltaNet layer was run");
}
