//! End to end on the CPU, the rows of `benches/peers/torch_cpu.py`: training steps (forward, backward, AdamW) of a
//! transformer and of a gdn2 hybrid, decoding of a larger hybrid (weights in f32, in bf16), and the time per token of a recurrent model at
//! positions 100 and 10,000. Where there is a GPU, also training steps and decoding of models of 124 million
//! parameters and more on it, in bf16. One JSON object per row; `ms` is the best median of three rounds, as the peer's is.
//!
//! ```text
//! cargo bench -p weft-train --bench end_to_end -- [transformer|hybrid|decode|decode-bf16|constant]
//! cargo bench -p weft-train --bench end_to_end -- [gpu-transformer|gpu-hybrid|gpu-decode]
//! ```

use std::time::Instant;

use serde_json::json;
use weft_mixers::Call;
use weft_models::{Config, LanguageModel, Run};
use weft_tensor::{DType, Device, Rng, in_pool, memory, no_grad};
use weft_train::optim::{Grads, Optimizer};
use weft_train::recipe::Recipe;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Sizes of a model.
#[derive(Clone, Copy)]
struct Shape {
    layers: &'static str,
    depth: usize,
    width: usize,
    hidden: usize,
    vocab: usize,
}

const SMALL: Shape = Shape {
    layers: "attention",
    depth: 6,
    width: 256,
    hidden: 704,
    vocab: 2048,
};
const DECODED: Shape = Shape {
    layers: HYBRID,
    depth: 12,
    width: 512,
    hidden: 1376,
    ..SMALL
};
const LARGE: Shape = Shape {
    depth: 12,
    width: 768,
    hidden: 2048,
    vocab: 32_000,
    ..SMALL
};
const HYBRID: &str = "3*gdn2 + attention";

fn model(shape: Shape, device: &Device) -> Result<LanguageModel, Box<dyn std::error::Error>> {
    let pattern = shape.layers.parse::<weft_models::pattern::Pattern>()?;
    let mut config = Config::new(shape.vocab, shape.width, pattern.layers(shape.depth)?);
    config.intermediate_size = shape.hidden;
    config.tie_word_embeddings = false;
    let head_dim = if shape.width < 512 { 64 } else { 128 };
    for (mixer, dim) in [("gdn2", head_dim), ("attention", 64)] {
        let table = json!({ "num_heads": shape.width / dim, "head_dim": dim });
        if let serde_json::Value::Object(table) = table {
            config.mixers.insert(mixer.into(), table);
        }
    }
    config
        .mixers
        .retain(|name, _| config.layer_types.contains(name));
    Ok(LanguageModel::new(&config, 0, device)?)
}

/// The best of three medians of `n` calls, in milliseconds, after warm-up.
fn best_median(
    n: usize,
    mut f: impl FnMut() -> Outcome,
) -> Result<f64, Box<dyn std::error::Error>> {
    for _ in 0..3 {
        f()?;
    }
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let mut times = Vec::with_capacity(n);
        for _ in 0..n {
            let begin = Instant::now();
            f()?;
            times.push(1e3 * begin.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        best = best.min(times[n / 2]);
    }
    Ok(best)
}

/// Resident memory of this process in megabytes: now, and at its highest.
fn rss() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let read = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok())
            .map_or(f64::NAN, |kb| kb / 1024.0)
    };
    (read("VmRSS:"), read("VmHWM:"))
}

