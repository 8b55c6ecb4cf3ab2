//! Language models: ids [B, T] -> embeddings -> blocks -> norm -> logits [B, T, V].
//!
//! Parameters are named `model.embed_tokens.weight`, `model.layers.N.{mixer_norm, mixer.., mlp_norm, mlp..}`,
//! `model.norm.weight` and, if the head is untied, `lm_head.weight`.
//!
//! A new model starts with embeddings (and an untied head) normal with std `initializer_range`, MLP matrices uniform in
//! +-1/sqrt(input width), norms at 1, mixers as each says. The matrices that write into the residual stream
//! ([`OUTPUT_PROJECTIONS`]) are then scaled by 1/sqrt(2 layers), so that its variance does not grow with depth
//! (Radford et al. 2019).

use std::sync::Arc;

use weft_mixers::params::Source;
use weft_mixers::{Call, Params, Scope};
use weft_tensor::{DType, Device, Tensor};

use crate::block::{Block, Stream};
use crate::blueprint::{Shape, blueprint, check_memory};
use crate::config::Config;
use crate::embedding::{Embedding, Head};
use crate::error::{Error, Result};
use crate::state::ModelState;

/// How the names of matrices end that write into the residual stream.
pub const OUTPUT_PROJECTIONS: [&str; 3] =
    [".o_proj.weight", ".out_proj.weight", ".down_proj.weight"];

/// How a training forward is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Dtype of the activations; parameters are converted where they are used, the loss stays f32.
    pub compute: DType,
    /// Keep only each block's input for the backward pass and compute the rest again there.
    pub checkpoint: bool,
}

impl Default for Run {
    /// f32, everything kept.
    fn default() -> Run {
        Run {
            compute: DType::F32,
            checkpoint: false,
        }
    }
}

/// A language model with its parameters.
///
/// ```
/// use weft_mixers::Call;
/// use weft_models::{Config, LanguageModel, Run};
/// use weft_tensor::{Device, Tensor, no_grad};
///
/// let layers = ["gdn2", "attention"].map(String::from).to_vec();
/// let model = LanguageModel::new(&Config::new(256, 32, layers), 0, &Device::Cpu)?;
/// let ids = Tensor::from_vec(vec![72i64, 101, 108, 108, 111], &[1, 5], &Device::Cpu)?;
///
/// let loss = model.loss(&ids, &Run::default())?.mean_all()?;
/// let gradients = loss.backward()?;
/// assert!(model.params().iter().all(|p| gradients.get(&p.get()).is_some()));
///
/// let mut state = model.init_state(1)?;
/// let logits = no_grad(|| model.forward(&ids, &mut state, &Call::default()))?;
/// assert_eq!(logits.shape(), [1, 5, 256]);
/// assert_eq!(state.positions(), [5]);
/// # Ok::<(), weft_models::Error>(())
/// ```
pub struct LanguageModel {
    config: Config,
    params: Params,
    stack: Stack,
}

/// The layers, each holding its parameters.
struct Stack {
    embedding: Embedding,
    blocks: Vec<Arc<Block>>,
    head: Head,
}

impl Stack {
    fn new(config: &Config, root: &mut Scope) -> Result<Stack> {
        let mut model = root.sub("model");
        let embedding = Embedding::new(config, &mut model)?;
        let mut layers = model.sub("layers");
        let block = |i: usize| {
            let scope = &mut layers.sub(&i.to_string());
            Ok(Arc::new(Block::new(config, i, scope)?))
        };
        let blocks = (0..config.num_hidden_layers)
            .map(block)
            .collect::<Result<_>>()?;
        let head = Head::new(config, &embedding, root)?;
        Ok(Stack {
            embedding,
            blocks,
            head,
        })
    }
}

impl LanguageModel {
    /// A new model; the same config and seed give the same parameters.
    ///
    /// # Errors
    /// When the config is wrong, or its parameters do not fit into memory.
    pub fn new(config: &Config, seed: u64, device: &Device) -> Result<LanguageModel> {
        let elements: usize = blueprint(config)?.iter().map(Shape::count).sum();
        check_memory(
            "the parameters",
            elements.saturating_mul(config.dtype.size()),
        )?;
        let mut params = Params::new();
        let mut scope = Scope::random(&mut params, seed, config.dtype, device);
        let stack = Stack::new(config, &mut scope)?;
        let scale = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
        for p in params.iter() {
            if OUTPUT_PROJECTIONS.iter().any(|end| p.name().ends_with(end)) {
                p.set(&p.get().detach().mul_scalar(scale)?)?;
            }
        }
        Ok(LanguageModel {
            config: config.clone(),
            params,
            stack,
        })
    }

