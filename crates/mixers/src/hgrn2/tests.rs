//! The layer against that of flash-linear-attention.

use serde_json::json;
use weft_tensor::{DType, Device, Rng, Tensor};

use super::ENTRY;
use crate::golden::{assert_close, cases};
use crate::shared::decayed::{Operands, decayed};
use crate::shared::delta_rule::golden_layer::{check, same_names};
use crate::shared::scan::gated;

#[test]
fn golden_hybrid_systematic_hgrn2() {
    let mut run = 0;
    for case in cases("hybrid-systematic").unwrap() {
        if case.kind() != "layer:hgrn2" {
            continue;
        }
        let config = &case.info["config"];
        let bound = case.optional("lower_bound").map_or("none", |_| "own");
        let settings = json!({
            "num_heads": config["num_heads"],
            "expand_ratio": config["expand_ratio"],
            "norm_eps": config["norm_eps"],
            "lower_bound": bound,
        });
        check(&ENTRY, &case, settings, &same_names, "y").unwrap();
        run += 1;
    }
    assert!(run > 0, "no HGRN-2 layer was run");
}

/// With one key channel the matrix is a vector: the scan of HGRN, times q.
#[test]
fn one_key_channel_is_the_scan_of_hgrn() {
    let draw = |seed, shape: &[usize], lo, hi| {
        Rng::new(seed)
            .uniform(shape, lo, hi, DType::F64, &Device::Cpu)
            .unwrap()
    };
    let (b, t, v) = (2, 40, 5);
    let (q, g) = (
        draw(1, &[b, t, 1, 1], -1.0, 1.0),
        draw(2, &[b, t, 1, 1], -2.0, 0.0),
    );
    let k = g.exp().unwrap().affine(-1.0, 1.0).unwrap();
    let x = Operands {
        q: q.clone(),
        k: k.clone(),
        v: draw(3, &[b, t, 1, v], -1.0, 1.0),
        decay: g.clone(),
        scale: 1.0,
        state: draw(4, &[b, 1, 1, v], -1.0, 1.0),
    };
    let wide = |x: &Tensor| x.squeeze(2).unwrap().broadcast_to(&[b, t, v]).unwrap();
    let input = x.v.squeeze(2).unwrap().mul(&wide(&k)).unwrap();
    let initial = x.state.reshape(&[b, v]).unwrap();
    let h = gated(&wide(&g), &input, &initial, None, false).unwrap();
    let (o, s) = decayed(&x, 16).unwrap();
    assert_close(
        "o",
        &o.squeeze(2).unwrap(),
        &h.mul(&wide(&q)).unwrap(),
        1e-12,
    );
    let last = h.select(1, t - 1).unwrap();
    assert_close("state", &s.reshape(&[b, v]).unwrap(), &last, 1e-12);
}
