//! Both ends of a language model: token ids to vectors, and vectors to logits over the vocabulary.

use weft_mixers::shared::norm::RmsNorm;
use weft_mixers::{Init, Param, Scope};
use weft_tensor::{DType, Device, Tensor};

use crate::block::Stream;
use crate::config::Config;
use crate::error::Result;

/// The table of token vectors, [V, D].
pub struct Embedding {
    table: Param,
}

impl Embedding {
    /// Build `embed_tokens.weight`: normal, of the config's `initializer_range`.
    pub fn new(config: &Config, scope: &mut Scope) -> Result<Embedding> {
        let init = Init::Normal {
            std: config.initializer_range,
        };
        let shape = [config.vocab_size, config.hidden_size];
        let table = scope.sub("embed_tokens").weight("weight", &shape, init)?;
        Ok(Embedding { table })
    }

    /// The dtype that the table is stored in.
    pub fn dtype(&self) -> DType {
        self.table.get().dtype()
    }

    /// Where the table lives.
    pub fn device(&self) -> Device {
        self.table.get().device()
    }

    /// ids [B, T] i64 -> [B, T, D] in a dtype. Rows are converted, never the whole table.
    pub fn forward(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        Ok(self.table.get().embedding(ids)?.to_dtype(dtype)?)
    }
}

/// The last norm and the projection to logits.
pub struct Head {
    norm: RmsNorm,
    /// [V, D]; the embedding's table where the config ties them.
    weight: Param,
}

impl Head {
    /// Build `model.norm` and, if untied, `lm_head.weight` (normal, of the config's `initializer_range`).
    pub fn new(config: &Config, embedding: &Embedding, scope: &mut Scope) -> Result<Head> {
        let (v, d) = (config.vocab_size, config.hidden_size);
        let norm = RmsNorm::new(
            &mut scope.sub("model"),
            "norm",
            d,
            config.rms_norm_eps,
            false,
        )?;
        let init = Init::Normal {
            std: config.initializer_range,
        };
        let weight = if config.tie_word_embeddings {
            embedding.table.clone()
        } else {
            scope.sub("lm_head").weight("weight", &[v, d], init)?
        };
        Ok(Head { norm, weight })
    }

    /// The stream [.., D] -> logits [.., V] in f32 (f64 for f64 models). Under f32 masters bf16 activations are widened,
    /// so that no large matrix is converted per call.
    pub fn forward(&self, x: Stream) -> Result<Tensor> {
        let weight = self.weight.get();
        let [_, normed] = x.normed(&self.norm)?;
        let x = match weight.dtype() {
            DType::BF16 => normed,
            wide => normed.to_dtype(wide)?,
        };
        let logits = x.linear(&weight, None)?;
        Ok(match logits.dtype() {
            DType::BF16 => logits.to_dtype(DType::F32)?,
            _ => logits,
        })
    }

    /// The stream [n, D] and the tokens that come next [n] i64 -> losses [n] in nats, in f32 (f64 for f64 models).
    /// On a GPU bf16 activations give bf16 logits, which never exist all at once.
    pub fn loss(&self, x: Stream, targets: &Tensor) -> Result<Tensor> {
        let [_, normed] = x.normed(&self.norm)?;
        Ok(normed.linear_cross_entropy(&self.weight.get(), targets)?)
    }

    /// Multiply-adds of one token.
    pub fn cost_per_token(&self) -> usize {
        self.weight.shape().iter().product()
    }
}
