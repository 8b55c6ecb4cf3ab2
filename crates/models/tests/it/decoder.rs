//! Recorded decoding on the GPU against decoding step by step. Skipped where there is no GPU.

use serde_json::json;
use weft_mixers::Call;
use weft_models::{Config, Decoder, LanguageModel};
use weft_tensor::{DType, Device, Rng, Tensor, cuda, no_grad};

/// A model whose every mixer can be recorded: kernels exist for heads of 64.
fn model(device: &Device) -> LanguageModel {
    let layers = ["gdn2", "attention", "kda", "swa", "gdn"].map(String::from);
    let mut config = Config::new(300, 128, layers.to_vec());
    let heads = json!({ "num_heads": 2, "head_dim": 64 });
    let window = json!({ "num_heads": 2, "head_dim": 64, "window": 24, "sinks": 2 });
    for (name, table) in [
        ("gdn2", &heads),
        ("attention", &heads),
        ("kda", &heads),
        ("swa", &window),
        ("gdn", &heads),
    ] {
        let table = table.as_object().unwrap().clone();
        config.mixers.insert(name.into(), table);
    }
    LanguageModel::new(&config, 3, device).unwrap()
}

#[test]
fn recorded_steps_equal_steps() {
    let Some(gpu) = cuda::for_tests() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let model = model(&gpu);
        model.store_weights(dtype).unwrap();
        let prompt = Rng::new(1)
            .integers(&[2, 50], 0, 300, &Device::Cpu)
            .unwrap();
        let mut eager = model.init_state(2).unwrap();
        let call = Call::default();
        no_grad(|| model.forward_last(&prompt, &mut eager, &call)).unwrap();
        let mut state = eager.clone();
        let mut decoder = Decoder::new(&model, &mut state);
        let mut recorded = 0;
        // Across the end of the cache at 64 and of the window, where a step is recorded again or wraps around.
        for t in 0..40i64 {
            let ids = [(7 * t) % 300, (11 * t + 5) % 300];
            let at = Tensor::from_slice(&ids, &[2, 1], &gpu).unwrap();
            let want = no_grad(|| model.forward_last(&at, &mut eager, &call)).unwrap();
            let got = decoder.step(&ids).unwrap();
            recorded += usize::from(decoder.is_recorded());
            assert_eq!(decoder.state().positions(), eager.positions());
            let (want, got) = (want.to_f64_vec().unwrap(), got.to_f64_vec().unwrap());
            let far = want.iter().zip(&got).map(|(w, g)| (w - g).powi(2));
            let size: f64 = want.iter().map(|w| w * w).sum();
            let distance = (far.sum::<f64>() / size).sqrt();
            // Attention over the cache is cut by its capacity, not by what is filled.
            let most = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
            assert!(distance < most, "{dtype}, token {t}: {distance:e}");
        }
        assert!(recorded > 30, "{recorded} recorded steps");
        // The state goes on without the decoder.
        let at = Tensor::from_slice(&[1i64, 2], &[2, 1], &gpu).unwrap();
        let go = |state| no_grad(|| model.forward_last(&at, state, &call)).unwrap();
        let [a, b] = [go(&mut eager), go(&mut state)].map(|t| t.to_f64_vec().unwrap());
        let far: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
        assert!(far / a.iter().map(|a| a.abs()).sum::<f64>() < 2e-2);
    }
}
