//! The layer against that of flash-linear-attention.

use serde_json::json;

use super::ENTRY;
use crate::golden::cases;
use crate::shared::delta_rule::golden_layer::{check, same_names};

#[test]
fn golden_hybrid_systematic_hgrn() {
    let mut run = 0;
    for case in cases("hybrid-systematic").unwrap() {
        if case.kind() != "layer:hgrn" {
            continue;
        }
        let config = &case.info["config"];
        let bound = case.optional("lower_bound").map_or("none", |_| "own");
        let settings = json!({
            "expand_ratio": config["expand_ratio"],
            "norm_eps": config["norm_eps"],
            "lower_bound": bound,
        });
        check(&ENTRY, &case, settings, &same_names, "y").unwrap();
        run += 1;
    }
    assert!(run > 0, "no HGRN layer was run");
}