    /// A model whose parameters come from `source`, by name and shape, in the dtype that they have there.
    ///
    /// # Errors
    /// When the config is wrong, or the source refuses a parameter or gives one of another shape.
    pub fn from_source(
        config: &Config,
        source: &Source<'_>,
        device: &Device,
    ) -> Result<LanguageModel> {
        config.check()?;
        let mut params = Params::new();
        let mut scope = Scope::from_source(&mut params, source, device);
        let stack = Stack::new(config, &mut scope)?;
        Ok(LanguageModel {
            config: config.clone(),
            params,
            stack,
        })
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The config with the dtype that the parameters have now, for `config.json`.
    pub fn stored_config(&self) -> Config {
        Config {
            dtype: self.stack.embedding.dtype(),
            ..self.config.clone()
        }
    }

    /// Every parameter, by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The layers.
    pub fn blocks(&self) -> &[Arc<Block>] {
        &self.stack.blocks
    }

    /// The projection to logits.
    pub fn head(&self) -> &Head {
        &self.stack.head
    }

    /// Multiply-adds of one token at a context of `context` tokens, the head included.
    pub fn cost_per_token(&self, context: usize) -> usize {
        let block = |b: &Arc<Block>| b.mixer().cost_per_token(context) + b.mlp().cost_per_token();
        self.blocks().iter().map(block).sum::<usize>() + self.head().cost_per_token()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.stack.embedding.device()
    }

    /// The dtype of activations in [`LanguageModel::forward`]: that of the embedding table, but f32 over bf16 weights
    /// on a CPU, which multiplies in f32 anyway.
    pub fn dtype(&self) -> DType {
        match (self.device(), self.stack.embedding.dtype()) {
            (Device::Cpu, DType::BF16) => DType::F32,
            (_, stored) => stored,
        }
    }

    /// Keep every matrix in another float dtype from now on: bf16 halves the bytes that a decoded token reads. Norms,
    /// biases, filters, decay and time-step parameters stay as they are.
    ///
    /// # Errors
    /// When `dtype` is no float dtype.
    pub fn store_weights(&self, dtype: DType) -> Result<()> {
        if !dtype.is_float() {
            return Err(Error::Input(format!("weights cannot be kept in {dtype}")));
        }
        for p in self.params.iter().filter(|p| p.shape().len() == 2) {
            p.set(&p.get().detach().to_dtype(dtype)?)?;
        }
        Ok(())
    }

    /// The state before the first token, for [`LanguageModel::forward`].
    ///
    /// # Errors
    /// When it does not fit into memory.
    pub fn init_state(&self, batch: usize) -> Result<ModelState> {
        let dtype = self.dtype();
        let blocks = &self.stack.blocks;
        let sizes = blocks.iter().map(|b| b.mixer().state_bytes(1, dtype));
        let bytes = sizes.fold(0usize, usize::saturating_add);
        check_memory("a state", bytes.saturating_mul(batch))?;
        let layers = blocks.iter().map(|b| b.init_state(batch, dtype));
        Ok(ModelState::new(layers.collect::<Result<_>>()?))
    }

    /// ids [B, T] i64 -> logits [B, T, V] in f32 (f64 for f64 models); the state moves on by the valid tokens. Ids at
    /// padding may be anything. Run it inside [`weft_tensor::no_grad`] unless gradients are wanted.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or lengths or state do not fit; the state is then unchanged.
    pub fn forward(&self, ids: &Tensor, state: &mut ModelState, call: &Call) -> Result<Tensor> {
        self.stack.head.forward(self.hidden(ids, state, call)?)
    }

    /// Like [`LanguageModel::forward`], but only the logits after the last valid token of each row, [B, V].
    ///
    /// # Errors
    /// As [`LanguageModel::forward`], and when a row has no valid token.
    pub fn forward_last(
        &self,
        ids: &Tensor,
        state: &mut ModelState,
        call: &Call,
    ) -> Result<Tensor> {
        if let Some(row) = call.lengths.and_then(|l| l.iter().position(|&n| n == 0)) {
            return Err(Error::Input(format!("row {row} has no valid token")));
        }
        let x = self.hidden(ids, state, call)?;
        let (&[b, t], device) = (&ids.dims::<2>()?, self.device());
        let at = call.lengths.map(|lengths| {
            let at = lengths.iter().enumerate();
            let at = at.map(|(r, n)| (r * t + n - 1) as i64).collect();
            Tensor::from_vec(at, &[b], &device)
        });
        let at = at.transpose()?;
        let last = x.map(|x| {
            Ok(match &at {
                None => x.narrow(1, t - 1, 1)?.squeeze(1)?,
                Some(at) => x.flatten(0, 1)?.index_select(0, at)?,
            })
        })?;
        self.stack.head.forward(last)
    }

    /// Embeddings and blocks: ids [B, T] -> [B, T, D].
    fn hidden(&self, ids: &Tensor, state: &mut ModelState, call: &Call) -> Result<Stream> {
        let [b, t] = self.check_ids(ids, call.lengths)?;
        if t == 0 {
            return Err(Error::Input(format!(
                "ids of shape [{b}, 0]: give at least one token"
            )));
        }
        state.expect(self, b)?;
        let ids = call.zero_padding(&ids.to_device(&self.device())?)?;
        let mut x: Stream = self.stack.embedding.forward(&ids, self.dtype())?.into();
        for (block, state) in self.stack.blocks.iter().zip(state.layers_mut()) {
            x = block.forward(x, state, call)?;
        }
        Ok(x)
    }

    /// Next-token loss of whole sequences from their beginning: ids [B, T + 1] i64 -> nats [B * T] in f32 (f64 for f64
    /// models), where entry b * T + t is -ln p(ids[b, t + 1] | ids[b, ..= t]).
    ///
    /// # Errors
    /// When an id is outside the vocabulary or there are fewer than two tokens.
    pub fn loss(&self, ids: &Tensor, run: &Run) -> Result<Tensor> {
        let [b, n] = self.check_ids(ids, None)?;
        if n < 2 || b == 0 {
            return Err(Error::Input(format!(
                "ids of shape [{b}, {n}]: a loss needs at least two tokens in a row"
            )));
        }
        let ids = ids.to_device(&self.device())?;
        let x = self.hidden_from_start(&ids.narrow(1, 0, n - 1)?, run)?;
        let targets = ids.narrow(1, 1, n - 1)?.reshape(&[b * (n - 1)])?;
        let rows = x.map(|x| Ok(x.flatten(0, 1)?))?;
        self.stack.head.loss(rows, &targets)
    }

    /// Logits at some places of whole sequences from their beginning: ids [B, T] i64 -> [N, V] in f32 (f64 for f64
    /// models) for N places, each b * T + t and about the token after ids[b, ..= t].
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or a place outside the sequences.
    pub fn logits_at(&self, ids: &Tensor, places: &[usize], run: &Run) -> Result<Tensor> {
        let [b, t] = self.check_ids(ids, None)?;
        if let Some(place) = places.iter().find(|&&place| place >= b * t) {
            return Err(Error::Input(format!(
                "place {place} is outside of ids of shape [{b}, {t}]"
            )));
        }
        let device = self.device();
        let x = self.hidden_from_start(&ids.to_device(&device)?, run)?;
        let rows = places.iter().map(|&place| place as i64).collect();
        let rows = Tensor::from_vec(rows, &[places.len()], &device)?;
        let at = x.map(|x| Ok(x.flatten(0, 1)?.index_select(0, &rows)?))?;
        self.stack.head.forward(at)
    }

    /// Embeddings and blocks over whole sequences from their beginning: ids [B, T] -> [B, T, D].
    fn hidden_from_start(&self, ids: &Tensor, run: &Run) -> Result<Stream> {
        let mut x: Stream = self.stack.embedding.forward(ids, run.compute)?.into();
        for block in &self.stack.blocks {
            x = if run.checkpoint {
                block.checkpointed(&x)?
            } else {
                block.from_start(x)?
            };
        }
        Ok(x)
    }

    /// Check that ids are [B, T] of i64 and, where valid, inside the vocabulary. Ids on a GPU are not waited for: a
    /// bad one is an error at the next wait.
    pub(crate) fn check_ids(&self, ids: &Tensor, lengths: Option<&[usize]>) -> Result<[usize; 2]> {
        let &[b, t] = ids.shape() else {
            let s = ids.shape();
            return Err(Error::Input(format!(
                "ids of shape {s:?}: expected [batch, tokens]"
            )));
        };
        if ids.dtype() != DType::I64 {
            let dtype = ids.dtype();
            return Err(Error::Input(format!("ids of dtype {dtype}: expected i64")));
        }
        if let Some(lengths) = lengths
            && (lengths.len() != b || lengths.iter().any(|&n| n > t))
        {
            return Err(Error::Input(format!(
                "lengths {lengths:?} do not fit {b} rows of {t} tokens"
            )));
        }
        if ids.device() != Device::Cpu {
            return Ok([b, t]);
        }
        let vocab_size = self.config.vocab_size;
        for (i, id) in ids.to_vec::<i64>()?.into_iter().enumerate() {
            let (row, position) = (i / t, i % t);
            let valid = lengths.is_none_or(|l| position < l[row]);
            if valid && !(0..vocab_size as i64).contains(&id) {
                return Err(Error::Token {
                    id,
                    row,
                    position,
                    vocab_size,
                });
            }
        }
        Ok([b, t])
    }
}
