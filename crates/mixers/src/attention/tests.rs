//! Golden vectors of attention layers.

use weft_tensor::{Tensor, grad};

use super::{Attention, NAME};
use crate::golden::{self, assert_close};
use crate::laws::test_device;
use crate::mixer::{Call, Mixer};
use crate::params::{Params, Scope};
use crate::registry::Options;

/// Qwen3-Next's gated attention: values and the gradients of x and of every parameter.
#[test]
fn golden_gated_attention_qwen3_next() {
    let mut seen = 0;
    for case in golden::cases("delta-family-layers").unwrap() {
        if case.kind() != "layer:gated_attention_qwen3_next" {
            continue;
        }
        seen += 1;
        let c = &case.info["config"];
        let rope = &c["rope_parameters"];
        let options = Options::new(
            c["hidden_size"].as_u64().unwrap() as usize,
            serde_json::json!({
                "num_heads": c["num_attention_heads"], "num_kv_heads": c["num_key_value_heads"],
                "head_dim": c["head_dim"], "rope_theta": rope["rope_theta"],
                "partial_rotary_factor": rope["partial_rotary_factor"],
                "qk_norm": "rms_plus_one", "output_gate": true
            }),
        );
        let params_of_case = case.with_prefix("param.");
        let device = test_device();
        let source = |name: &str, _: &[usize]| Ok(params_of_case[name].to_device(&device)?);
        let mut params = Params::new();
        let layer = Attention::new(
            &options,
            &mut Scope::from_source(&mut params, &source, &device),
        )
        .unwrap();
        assert_eq!(
            params.len(),
            params_of_case.len(),
            "{}: every parameter is used",
            case.label
        );
        let x = case.tensor("x").unwrap().to_device(&device).unwrap();
        let x = x.requires_grad().unwrap();
        let mut state = layer.init_state(x.dim(0).unwrap(), x.dtype()).unwrap();
        let y = layer.forward(&x, &mut state, &Call::default()).unwrap();
        let tolerance = case.number("tolerance").unwrap();
        assert_close(
            &format!("{} y", case.label),
            &y,
            case.tensor("y").unwrap(),
            tolerance,
        );
        let loss = y
            .mul(&case.tensor("w_y").unwrap().to_device(&device).unwrap())
            .unwrap()
            .sum_all()
            .unwrap();
        let leaves: Vec<Tensor> = params.iter().map(|p| p.get()).collect();
        let mut wanted = vec![&x];
        wanted.extend(&leaves);
        let grads = grad(&[&loss], None, &wanted, false).unwrap();
        let names = std::iter::once("x").chain(params.iter().map(|p| p.name()));
        for (name, g) in names.zip(grads) {
            let want = case.tensor(&format!("grad.{name}")).unwrap();
            assert_close(
                &format!("{} grad.{name}", case.label),
                &g.unwrap(),
                want,
                tolerance,
            );
        }
    }
    assert!(seen > 0, "no case of {NAME} in delta-family-layers");
}
