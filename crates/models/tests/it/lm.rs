use serde_json::json;
use weft_mixers::{Call, registry};
use weft_models::blueprint::blueprint;
use weft_models::{Config, LanguageModel, MlpKind, Run, explain};
use weft_tensor::{DType, Device, Rng, Tensor, no_grad};

use crate::{close, config, ids, model, run};

const F64: Run = Run {
    compute: DType::F64,
    checkpoint: false,
};

#[test]
fn the_loss_is_that_of_the_forwards_logits() {
    let m = model(DType::F64, 1);
    let ids = ids(2, 9, 2);
    let loss = m.loss(&ids, &F64).unwrap();
    let inputs = ids.narrow(1, 0, 8).unwrap();
    let logits = run(&m, &inputs, &mut m.init_state(2).unwrap());
    let picked = logits
        .log_softmax(-1)
        .unwrap()
        .gather(-1, &ids.narrow(1, 1, 8).unwrap().unsqueeze(-1).unwrap())
        .unwrap();
    let want = picked.neg().unwrap().reshape(&[16]).unwrap();
    close(&loss, &want, 1e-12);
}

#[test]
fn logits_at_places_are_those_of_the_forward() {
    let m = model(DType::F64, 1);
    let ids = ids(2, 9, 2);
    let all = run(&m, &ids, &mut m.init_state(2).unwrap());
    let got = m.logits_at(&ids, &[3, 17, 9], &F64).unwrap();
    let rows = Tensor::from_vec(vec![3i64, 17, 9], &[3], &Device::Cpu).unwrap();
    let want = all.flatten(0, 1).unwrap().index_select(0, &rows).unwrap();
    close(&got, &want, 1e-12);
    let error = m.logits_at(&ids, &[18], &F64).unwrap_err().to_string();
    assert!(
        error.contains("place 18") && error.contains("[2, 9]"),
        "{error}"
    );
}

#[test]
fn gradients_of_the_loss_agree_with_finite_differences() {
    for mlp in [MlpKind::Swiglu, MlpKind::Gelu, MlpKind::GeluTanh] {
        for tie in [true, false] {
            let mut c = config(DType::F64);
            (c.vocab_size, c.mlp, c.tie_word_embeddings) = (11, mlp, tie);
            check_gradients(&LanguageModel::new(&c, 3, &Device::Cpu).unwrap());
        }
    }
}

