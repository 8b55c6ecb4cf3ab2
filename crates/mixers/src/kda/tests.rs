//! The layer against that of Kimi Linear.

use serde_json::{Value, json};
use weft_tensor::Tensor;

use super::ENTRY;
use crate::error::Result;
use crate::golden::{Case, cases};
use crate::shared::delta_rule::golden_layer::check;

fn settings(case: &Case) -> Value {
    let config = &case.info["config"];
    json!({
        "num_heads": config["linear_num_heads"],
        "head_dim": config["linear_head_dim"],
        // What Kimi Linear's config takes if a file does not say.
        "norm_eps": config.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-5),
        "layout": "kimi",
    })
}

/// The file has the names of a running model: the convolutions stacked, the decay's parts in a module. Released
/// checkpoints have them apart and without the module's name.
fn released_names(case: &Case, name: &str, x: &Tensor) -> Result<Vec<(String, Tensor)>> {
    if name != "conv1d.weight" {
        let name = name.strip_prefix("forget_gate.").unwrap_or(name);
        return Ok(vec![(name.to_string(), x.clone())]);
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

#[test]
fn golden_delta_family_layers_kda() {
    let mut run = 0;
    for case in cases("delta-family-layers").unwrap() {
        if case.kind() == "layer:kda_kimi" {
            let rename = |name: &str, x: &Tensor| released_names(&case, name, x);
            check(&ENTRY, &case, settings(&case), &rename, "y").unwrap();
            run += 1;
        }
    }
    assert!(run > 0, "no KDA layer was run");
}
