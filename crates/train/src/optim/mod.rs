//! Optimisers. One [`Optimizer`] holds a rule and its moments for every parameter of a model:
//!
//! - **AdamW** (Loshchilov & Hutter 2019, arXiv:1711.05101) for everything, or
//! - **Muon** (Jordan et al. 2024; scale of Liu et al. 2025, arXiv:2502.16982) for hidden matrices, with AdamW for
//!   embeddings, heads and vectors. Its steps have the size of AdamW's, so one learning rate and one weight decay
//!   serve both.
//!
//! Moments are f32 tensors with names, so that a checkpoint holds them like weights. A gradient of any float dtype
//! is taken; parameters are f32 master weights. Results do not depend on the number of threads.

mod adamw;
mod grads;
mod muon;

use std::collections::HashMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use weft_mixers::{Param, Params};
use weft_tensor::{DType, Tensor, no_grad};

use crate::error::{Error, Result};

pub use grads::{Grads, clip_factor};
pub use muon::orthogonalize;

/// Which rule moves the hidden matrices. Embeddings, heads and vectors always follow AdamW.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Adam with decoupled weight decay.
    #[default]
    AdamW,
    /// Momentum, orthogonalised.
    Muon,
}

/// The settings of an [`Optimizer`]; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Rule for hidden matrices.
    pub rule: Rule,
    /// AdamW: decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW: decay of the mean of squared gradients.
    pub beta2: f64,
    /// AdamW: added to the root of the second moment.
    pub eps: f64,
    /// Fraction of a matrix removed per unit of learning rate; vectors never decay.
    pub weight_decay: f64,
    /// Muon: decay of the momentum (Nesterov's form is used).
    pub momentum: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            rule: Rule::AdamW,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            momentum: 0.95,
        }
    }
}

/// Moves the parameters of a model along their gradients.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
    steps: u64,
}

/// A parameter with its moments.
struct Slot {
    param: Param,
    rule: Rule,
    /// AdamW: the mean of gradients and of their squares. Muon: the momentum.
    moments: Vec<Tensor>,
}

/// The learning rate and factors that all parameters share in one step.
#[derive(Clone, Copy)]
struct Step {
    lr: f64,
    /// Factor on the gradient (clipping, averaging).
    scale: f64,
    /// Number of this step, from 1.
    number: u64,
}

impl Optimizer {
    /// Moments at zero for all parameters, which must be f32.
    ///
    /// # Errors
    /// When a parameter has another dtype; its name is given.
    pub fn new(params: &Params, config: OptimizerConfig) -> Result<Self> {
        let slot = |param: &Param| {
            let value = param.get();
            if value.dtype() != DType::F32 {
                let (name, dtype) = (param.name(), value.dtype());
                return Err(Error::Optimizer(format!(
                    "parameter {name} is {dtype}: training keeps master weights in f32, convert the model first"
                )));
            }
            let rule = match config.rule {
                Rule::Muon if is_hidden_matrix(param) => Rule::Muon,
                _ => Rule::AdamW,
            };
            let zeros = || Tensor::zeros(param.shape(), DType::F32, &value.device());
            let moments = rule.moment_names().iter().map(|_| zeros()).collect();
            Ok(Slot {
                param: param.clone(),
                rule,
                moments,
            })
        };
        Ok(Self {
            config,
            slots: params.iter().map(slot).collect::<Result<_>>()?,
            steps: 0,
        })
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step of all parameters: `grads` in their order, multiplied by `scale`. A parameter without a gradient
    /// is treated as if it were zero: its moments fade and its weight decays.
    ///
    /// # Errors
    /// When a gradient does not have the shape of its parameter; parameters before it may have moved.
    pub fn step(&mut self, grads: &Grads, lr: f64, scale: f64) -> Result<()> {
        grads.expect_len(self.slots.len())?;
        let step = Step {
            lr,
            scale,
            number: self.steps + 1,
        };
        let config = self.config;
        self.slots
            .par_iter_mut()
            .zip(grads.as_slice())
            .try_for_each(|(slot, grad)| no_grad(|| slot.step(grad.as_ref(), &config, step)))?;
        self.steps = step.number;
        Ok(())
    }

    /// The moments by name (`parameter.moment`), for a checkpoint.
    pub fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.slots.iter().flat_map(|slot| {
            let names = slot.rule.moment_names().iter();
            let named = |name| format!("{}.{name}", slot.param.name());
            names.map(named).zip(&slot.moments)
        })
    }