/// Training steps on `batch` sequences of `tokens` random tokens.
fn train(
    what: &str,
    shape: Shape,
    [batch, tokens]: [usize; 2],
    compute: DType,
    device: Device,
) -> Outcome {
    let model = model(shape, &device)?;
    let recipe = "[model]\nd_model = 8\nlayers = \"attention\"\n[data]\ntext = [\"-\"]\nsequence = 8\n[train]\nsteps = 1\nlr = 1e-4\n";
    let recipe = Recipe::parse(recipe, "bench")?;
    let mut optimizer = Optimizer::new(model.params(), &recipe.train.optimizer)?;
    let mut rng = Rng::new(1);
    let run = Run {
        compute,
        checkpoint: false,
    };
    let ms = best_median(10, || {
        let ids = rng.integers(&[batch, tokens + 1], 0, shape.vocab as i64, &Device::Cpu)?;
        let mut grads = model.loss(&ids, &run)?.mean_all()?.backward()?;
        optimizer.step(&Grads::take(model.params(), &mut grads), 1.0, 1.0)?;
        Ok(device.synchronize()?)
    })?;
    // Of host memory; a GPU's blocks are counted elsewhere.
    let peak = (device == Device::Cpu).then(|| memory::usage().peak as f64 / 1e6);
    println!(
        "{}",
        json!({ "what": what, "ms": ms, "tokens_per_second": 1e3 * (batch * tokens) as f64 / ms,
            "parameters": model.params().count(), "peak_tensor_mb": peak, "peak_rss_mb": rss().1,
            "threads": rayon::current_num_threads() })
    );
    Ok(())
}

/// Milliseconds per token at each of the positions, all reached token by token, and megabytes in use there.
fn decode(
    model: &LanguageModel,
    positions: &[usize],
) -> Result<Vec<(f64, f64)>, Box<dyn std::error::Error>> {
    let mut state = model.init_state(1)?;
    let mut rng = Rng::new(2);
    let mut at = 0;
    let mut step = |at: &mut usize| -> Outcome {
        let vocab = model.config().vocab_size as i64;
        let id = rng.integers(&[1, 1], 0, vocab, &Device::Cpu)?;
        no_grad(|| model.forward_last(&id, &mut state, &Call::default()))?;
        model.device().synchronize()?;
        *at += 1;
        Ok(())
    };
    let mut found = vec![];
    for &position in positions {
        while at < position {
            step(&mut at)?;
        }
        found.push((best_median(100, || step(&mut at))?, rss().0));
    }
    Ok(found)
}

/// Bytes of all parameters.
fn weights(model: &LanguageModel) -> f64 {
    let sizes = model.params().iter().map(|p| p.get());
    sizes.map(|t| (t.count() * t.dtype().size()) as f64).sum()
}

fn main() -> Outcome {
    Ok(in_pool(|| rows().map_err(|e| e.to_string()))?)
}

fn rows() -> Outcome {
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |what: &str| only.as_deref().is_none_or(|o| o == what);
    let hybrid = |shape| Shape {
        layers: HYBRID,
        ..shape
    };
    let cpu = Device::Cpu;
    if wanted("transformer") {
        train("transformer", SMALL, [8, 256], DType::F32, cpu)?;
    }
    if wanted("hybrid") {
        train("hybrid", hybrid(SMALL), [8, 256], DType::F32, cpu)?;
    }
    let mut decoded = vec![
        ("decode", DECODED, DType::F32, cpu),
        ("decode-bf16", DECODED, DType::BF16, cpu),
    ];
    if let Ok(gpu) = Device::cuda(0) {
        for (what, shape) in [("gpu-transformer", LARGE), ("gpu-hybrid", hybrid(LARGE))] {
            if wanted(what) {
                train(what, shape, [16, 1024], DType::BF16, gpu)?;
            }
        }
        decoded.push(("gpu-decode", hybrid(LARGE), DType::BF16, gpu));
    }
    for (what, shape, dtype, device) in decoded {
        if wanted(what) {
            let model = model(shape, &device)?;
            model.store_weights(dtype)?;
            let (ms, _) = decode(&model, &[100])?[0];
            println!(
                "{}",
                json!({ "what": what, "ms": ms, "tokens_per_second": 1e3 / ms, "parameters": model.params().count(),
                    "weights_mb": weights(&model) / 1e6, "peak_rss_mb": rss().1 })
            );
        }
    }
    if wanted("constant") {
        let shape = Shape {
            layers: "gdn2",
            ..DECODED
        };
        let model = model(shape, &cpu)?;
        let positions = [100, 10_000];
        for (position, (ms, rss)) in positions.iter().zip(decode(&model, &positions)?) {
            println!(
                "{}",
                json!({ "what": "constant", "position": position, "ms": ms, "rss_mb": rss })
            );
        }
    }
    Ok(())
}
