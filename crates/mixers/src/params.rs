//! Parameters by name. A layer asks its [`Scope`] for parameters while it is built; the scope draws them from
//! a seed (each from a stream of its own, so that adding a layer changes no other one) or takes them from a
//! checkpoint. Layers keep [`Param`] handles; optimisers and savers walk [`Params`].

use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockWriteGuard};

use weft_tensor::{DType, Device, Rng, Tensor};

use crate::error::{Error, Result};

/// How a parameter starts.
#[derive(Clone, Debug)]
pub enum Init {
    /// All one value.
    Const(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform.
    Uniform {
        /// Lower end.
        lo: f64,
        /// Upper end, exclusive.
        hi: f64,
    },
    /// Uniform in +-gain * sqrt(6 / (in + out)) for a weight [out, in] (Glorot & Bengio 2010).
    Xavier {
        /// Factor on the bound.
        gain: f64,
    },
    /// Uniform in +-gain / sqrt(in) for a weight [out, in, ..]; gain 1 is what PyTorch gives linear layers.
    FanIn {
        /// Factor on the bound.
        gain: f64,
    },
    /// A function of a uniform number in [0, 1), element by element.
    Map(fn(f64) -> f64),
    /// Element i of n is base^(-2 i / n): angles of positions.
    Frequencies {
        /// The base.
        base: f64,
    },
    /// These elements, row-major.
    Data(Vec<f64>),
    /// Identity matrices, one below the other: rows as long as the last axis, blocks as high.
    Identity,
    /// Random orthogonal matrices, laid out like those of [`Init::Identity`].
    Orthogonal,
}

impl Init {
    fn draw(
        &self,
        shape: &[usize],
        rng: &mut Rng,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let inner: usize = shape.iter().skip(1).product();
        let outer = shape.first().copied().unwrap_or(1);
        let mut uniform = |bound: f64| rng.uniform(shape, -bound, bound, dtype, device);
        let count: usize = shape.iter().product();
        let from_f64 = |data: Vec<f64>| Tensor::from_vec(data, shape, device)?.to_dtype(dtype);
        Ok(match self {
            &Init::Const(v) => Tensor::full(shape, v, dtype, device),
            &Init::Xavier { gain } => uniform(gain * (6.0 / (inner + outer) as f64).sqrt())?,
            &Init::FanIn { gain } => uniform(gain / (inner.max(1) as f64).sqrt())?,
            &Init::Normal { std } => rng.normal(shape, 0.0, std, dtype, device)?,
            &Init::Uniform { lo, hi } => rng.uniform(shape, lo, hi, dtype, device)?,
            &Init::Map(f) => from_f64((0..count).map(|_| f(rng.unit())).collect())?,
            &Init::Frequencies { base } => {
                let angle = |i: usize| base.powf(-2.0 * i as f64 / count as f64);
                from_f64((0..count).map(angle).collect())?
            }
            Init::Data(data) => Tensor::from_slice(data, shape, device)?.to_dtype(dtype)?,
            Init::Identity | Init::Orthogonal => {
                let n = shape.last().copied().unwrap_or(1);
                let mut rows: Vec<f64> = (0..count)
                    .map(|i| f64::from(u8::from(i % n == i / n % n)))
                    .collect();
                if matches!(self, Init::Orthogonal) {
                    let normal = rng.normal(shape, 0.0, 1.0, DType::F64, &Device::Cpu)?;
                    rows = normal.to_vec()?;
                    rows.chunks_mut(n * n)
                        .for_each(|block| orthonormalise(block, n));
                }
                Tensor::from_vec(rows, shape, device)?.to_dtype(dtype)?
            }
        })
    }
}

/// Makes the rows of `block`, at most `n` of n elements each, orthonormal (Gram-Schmidt, each row twice).
fn orthonormalise(block: &mut [f64], n: usize) {
    for i in 0..block.len() / n {
        let (done, rest) = block.split_at_mut(i * n);
        let row = &mut rest[..n];
        for other in done.chunks(n).chain(done.chunks(n)) {
            let overlap: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            row.iter_mut()
                .zip(other)
                .for_each(|(a, b)| *a -= overlap * b);
        }
        let length = row.iter().map(|a| a * a).sum::<f64>().sqrt().max(1e-300);
        row.iter_mut().for_each(|a| *a /= length);
    }
}

/// A named, trainable tensor, shared between the layer that uses it and the optimiser that changes it.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    name: String,
    shape: Vec<usize>,
    decays: bool,
    value: RwLock<Tensor>,
}

impl Param {
    fn new(name: String, value: Tensor, decays: bool) -> Result<Param> {
        let shape = value.shape().to_vec();
        Ok(Param(Arc::new(Inner {
            name,
            shape,
            decays,
            value: RwLock::new(value.detach().requires_grad()?),
        })))
    }

