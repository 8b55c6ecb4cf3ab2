//! Optimisers. One [`Optimizer`] holds a rule and its moments for every parameter of a model:
//!
//! - **AdamW** (Loshchilov & Hutter 2019, arXiv:1711.05101) for everything, or
//! - **Muon** (Jordan et al. 2024) for hidden matrices, with AdamW for embeddings, heads, vectors and filters.
//!
//! Moments are f32 tensors with names, so that a checkpoint holds them like weights. A gradient of any float dtype
//! is taken; parameters are f32 master weights. Results do not depend on the number of threads.

mod adamw;
mod device;
mod grads;
mod muon;

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use weft_mixers::{Param, Params};
use weft_tensor::{DType, Device, Tensor, no_grad};

use crate::error::{Error, Result};
use crate::recipe;

use device::{AdamWItem, Guard, MuonItem};

pub use device::KERNELS;
pub use grads::{Grads, clip_factor};
pub use muon::orthogonalize;

/// Moves the parameters of a model along their gradients.
pub struct Optimizer {
    slots: Vec<Slot>,
    steps: u64,
}

/// A parameter with its rule and its moments.
struct Slot {
    param: Param,
    rule: Rule,
    moments: Vec<Tensor>,
}

/// How one parameter moves.
enum Rule {
    /// Moments: the mean of gradients and that of their squares.
    AdamW(recipe::AdamW),
    /// Moment: the momentum.
    Muon(recipe::Muon),
}

/// What all parameters share in one step.
#[derive(Clone, Copy)]
struct Step {
    /// The part of the highest learning rate that this step is taken with.
    rate: f64,
    /// Factor on the gradient (clipping, averaging).
    scale: f64,
    /// Number of this step, from 1.
    number: u64,
}

/// What a step was decided on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The Euclidean norm of the mean gradient, before it was clipped.
    pub norm: f64,
    /// The mean loss.
    pub loss: f64,
}

impl Measured {
    /// Whether the step was taken.
    pub fn is_finite(&self) -> bool {
        self.norm.is_finite() && self.loss.is_finite()
    }
}

