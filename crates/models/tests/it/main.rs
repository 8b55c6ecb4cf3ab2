//! Language models through their public interface: states, losses, folders, generation.

mod decoder;
mod folder;
mod generate;
mod lm;
mod state;

use weft_mixers::Call;
use weft_models::tokenizer::{END_OF_TEXT, Tokenizer};
use weft_models::{Config, LanguageModel, ModelState};
use weft_tensor::{DType, Device, Rng, Tensor, no_grad};

/// Two recurrent layers around one of attention, over bytes and one special token.
fn config(dtype: DType) -> Config {
    let layers = ["gdn2", "attention", "gdn2"].map(String::from);
    Config {
        dtype,
        intermediate_size: 24,
        initializer_range: 0.5,
        ..Config::new(257, 16, layers.to_vec())
    }
}

fn model(dtype: DType, seed: u64) -> LanguageModel {
    LanguageModel::new(&config(dtype), seed, &Device::Cpu).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::byte_level(&[END_OF_TEXT]).unwrap()
}

/// Random ids [batch, tokens].
fn ids(batch: usize, tokens: usize, seed: u64) -> Tensor {
    Rng::new(seed)
        .integers(&[batch, tokens], 0, 257, &Device::Cpu)
        .unwrap()
}

/// Logits of the next tokens, and the state behind them.
fn run(model: &LanguageModel, ids: &Tensor, state: &mut ModelState) -> Tensor {
    no_grad(|| model.forward(ids, state, &Call::default())).unwrap()
}

#[track_caller]
fn close(got: &Tensor, want: &Tensor, tolerance: f64) {
    weft_mixers::golden::assert_close("models", got, want, tolerance);
}