    /// Put back the moments that [`Optimizer::state`] gave after `steps` steps.
    ///
    /// # Errors
    /// When a moment is missing, left over, or has another shape or dtype: then nothing is changed.
    pub fn load(&mut self, mut state: HashMap<String, Tensor>, steps: u64) -> Result<()> {
        let mut loaded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let take = |name: &&str| {
                let name = format!("{}.{name}", slot.param.name());
                let Some(t) = state.remove(&name) else {
                    return Err(Error::Optimizer(format!("the state has no {name}")));
                };
                if t.shape() != slot.param.shape() || t.dtype() != DType::F32 {
                    let (shape, dtype, want) = (t.shape(), t.dtype(), slot.param.shape());
                    return Err(Error::Optimizer(format!(
                        "the state's {name} is {dtype} {shape:?}, expected f32 {want:?}"
                    )));
                }
                Ok(t)
            };
            let names = slot.rule.moment_names().iter();
            loaded.push(names.map(take).collect::<Result<Vec<_>>>()?);
        }
        if let Some(name) = state.keys().min() {
            return Err(Error::Optimizer(format!(
                "the state has {name}, which this optimiser does not use: was it another rule or model?"
            )));
        }
        for (slot, moments) in self.slots.iter_mut().zip(loaded) {
            slot.moments = moments;
        }
        self.steps = steps;
        Ok(())
    }
}

impl Rule {
    fn moment_names(self) -> &'static [&'static str] {
        match self {
            Rule::AdamW => &["mean", "square"],
            Rule::Muon => &["momentum"],
        }
    }
}

impl Slot {
    fn step(&mut self, grad: Option<&Tensor>, config: &OptimizerConfig, step: Step) -> Result<()> {
        let grad = match grad {
            Some(g) if g.shape() == self.param.shape() => {
                g.detach().to_dtype(DType::F32)?.contiguous()?
            }
            Some(g) => {
                let (name, shape, want) = (self.param.name(), g.shape(), self.param.shape());
                return Err(Error::Optimizer(format!(
                    "the gradient of {name} has shape {shape:?}, expected {want:?}"
                )));
            }
            None => self.moments[0].zeros_like(),
        };
        match (self.rule, self.moments.as_mut_slice()) {
            (Rule::AdamW, [mean, square]) => {
                adamw::step(&self.param, &grad, mean, square, config, step)
            }
            (_, moments) => muon::step(&self.param, &grad, &mut moments[0], config, step),
        }
    }
}

/// Decay of this parameter in one step: the factor 1 - lr * weight_decay, or 1.
fn shrink(param: &Param, config: &OptimizerConfig, lr: f64) -> f32 {
    if param.decays() {
        (1.0 - lr * config.weight_decay) as f32
    } else {
        1.0
    }
}

/// A matrix between hidden activations: not a vector, a thin filter bank, an embedding or a head.
fn is_hidden_matrix(param: &Param) -> bool {
    const THIN: usize = 8;
    const OUTER: [&str; 3] = ["embed", "lm_head", "head"];
    let outer = |part: &str| OUTER.iter().any(|o| part.starts_with(o));
    param.decays()
        && param.shape().len() == 2
        && param.shape().iter().all(|&n| n > THIN)
        && !param.name().split('.').any(outer)
}

#[cfg(test)]
mod tests;
