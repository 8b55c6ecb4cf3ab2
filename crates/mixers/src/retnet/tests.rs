//! The layer against that of flash-linear-attention.

use serde_json::json;

use super::ENTRY;
use crate::golden::cases;
use crate::shared::delta_rule::golden_layer::{check, same_names};

#[test]
fn golden_hybrid_systematic_retnet() {
    let mut run = 0;
    for case in cases("hybrid-systematic").unwrap() {
        if case.kind() != "layer:retnet" {
            continue;
        }
        let config = &case.info["config"];
        let settings = json!({
            "num_heads": config["num_heads"],
            "expand_k": config["expand_k"],
            "expand_v": config["expand_v"],
            "rope_theta": config["rope_base"],
            "norm_eps": config["norm_eps"],
        });
        check(&ENTRY, &case, settings, &same_names, "y").unwrap();
        run += 1;
    }
    assert!(run > 0, "no RetNet layer was run");
}
