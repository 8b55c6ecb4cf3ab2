//! The model of a command, and how it is run.

use std::path::PathBuf;

use weft_models::{LanguageModel, folder, tokenizer::Tokenizer};
use weft_tensor::DType;

use super::device::DeviceArg;

/// The options of every command that runs a model.
#[derive(clap::Args)]
pub struct ModelArg {
    /// The model folder
    model: PathBuf,
    /// Keep the weights in this dtype; bf16 reads half the bytes per token [default: as stored]
    #[arg(long, value_name = "DTYPE", value_enum)]
    weights: Option<Weights>,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Weights {
    F32,
    Bf16,
}

impl ModelArg {
    /// The model on its device, and its tokenizer.
    pub fn load(&self) -> anyhow::Result<(LanguageModel, Tokenizer)> {
        let model = folder::load(&self.model, &self.device.open()?)?;
        match self.weights {
            Some(Weights::F32) => model.store_weights(DType::F32)?,
            Some(Weights::Bf16) => model.store_weights(DType::BF16)?,
            None => {}
        }
        let tokenizer = folder::load_tokenizer(&self.model, model.config())?;
        Ok((model, tokenizer))
    }
}
