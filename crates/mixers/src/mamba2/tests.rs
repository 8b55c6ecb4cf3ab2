//! The layer against that of Hugging Face.

use serde_json::json;

use super::ENTRY;
use crate::golden::cases;
use crate::shared::delta_rule::golden_layer::{check, same_names};

#[test]
fn golden_delta_family_layers_mamba2() {
    let mut run = 0;
    for case in cases("delta-family-layers").unwrap() {
        if case.kind() != "layer:mamba2" {
            continue;
        }
        let config = &case.info["config"];
        let settings = json!({
            "num_heads": config["num_heads"],
            "head_dim": config["head_dim"],
            "state_size": config["state_size"],
            "n_groups": config["n_groups"],
            "conv_size": config["conv_kernel"],
        });
        check(&ENTRY, &case, settings, &same_names, "y").unwrap();
        run += 1;
    }
    assert!(run > 0, "no Mamba-2 layer was run");
}