    /// The full name, as in the checkpoint.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The shape; it never changes.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// Whether weight decay applies (not to norms, biases, decay and time-step parameters).
    pub fn decays(&self) -> bool {
        self.0.decays
    }

    /// The value: a leaf of the gradient graph, the same one until [`Param::set`].
    pub fn get(&self) -> Tensor {
        // A poisoned lock still holds a whole tensor: setting it is one assignment.
        self.0
            .value
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .clone()
    }

    /// The value converted to the dtype that a layer computes in; gradients flow back to the master value.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        Ok(self.get().to_dtype(dtype)?)
    }

    /// Replace the value (same shape; the dtype may change, e.g. to bf16 for inference).
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.shape() != self.shape() {
            let detail = format!("shape {:?} does not fit {:?}", value.shape(), self.shape());
            return Err(Error::Param {
                name: self.0.name.clone(),
                detail,
            });
        }
        *self.0.value.write().unwrap_or_else(|e| e.into_inner()) =
            value.detach().requires_grad()?;
        Ok(())
    }

    /// Change the elements in place, without a copy if no graph holds them any more: what optimisers do.
    pub fn update<T: weft_tensor::Stored, R>(&self, f: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        Ok(self.lend().write(f)?)
    }

    /// The value to be changed in place, without its history; the parameter is locked until it is dropped.
    pub fn lend(&self) -> Lent<'_> {
        let mut lock = self.0.value.write().unwrap_or_else(|e| e.into_inner());
        let empty = Tensor::zeros(&[], DType::U8, &Device::Cpu);
        let value = std::mem::replace(&mut *lock, empty).into_detached();
        Lent { lock, value }
    }
}

/// A parameter's value on loan: see [`Param::lend`].
pub struct Lent<'a> {
    lock: RwLockWriteGuard<'a, Tensor>,
    value: Tensor,
}

impl std::ops::Deref for Lent<'_> {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        &self.value
    }
}

impl std::ops::DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Tensor {
        &mut self.value
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        std::mem::swap(&mut *self.lock, &mut self.value);
        // Only integers have no gradients, and no parameter is of integers.
        if let Ok(leaf) = self.lock.requires_grad() {
            *self.lock = leaf;
        }
    }
}

/// All parameters of a model, in the order they were made.
#[derive(Clone, Default)]
pub struct Params {
    list: Vec<Param>,
    index: HashMap<String, usize>,
}

impl Params {
    /// No parameters yet.
    pub fn new() -> Params {
        Params::default()
    }

    /// In the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.list.iter()
    }

    /// By full name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.index.get(name).map(|&i| &self.list[i])
    }

    /// Number of parameter tensors.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Number of elements in all of them.
    pub fn count(&self) -> usize {
        self.list
            .iter()
            .map(|p| p.shape().iter().product::<usize>())
            .sum()
    }

    fn add(&mut self, param: Param) -> Result<()> {
        if self
            .index
            .insert(param.name().to_string(), self.list.len())
            .is_some()
        {
            let detail = "is defined twice".into();
            return Err(Error::Param {
                name: param.name().into(),
                detail,
            });
        }
        self.list.push(param);
        Ok(())
    }
}

/// Gives the value of a parameter by name, when a model is built from a checkpoint.
pub type Source<'a> = dyn Fn(&str, &[usize]) -> Result<Tensor> + 'a;

/// Where a layer's parameters come from and what they are called.
pub struct Scope<'a> {
    params: &'a mut Params,
    prefix: String,
    source: Option<&'a Source<'a>>,
    seed: u64,
    dtype: DType,
    device: Device,
}

impl<'a> Scope<'a> {
    /// Parameters drawn from a seed.
    pub fn random(params: &'a mut Params, seed: u64, dtype: DType, device: &Device) -> Scope<'a> {
        Scope {
            params,
            prefix: String::new(),
            source: None,
            seed,
            dtype,
            device: *device,
        }
    }

    /// Parameters taken from a source, by name; they keep the dtype they have there.
    pub fn from_source(
        params: &'a mut Params,
        source: &'a Source<'a>,
        device: &Device,
    ) -> Scope<'a> {
        Scope {
            params,
            prefix: String::new(),
            source: Some(source),
            seed: 0,
            dtype: DType::F32,
            device: *device,
        }
    }

