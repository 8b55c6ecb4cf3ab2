//! The models of the end-to-end rows.

use serde_json::{Value, json};
use weft_models::pattern::Pattern;
use weft_models::{Config, LanguageModel};
use weft_tensor::{DType, Device};

use crate::error::{Error, Result};

/// Three recurrent layers to one of attention.
pub(super) const HYBRID: &str = "3*gdn2 + attention";

/// Sizes of a language model with an untied head and SwiGLU of 8/3 of the width, rounded up to a multiple of 32.
#[derive(Clone, Debug, PartialEq)]
pub struct Size {
    /// Mixers of one period of layers.
    pub layers: String,
    /// Layers.
    pub depth: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Rows of the embedding.
    pub vocab: usize,
}

/// Width of a head by mixer: in narrow models, and in those of 512 and more. Mixers that are not here take their
/// default.
const HEAD_DIMS: [(&str, [usize; 2]); 5] = [
    ("attention", [64, 64]),
    ("swa", [64, 64]),
    ("gdn", [64, 128]),
    ("kda", [64, 128]),
    ("gdn2", [64, 128]),
];

impl Size {
    /// The description of the model.
    ///
    /// # Errors
    /// When the pattern is no pattern or the sizes are out of range.
    pub fn config(&self) -> Result<Config> {
        let wrong = |e| Error::Data(format!("{e}"));
        let pattern: Pattern = self.layers.parse().map_err(wrong)?;
        let layers = pattern.layers(self.depth).map_err(wrong)?;
        let mut config = Config::new(self.vocab, self.d_model, layers);
        let hidden = self.d_model.saturating_mul(8).div_ceil(3);
        config.intermediate_size = hidden.saturating_add(31) / 32 * 32;
        config.tie_word_embeddings = false;
        for (mixer, [narrow, wide]) in HEAD_DIMS {
            let head_dim = if self.d_model < 512 { narrow } else { wide };
            let fits = self.d_model.is_multiple_of(head_dim) && self.d_model > 0;
            if !fits || !config.layer_types.iter().any(|l| l == mixer) {
                continue;
            }
            let heads = json!({ "num_heads": self.d_model / head_dim, "head_dim": head_dim });
            if let Value::Object(table) = heads {
                config.mixers.insert(mixer.into(), table);
            }
        }
        config.check()?;
        for layer in 0..self.depth {
            config.mixer(layer)?;
        }
        Ok(config)
    }

    /// A new model, its parameters f32.
    ///
    /// # Errors
    /// As [`Size::config`], and when memory is short.
    pub fn build(&self, device: &Device) -> Result<LanguageModel> {
        Ok(LanguageModel::new(&self.config()?, 0, device)?)
    }
}

/// The model of one row, for the next: drawing the numbers of a large one takes seconds.
#[derive(Default)]
pub struct LastModel(Option<(Size, DType, LanguageModel)>);

impl LastModel {
    /// A model of this size with its matrices in `weights`: the last one if it is the same, else a new one.
    pub(super) fn get(
        &mut self,
        size: &Size,
        weights: DType,
        device: &Device,
    ) -> Result<&LanguageModel> {
        let same = |(s, w, m): &(Size, DType, LanguageModel)| {
            (s, *w, m.device()) == (size, weights, *device)
        };
        // Another one is dropped before the new one takes its memory.
        let kept = match self.0.take().filter(same) {
            Some(last) => last,
            None => {
                let model = size.build(device)?;
                model.store_weights(weights)?;
                (size.clone(), weights, model)
            }
        };
        Ok(&self.0.insert(kept).2)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Size {
            layers,
            depth,
            d_model,
            ..
        } = self;
        write!(f, "{layers}, {depth} layers, d {d_model}")
    }
}
