//! A pre-norm block (Xiong et al. 2020) around a mixer:
//!
//! ```text
//! x = x + mixer(norm(x))
//! x = x + mlp(norm(x))        x [B, T, D]
//! ```

use std::sync::Arc;

use weft_mixers::shared::norm::RmsNorm;
use weft_mixers::{Call, Mixer, Scope, State};
use weft_tensor::{DType, Tensor, checkpoint};

use crate::config::Config;
use crate::error::Result;
use crate::mlp::Mlp;

/// One layer of a language model.
pub struct Block {
    mixer_norm: RmsNorm,
    mixer: Box<dyn Mixer>,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    /// Build layer `layer`: `mixer_norm`, `mixer`, `mlp_norm`, `mlp`.
    pub fn new(config: &Config, layer: usize, scope: &mut Scope) -> Result<Block> {
        let (entry, options) = config.mixer(layer)?;
        let (d, eps) = (config.hidden_size, config.rms_norm_eps);
        Ok(Block {
            mixer_norm: RmsNorm::new(scope, "mixer_norm", d, eps, false)?,
            mixer: (entry.build)(&options, &mut scope.sub("mixer"))?,
            mlp_norm: RmsNorm::new(scope, "mlp_norm", d, eps, false)?,
            mlp: Mlp::new(config, &mut scope.sub("mlp"))?,
        })
    }

    /// The sequence mixer.
    pub fn mixer(&self) -> &dyn Mixer {
        &*self.mixer
    }

    /// The channel mixer.
    pub fn mlp(&self) -> &Mlp {
        &self.mlp
    }

    /// x [B, T, D] -> [B, T, D]; the state moves on by the valid tokens.
    pub fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let mixed = self
            .mixer
            .forward(&self.mixer_norm.forward(x)?, state, call)?;
        let x = x.add(&mixed)?;
        Ok(x.add(&self.mlp.forward(&self.mlp_norm.forward(&x)?)?)?)
    }

    /// Whole sequences from their beginning: x [B, T, D] -> [B, T, D], the final state dropped.
    pub fn from_start(&self, x: &Tensor) -> Result<Tensor> {
        let mut state = self.mixer.init_state(x.dim(0)?, x.dtype())?;
        self.forward(x, &mut state, &Call::default())
    }

    /// [`Block::from_start`] that keeps only x for the backward pass and computes the rest again there.
    pub fn checkpointed(self: &Arc<Block>, x: &Tensor) -> Result<Tensor> {
        let block = self.clone();
        let run = move |inputs: &[Tensor]| match block.from_start(&inputs[0]) {
            Ok(y) => Ok(vec![y]),
            Err(e) => Err(weft_tensor::Error::Custom(e.to_string())),
        };
        Ok(checkpoint(&[x], run)?.remove(0))
    }

    /// The state before the first token, for activations of a dtype.
    pub fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        Ok(self.mixer.init_state(batch, dtype)?)
    }
}
