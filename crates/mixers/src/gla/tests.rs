//! The layer against that of flash-linear-attention.

use serde_json::json;

use super::ENTRY;
use crate::golden::cases;
use crate::shared::delta_rule::golden_layer::{check, same_names};

#[test]
fn golden_hybrid_systematic_gla() {
    let mut run = 0;
    for case in cases("hybrid-systematic").unwrap() {
        if case.kind() != "layer:gla" {
            continue;
        }
        // The settings of that library, under the same names.
        check(&ENTRY, &case, json!(case.info["config"]), &same_names, "y").unwrap();
        run += 1;
    }
    assert!(run > 0, "no GLA layer was run");
}