fn check_gradients(m: &LanguageModel) {
    let ids = Tensor::from_vec(
        vec![1i64, 4, 7, 4, 0, 10, 3, 3, 9, 5],
        &[2, 5],
        &Device::Cpu,
    )
    .unwrap();
    let loss = || m.loss(&ids, &F64).unwrap().sum_all().unwrap();
    let mut gradients = loss().backward().unwrap();
    let step = 1e-5;
    for p in m.params().iter() {
        let g = gradients.take(&p.get()).unwrap().to_vec::<f64>().unwrap();
        // The element of the largest gradient, and one at random: each parameter is checked.
        let largest = (0..g.len()).max_by(|&a, &b| g[a].abs().total_cmp(&g[b].abs()));
        for i in [largest.unwrap(), g.len() / 3] {
            let at = |shift: f64| {
                p.update::<f64, _>(|v| v[i] += shift).unwrap();
                let value = no_grad(loss).item::<f64>().unwrap();
                p.update::<f64, _>(|v| v[i] -= shift).unwrap();
                value
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            // The loss is about 20: its last bits, divided by the step, are 1e-9. The step's own error is smaller.
            let slack = 1e-6 * slope.abs().max(g[i].abs()) + 1e-8;
            let error = (slope - g[i]).abs();
            assert!(
                error < slack,
                "{} [{i}]: {slope} against {}",
                p.name(),
                g[i]
            );
        }
    }
}

#[test]
fn checkpointing_changes_no_bit_of_loss_or_gradients() {
    let m = model(DType::F32, 4);
    let ids = ids(2, 17, 5);
    let run = |checkpoint| {
        let run = Run {
            checkpoint,
            ..Run::default()
        };
        let loss = m.loss(&ids, &run).unwrap();
        let mut gradients = loss.mean_all().unwrap().backward().unwrap();
        let grads: Vec<Vec<f32>> = m
            .params()
            .iter()
            .map(|p| gradients.take(&p.get()).unwrap().to_vec().unwrap())
            .collect();
        (loss.to_vec::<f32>().unwrap(), grads)
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn bf16_activations_give_nearly_the_same_loss_in_f32() {
    let m = model(DType::F32, 6);
    let ids = ids(2, 33, 7);
    let exact = m.loss(&ids, &Run::default()).unwrap();
    let run = Run {
        compute: DType::BF16,
        checkpoint: false,
    };
    let rough = m.loss(&ids, &run).unwrap();
    assert_eq!(rough.dtype(), DType::F32);
    let mean = |t: &Tensor| t.mean_all().unwrap().item_f64().unwrap();
    // bf16 has 8 bits: a few parts in a thousand per operation, averaged over 64 tokens.
    assert!((mean(&exact) / mean(&rough) - 1.0).abs() < 0.02);
    assert_ne!(mean(&exact), mean(&rough));
    let gradients = rough.mean_all().unwrap().backward().unwrap();
    for p in m.params().iter() {
        let g = gradients.get(&p.get()).unwrap();
        assert_eq!(g.dtype(), DType::F32);
        assert!(g.all_finite().unwrap(), "{}", p.name());
    }
}

#[test]
fn weights_kept_in_bf16_change_the_logits_by_their_rounding_alone() {
    let (m, exact) = (model(DType::F32, 6), model(DType::F32, 6));
    m.store_weights(DType::BF16).unwrap();
    for (p, q) in m.params().iter().zip(exact.params().iter()) {
        let kept = if p.shape().len() == 2 {
            DType::BF16
        } else {
            DType::F32
        };
        assert_eq!(p.get().dtype(), kept, "{}", p.name());
        // The same rounded weights, stored wide.
        q.set(&p.get().to_dtype(DType::F32).unwrap()).unwrap();
    }
    assert_eq!(
        (m.dtype(), m.stored_config().dtype),
        (DType::F32, DType::BF16)
    );
    let ids = ids(2, 20, 7);
    let logits = |m: &LanguageModel| {
        let mut state = m.init_state(2).unwrap();
        let mut call = |from, n| {
            let ids = ids.narrow(1, from, n).unwrap();
            m.forward_last(&ids, &mut state, &Call::default()).unwrap()
        };
        // Many rows, then few: both ways through a product.
        [call(0, 19), call(19, 1)].map(|t| t.to_f64_vec().unwrap())
    };
    for (a, b) in logits(&m)
        .iter()
        .flatten()
        .zip(logits(&exact).iter().flatten())
    {
        assert!((a - b).abs() < 2e-5, "{a} {b}");
    }
    assert!(m.store_weights(DType::I64).is_err());
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let m = model(DType::F32, 1);
    for bad in [257, -1, i64::MAX] {
        let ids = Tensor::from_vec(vec![0, 1, 2, 3, 4, bad], &[2, 3], &Device::Cpu).unwrap();
        let want =
            format!("token {bad} at position 2 of row 1 is outside the vocabulary of 257 tokens");
        let mut state = m.init_state(2).unwrap();
        let e = m.forward(&ids, &mut state, &Call::default()).unwrap_err();
        assert_eq!(e.to_string(), want);
        assert_eq!(state.positions(), [0, 0]);
        // In a loss the last token of a row is a target only.
        assert_eq!(m.loss(&ids, &Run::default()).unwrap_err().to_string(), want);
    }
    let wrong = [
        Tensor::zeros(&[3], DType::I64, &Device::Cpu),
        Tensor::zeros(&[1, 3], DType::F32, &Device::Cpu),
        Tensor::zeros(&[1, 1], DType::I64, &Device::Cpu),
        Tensor::zeros(&[0, 2], DType::I64, &Device::Cpu),
    ];
    for ids in wrong {
        let e = m.loss(&ids, &Run::default()).unwrap_err().to_string();
        assert!(e.starts_with("ids of "), "{e}");
    }
    let empty = Tensor::zeros(&[1, 0], DType::I64, &Device::Cpu);
    let mut state = m.init_state(1).unwrap();
    assert!(m.forward(&empty, &mut state, &Call::default()).is_err());
    let lengths = [0, 2];
    let call = Call {
        lengths: Some(&lengths),
        ..Call::default()
    };
    let e = m.forward_last(&ids(2, 2, 1), &mut m.init_state(2).unwrap(), &call);
    assert_eq!(e.unwrap_err().to_string(), "row 0 has no valid token");
}

#[test]
fn a_seed_fixes_the_parameters_and_output_projections_start_small() {
    let values = |m: &LanguageModel, name: &str| {
        m.params().get(name).unwrap().get().to_vec::<f32>().unwrap()
    };
    let (a, b, c) = (
        model(DType::F32, 1),
        model(DType::F32, 1),
        model(DType::F32, 2),
    );
    for p in a.params().iter() {
        assert_eq!(values(&a, p.name()), values(&b, p.name()), "{}", p.name());
    }
    let embedding = "model.embed_tokens.weight";
    assert_ne!(values(&a, embedding), values(&c, embedding));
    let largest = |v: Vec<f32>| v.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let bound = 1.0 / 24f32.sqrt() / 6f32.sqrt();
    let down = largest(values(&a, "model.layers.0.mlp.down_proj.weight"));
    assert!(down <= bound && down > 0.9 * bound, "{down} for {bound}");
    let up = largest(values(&a, "model.layers.0.mlp.up_proj.weight"));
    assert!(up <= 0.25 && up > 0.2, "{up}");
    // Every mixer's output projection follows the naming convention.
    for layer in 0..3 {
        let name = format!("model.layers.{layer}.mixer.o_proj.weight");
        assert!(a.params().get(&name).is_some(), "{name}");
    }
}

#[test]
fn untied_heads_have_weights_of_their_own() {
    let mut c = config(DType::F32);
    c.tie_word_embeddings = false;
    let untied = LanguageModel::new(&c, 1, &Device::Cpu).unwrap();
    let tied = model(DType::F32, 1);
    assert!(tied.params().get("lm_head.weight").is_none());
    assert_eq!(
        untied.params().get("lm_head.weight").unwrap().shape(),
        [257, 16]
    );
    assert_eq!(untied.params().count(), tied.params().count() + 257 * 16);
}

#[test]
fn absurd_models_are_refused_before_anything_is_allocated() {
    let refuse = |c: &Config| {
        LanguageModel::new(c, 0, &Device::Cpu)
            .err()
            .unwrap()
            .to_string()
    };
    let mut c = config(DType::F32);
    c.layer_types[1] = "gdn3".into();
    assert!(
        refuse(&c).contains("did you mean \"gdn2\"?"),
        "{}",
        refuse(&c)
    );
    let mut c = config(DType::F32);
    c.mixers.insert(
        "gdn2".into(),
        serde_json::from_value(json!({"no_such_option": 1})).unwrap(),
    );
    assert!(refuse(&c).contains("gdn2"), "{}", refuse(&c));
    let mut c = config(DType::F32);
    (c.vocab_size, c.hidden_size) = (1 << 22, 1 << 20);
    assert!(refuse(&c).contains("more than"), "{}", refuse(&c));
    let mut c = config(DType::F32);
    let huge = json!({"num_heads": 1 << 20, "head_dim": 1 << 20});
    c.mixers
        .insert("gdn2".into(), serde_json::from_value(huge).unwrap());
    assert!(
        refuse(&c).contains("channels fit a layer"),
        "{}",
        refuse(&c)
    );
    // Few parameters, but a layer keeps the rotary turns of a head.
    let mut c = config(DType::F32);
    let huge = json!({"num_heads": 1, "head_dim": 1 << 17});
    c.mixers
        .insert("attention".into(), serde_json::from_value(huge).unwrap());
    assert!(refuse(&c).contains("at most 65536"), "{}", refuse(&c));
    // A window has few parameters and an enormous state.
    let mut c = config(DType::F32);
    c.layer_types[1] = "swa".into();
    let huge = json!({"window": 1 << 24});
    c.mixers
        .insert("swa".into(), serde_json::from_value(huge).unwrap());
    let m = LanguageModel::new(&c, 0, &Device::Cpu).unwrap();
    let e = m.init_state(1 << 20).unwrap_err().to_string();
    assert!(e.contains("a state of") && e.contains("GiB"), "{e}");
    let m = model(DType::F32, 0);
    let planned = blueprint(m.config()).unwrap();
    assert_eq!(planned.len(), m.params().len());
    for (p, plan) in m.params().iter().zip(planned) {
        assert_eq!(
            (p.name(), p.shape()),
            (plan.name.as_str(), plan.shape.as_slice())
        );
    }
}

#[test]
fn explain_names_every_layer_and_adds_up() {
    let m = model(DType::F32, 1);
    let e = explain(&m, 100).unwrap();
    let names: Vec<&str> = e.layers.iter().map(|l| l.mixer).collect();
    assert_eq!(names, ["gdn2", "attention", "gdn2"]);
    assert_eq!(e.parameters, m.params().count());
    assert_eq!(e.parameter_bytes, 4 * e.parameters);
    let mut state = m.init_state(1).unwrap();
    run(&m, &ids(1, 100, 1), &mut state);
    assert_eq!(e.state_bytes, state.bytes());
    assert!(e.layers.iter().all(|l| !l.decode.why.is_empty()));
    let json = serde_json::to_value(&e).unwrap();
    assert_eq!(json["layers"][1]["mixer"], "attention");
    assert_eq!(json["dtype"], "f32");
}

#[test]
fn every_registered_mixer_can_be_woven_into_a_model() {
    let names = registry::MIXERS
        .iter()
        .map(|e| e.name.to_string())
        .collect();
    let c = Config {
        dtype: DType::F64,
        ..Config::new(19, 32, names)
    };
    let m = LanguageModel::new(&c, 1, &Device::Cpu).unwrap();
    let ids = Rng::new(2).integers(&[2, 37], 0, 19, &Device::Cpu).unwrap();
    let whole = run(&m, &ids, &mut m.init_state(2).unwrap());
    let mut state = m.init_state(2).unwrap();
    for t in 0..37 {
        let got = run(&m, &ids.narrow(1, t, 1).unwrap(), &mut state);
        close(&got, &whole.narrow(1, t, 1).unwrap(), 1e-9);
    }
    let loss = m.loss(&ids, &F64).unwrap().mean_all().unwrap();
    let gradients = loss.backward().unwrap();
    for p in m.params().iter() {
        let g = gradients.get(&p.get()).unwrap();
        assert!(g.all_finite().unwrap(), "{}", p.name());
    }
}