impl Optimizer {
    /// Moments at zero for all parameters, which must be f32.
    ///
    /// # Errors
    /// When a parameter has another dtype; its name is given.
    pub fn new(params: &Params, config: &recipe::Optimizer) -> Result<Self> {
        let slot = |param: &Param| {
            let value = param.get();
            if value.dtype() != DType::F32 {
                let (name, dtype) = (param.name(), value.dtype());
                return Err(Error::Optimizer(format!(
                    "parameter {name} is {dtype}: training keeps master weights in f32, convert the model first"
                )));
            }
            let rule = match config {
                recipe::Optimizer::AdamW(adamw) => Rule::AdamW(adamw.clone()),
                recipe::Optimizer::Muon(muon) if is_hidden_matrix(param) => {
                    Rule::Muon(muon.clone())
                }
                recipe::Optimizer::Muon(muon) => Rule::AdamW(muon.adamw.clone()),
            };
            let zeros = || Tensor::zeros(param.shape(), DType::F32, &value.device());
            Ok(Slot {
                param: param.clone(),
                moments: rule.moment_names().iter().map(|_| zeros()).collect(),
                rule,
            })
        };
        Ok(Self {
            slots: params.iter().map(slot).collect::<Result<_>>()?,
            steps: 0,
        })
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step of all parameters: `grads` in their order, multiplied by `scale`, with the part `rate` of each rule's
    /// highest learning rate. A parameter without a gradient is treated as if it were zero: its moments fade and its
    /// weight decays.
    ///
    /// # Errors
    /// When a gradient does not have the shape of its parameter; parameters before it may have moved.
    pub fn step(&mut self, grads: &Grads, rate: f64, scale: f64) -> Result<()> {
        grads.expect_len(self.slots.len())?;
        match self.gpu() {
            Some(gpu) => self.step_on(gpu, &grads.f32()?, rate, &Guard::scale(gpu, scale)?)?,
            None => self.step_on_host(grads, rate, scale)?,
        }
        self.steps += 1;
        Ok(())
    }

    /// One step along the mean of `summed` gradients, shortened to norm `clip` if it is longer (0: never); `losses` [] is
    /// the sum of as many losses. Where the norm or the loss is not finite, nothing changes. On a GPU the host waits
    /// only for what is returned, when everything has been sent.
    ///
    /// # Errors
    /// As [`Optimizer::step`].
    pub fn clipped_step(
        &mut self,
        grads: &Grads,
        losses: &Tensor,
        rate: f64,
        summed: u64,
        clip: f64,
    ) -> Result<Measured> {
        grads.expect_len(self.slots.len())?;
        let losses = losses.detach().to_dtype(DType::F32)?;
        let Some(gpu) = self.gpu() else {
            let measured = Measured {
                norm: grads.norm()? / summed as f64,
                loss: losses.item_f64()? / summed as f64,
            };
            if measured.is_finite() {
                let factor = clip_factor(measured.norm, clip);
                self.step(grads, rate, factor / summed as f64)?;
            }
            return Ok(measured);
        };
        let grads = grads.f32()?;
        let guard = Guard::measure(gpu, &grads, Some(&losses), summed, clip)?;
        self.step_on(gpu, &grads, rate, &guard)?;
        let measured = guard.read()?;
        if measured.is_finite() {
            self.steps += 1;
        }
        Ok(measured)
    }

    /// The GPU that the parameters are on.
    fn gpu(&self) -> Option<Device> {
        let device = self.slots.first()?.moments.first()?.device();
        (device != Device::Cpu).then_some(device)
    }

    fn next(&self, rate: f64, scale: f64) -> Step {
        Step {
            rate,
            scale,
            number: self.steps + 1,
        }
    }

    fn step_on_host(&mut self, grads: &Grads, rate: f64, scale: f64) -> Result<()> {
        let step = self.next(rate, scale);
        self.slots
            .par_iter_mut()
            .zip(grads.as_slice())
            .try_for_each(|(slot, grad)| no_grad(|| slot.step(grad.as_ref(), step)))
    }

    /// All parameters in a few launches; the factor on the gradients is the guard's.
    fn step_on(
        &mut self,
        gpu: Device,
        grads: &[Option<Tensor>],
        rate: f64,
        guard: &Guard,
    ) -> Result<()> {
        let step = self.next(rate, 1.0);
        for (slot, grad) in self.slots.iter().zip(grads) {
            slot.expect_shape(grad.as_ref())?;
        }
        let mut lent = Vec::with_capacity(self.slots.len());
        for (slot, grad) in self.slots.iter_mut().zip(grads) {
            let Slot {
                param,
                rule,
                moments,
            } = slot;
            lent.push((param.lend(), &*param, &*rule, moments, grad.as_ref()));
        }
        let mut adamw: Option<(&recipe::AdamW, Vec<AdamWItem>)> = None;
        let mut muon: BTreeMap<&[usize], (&recipe::Muon, Vec<MuonItem>)> = BTreeMap::new();
        for (value, param, rule, moments, grad) in &mut lent {
            match (rule, moments.as_mut_slice()) {
                (Rule::AdamW(rule), [mean, square]) => {
                    let lr = rule.lr * step.rate;
                    let item = AdamWItem {
                        shrink: shrink(param, rule.weight_decay, lr),
                        param: &mut *value,
                        mean,
                        square,
                        grad: *grad,
                    };
                    adamw.get_or_insert_with(|| (rule, vec![])).1.push(item);
                }
                (Rule::Muon(rule), [momentum]) => {
                    let [shrink, rate] = muon::factors(rule, param, step)?;
                    let item = MuonItem {
                        param: &mut *value,
                        momentum,
                        grad: *grad,
                        shrink,
                        rate,
                    };
                    let group = muon.entry(param.shape());
                    group.or_insert_with(|| (rule, vec![])).1.push(item);
                }
                (rule, moments) => return Err(rule.miscounted(moments.len())),
            }
        }
        no_grad(|| {
            if let Some((rule, mut items)) = adamw {
                let factors = adamw::shared_factors(rule, step);
                device::adamw(gpu, &mut items, guard, factors)?;
            }
            for (rule, mut items) in muon.into_values() {
                device::muon(gpu, &mut items, guard, rule.muon_momentum)?;
            }
            Ok(())
        })
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
                Ok(t.to_device(&slot.param.get().device())?)
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
    fn moment_names(&self) -> &'static [&'static str] {
        match self {
            Rule::AdamW(_) => &["mean", "square"],
            Rule::Muon(_) => &["momentum"],
        }
    }

    fn miscounted(&self, have: usize) -> Error {
        let want = self.moment_names().len();
        Error::Optimizer(format!("{have} moments instead of {want}"))
    }
}

impl Slot {
    fn expect_shape(&self, grad: Option<&Tensor>) -> Result<()> {
        match grad {
            Some(g) if g.shape() != self.param.shape() => {
                let (name, shape, want) = (self.param.name(), g.shape(), self.param.shape());
                Err(Error::Optimizer(format!(
                    "the gradient of {name} has shape {shape:?}, expected {want:?}"
                )))
            }
            _ => Ok(()),
        }
    }

    fn step(&mut self, grad: Option<&Tensor>, step: Step) -> Result<()> {
        self.expect_shape(grad)?;
        let grad = match grad {
            Some(g) => g.detach().to_dtype(DType::F32)?.contiguous()?,
            None => self.moments[0].zeros_like(),
        };
        match (&self.rule, self.moments.as_mut_slice()) {
            (Rule::AdamW(rule), [mean, square]) => {
                adamw::step(rule, &self.param, &grad, mean, square, step)
            }
            (Rule::Muon(rule), [momentum]) => muon::step(rule, &self.param, &grad, momentum, step),
            (rule, moments) => Err(rule.miscounted(moments.len())),
        }
    }
}

/// Decay of this parameter in one step: the factor 1 - lr * weight_decay, or 1.
fn shrink(param: &Param, weight_decay: f64, lr: f64) -> f32 {
    if param.decays() {
        (1.0 - lr * weight_decay) as f32
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
mod device_tests;
#[cfg(test)]
mod tests;
