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

/// The residual stream: x [B, T, D], and the last branch as long as it is not added yet, because the norm that reads the
/// stream next adds it in the same pass.
#[derive(Clone)]
pub struct Stream {
    x: Tensor,
    branch: Option<Tensor>,
}

impl From<Tensor> for Stream {
    fn from(x: Tensor) -> Stream {
        Stream { x, branch: None }
    }
}

impl Stream {
    fn after(x: Tensor, branch: Tensor) -> Stream {
        let branch = Some(branch);
        Stream { x, branch }
    }

    /// The stream with its branch added, and the norm of that.
    pub fn normed(self, norm: &RmsNorm) -> Result<[Tensor; 2]> {
        Ok(match self.branch {
            Some(branch) => norm.after_adding(&self.x, &branch)?,
            None => {
                let normed = norm.forward(&self.x)?;
                [self.x, normed]
            }
        })
    }

    /// The stream with its branch added.
    pub fn sum(self) -> Result<Tensor> {
        Ok(match self.branch {
            Some(branch) => self.x.add(&branch)?,
            None => self.x,
        })
    }

    /// The same for the rows that `f` picks of [B, T, D].
    pub fn map(self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Stream> {
        let branch = self.branch.as_ref().map(&f).transpose()?;
        let x = f(&self.x)?;
        Ok(Stream { x, branch })
    }
}

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

    /// The stream after this block, [B, T, D]; the state moves on by the valid tokens.
    pub fn forward(&self, x: Stream, state: &mut State, call: &Call) -> Result<Stream> {
        let [x, normed] = x.normed(&self.mixer_norm)?;
        let mixed = self.mixer.forward(&normed, state, call)?;
        let [x, normed] = Stream::after(x, mixed).normed(&self.mlp_norm)?;
        Ok(Stream::after(x, self.mlp.forward(&normed)?))
    }

    /// Whole sequences from their beginning, the final state dropped.
    pub fn from_start(&self, x: Stream) -> Result<Stream> {
        let mut state = self.mixer.init_state(x.x.dim(0)?, x.x.dtype())?;
        self.forward(x, &mut state, &Call::default())
    }

    /// [`Block::from_start`] that keeps only the stream for the backward pass and computes the rest again there.
    pub fn checkpointed(self: &Arc<Block>, x: &Stream) -> Result<Stream> {
        let block = self.clone();
        let run = move |inputs: &[Tensor]| {
            let x = Stream::from(inputs[0].clone());
            match block.from_start(x).and_then(Stream::sum) {
                Ok(y) => Ok([y]),
                Err(e) => Err(weft_tensor::Error::Custom(e.to_string())),
            }
        };
        let x = x.clone().sum()?;
        let [y] = checkpoint(&[&x], run)?;
        Ok(y.into())
    }

    /// The state before the first token, for activations of a dtype.
    pub fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        Ok(self.mixer.init_state(batch, dtype)?)
    }
}
