//! Where a training step on the GPU spends its time, kernel by kernel.
//!
//! ```text
//! cargo run --release -p weft-train --example profile_step -- "attention" 1024
//! ```

use std::time::Instant;

use weft_models::{Config, LanguageModel, Run};
use weft_tensor::{DType, Device, Rng, cuda};
use weft_train::optim::{Grads, Optimizer};
use weft_train::recipe::Recipe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let layers = args.next().unwrap_or_else(|| "attention".into());
    let tokens: usize = args.next().map_or(Ok(1024), |t| t.parse())?;
    let batch = (16 * 1024 / tokens).max(1);
    let device = Device::cuda(0)?;
    let pattern = layers.parse::<weft_models::pattern::Pattern>()?;
    let mut config = Config::new(32_000, 768, pattern.layers(12)?);
    config.intermediate_size = 2048;
    config.tie_word_embeddings = false;
    for (mixer, heads, dim) in [("gdn2", 6, 128), ("attention", 12, 64)] {
        let table = serde_json::json!({ "num_heads": heads, "head_dim": dim });
        if let (serde_json::Value::Object(table), true) =
            (table, config.layer_types.iter().any(|l| l == mixer))
        {
            config.mixers.insert(mixer.into(), table);
        }
    }
    let model = LanguageModel::new(&config, 0, &device)?;
    let recipe = "[model]\nd_model = 8\nlayers = \"attention\"\n[data]\ntext = [\"-\"]\nsequence = 8\n[train]\nsteps = 1\nlr = 1e-4\n";
    let recipe = Recipe::parse(recipe, "bench")?;
    let mut optimizer = Optimizer::new(model.params(), &recipe.train.optimizer)?;
    let mut rng = Rng::new(1);
    let run = Run {
        compute: DType::BF16,
        checkpoint: false,
    };
    let mut step = || -> Result<f64, Box<dyn std::error::Error>> {
        let ids = rng.integers(&[batch, tokens + 1], 0, 32_000, &Device::Cpu)?;
        let loss = model.loss(&ids, &run)?.mean_all()?;
        let mut grads = loss.backward()?;
        let grads = Grads::take(model.params(), &mut grads);
        Ok(optimizer.clipped_step(&grads, &loss, 1.0, 1, 1.0)?.loss)
    };
    for _ in 0..5 {
        step()?;
    }
    let begin = Instant::now();
    let mut loss = 0.0;
    for _ in 0..10 {
        loss = step()?;
    }
    let ms = 100.0 * begin.elapsed().as_secs_f64();
    let before = cuda::memory::usage(0)?.driver_allocations;
    let (result, lines) = cuda::profile(0, &mut step)?;
    result?;
    let usage = cuda::memory::usage(0)?;
    println!(
        "{layers} T {tokens}: {ms:.2} ms, {:.1} k tokens/s, loss {loss:.3}, {} M parameters, peak {} MB, {} allocations in a step",
        (batch * tokens) as f64 / ms,
        model.params().count() / 1_000_000,
        usage.peak >> 20,
        usage.driver_allocations - before
    );
    let sum: f64 = lines.iter().map(|l| l.ms).sum();
    println!(
        "busy {sum:.2} ms in {} launches",
        lines.iter().map(|l| l.launches).sum::<usize>()
    );
    for l in lines.iter().take(40) {
        println!(
            "{:9.3} ms {:5} x {:8.1} us  {} / {}",
            l.ms,
            l.launches,
            1e3 * l.ms / l.launches as f64,
            l.op,
            l.kernel
        );
    }
    Ok(())
}