    /// The scope of a part: names get `name.` in front.
    pub fn sub(&mut self, name: &str) -> Scope<'_> {
        let prefix = format!("{}{name}.", self.prefix);
        Scope {
            params: self.params,
            prefix,
            source: self.source,
            seed: self.seed,
            dtype: self.dtype,
            device: self.device,
        }
    }

    /// The device that parameters are made on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A matrix or table: weight decay applies.
    pub fn weight(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Param> {
        self.param(name, shape, init, true)
    }

    /// A gain, bias, decay or time-step parameter: no weight decay.
    pub fn vector(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Param> {
        self.param(name, shape, init, false)
    }

    /// A vector-like parameter that layers share, under its bare name: the first that asks makes it.
    pub fn shared(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Param> {
        let Some(known) = self.params.get(name) else {
            let prefix = std::mem::take(&mut self.prefix);
            let made = self.vector(name, shape, init);
            self.prefix = prefix;
            return made;
        };
        if known.shape() != shape {
            let detail = format!(
                "has shape {:?}, another layer needs {shape:?}",
                known.shape()
            );
            let name = name.into();
            return Err(Error::Param { name, detail });
        }
        Ok(known.clone())
    }

    fn param(&mut self, name: &str, shape: &[usize], init: Init, decays: bool) -> Result<Param> {
        let name = format!("{}{name}", self.prefix);
        let value = match self.source {
            Some(source) => source(&name, shape)?,
            None => init.draw(
                shape,
                &mut Rng::stream(self.seed, stream(&name)),
                self.dtype,
                &self.device,
            )?,
        };
        if value.shape() != shape {
            let detail = format!("has shape {:?}, the config needs {shape:?}", value.shape());
            return Err(Error::Param { name, detail });
        }
        let param = Param::new(name, value, decays)?;
        self.params.add(param.clone())?;
        Ok(param)
    }

    /// A linear layer `name.weight` [output, input] and, if asked for, `name.bias` [output] (zeros).
    pub fn linear(
        &mut self,
        name: &str,
        input: usize,
        output: usize,
        bias: bool,
        init: Init,
    ) -> Result<Linear> {
        let mut s = self.sub(name);
        let weight = s.weight("weight", &[output, input], init)?;
        let bias = bias
            .then(|| s.vector("bias", &[output], Init::Const(0.0)))
            .transpose()?;
        Ok(Linear { weight, bias })
    }
}

/// A stream number from a name (FNV-1a, 64 bit).
fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// y = x W^T (+ bias).
#[derive(Clone)]
pub struct Linear {
    /// [output, input]
    pub weight: Param,
    /// [output]
    pub bias: Option<Param>,
}

impl Linear {
    /// x [.., input] -> [.., output], in the dtype of x.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|b| b.cast(x.dtype())).transpose()?;
        let weight = match (self.weight.get(), x.dtype()) {
            (w, _) if w.dtype() == DType::BF16 => w,
            // Rounded by the product itself, whose gradient of the master is not.
            (w, DType::BF16) if w.dtype() == DType::F32 => w,
            (w, dtype) => w.to_dtype(dtype)?,
        };
        Ok(x.linear(&weight, bias.as_ref())?)
    }

    /// Multiply-adds for one row.
    pub fn cost(&self) -> usize {
        self.weight.shape().iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_depends_on_its_name_and_the_seed_only() {
        let build = |names: &[&str], seed| {
            let mut params = Params::new();
            let mut scope = Scope::random(&mut params, seed, DType::F32, &Device::Cpu);
            for n in names {
                scope.weight(n, &[2, 2], Init::Normal { std: 1.0 }).unwrap();
            }
            params.get("b").unwrap().get().to_vec::<f32>().unwrap()
        };
        assert_eq!(build(&["a", "b"], 1), build(&["b", "c"], 1));
        assert_ne!(build(&["b"], 1), build(&["b"], 2));
    }

    #[test]
    fn orthogonal_blocks_are_orthonormal() {
        let mut params = Params::new();
        let mut scope = Scope::random(&mut params, 3, DType::F64, &Device::Cpu);
        let w = scope.weight("w", &[15, 5], Init::Orthogonal).unwrap();
        for block in w.get().split(0, &[5, 5, 5]).unwrap() {
            let product = block.matmul(&block.transpose(0, 1).unwrap()).unwrap();
            let eye = Tensor::eye(5, DType::F64, &Device::Cpu).unwrap();
            crate::golden::assert_close("orthogonal", &product, &eye, 1e-14);
        }
        let eyes = scope.weight("eyes", &[4, 2], Init::Identity).unwrap();
        let want = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        assert_eq!(eyes.get().to_f64_vec().unwrap(), want);
    }

    #[test]
    fn names_are_unique_and_shapes_are_checked() {
        let mut params = Params::new();
        let mut scope = Scope::random(&mut params, 0, DType::F32, &Device::Cpu);
        let p = scope
            .sub("mlp")
            .weight("w", &[2, 3], Init::Const(1.0))
            .unwrap();
        let e = scope
            .sub("mlp")
            .weight("w", &[2, 3], Init::Const(1.0))
            .err()
            .unwrap()
            .to_string();
        assert_eq!(e, "parameter mlp.w: is defined twice");
        assert!(
            p.set(&Tensor::zeros(&[3, 2], DType::F32, &Device::Cpu))
                .is_err()
        );
    }
}
