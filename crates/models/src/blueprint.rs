//! The parameters that a config describes, found without making them: the model is built with stand-ins, each one zero
//! broadcast to its shape. So absurd sizes are refused before anything is allocated, and a checkpoint can be compared
//! with its config before anything is read.

use weft_tensor::{DType, Device, Tensor};

use crate::config::{Config, MAX_PARAMETERS};
use crate::error::{Error, Result};
use crate::lm::LanguageModel;

/// A parameter's name and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The full name, as in the checkpoint.
    pub name: String,
    /// The size of each axis.
    pub shape: Vec<usize>,
}

impl Shape {
    /// Number of elements; those in a [`blueprint`] do not overflow, nor does their sum.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every parameter of a config's model, in the order in which they are made.
///
/// # Errors
/// When the config is wrong, a parameter has no elements, or all have more than [`MAX_PARAMETERS`].
pub fn blueprint(config: &Config) -> Result<Vec<Shape>> {
    let stand_in = |_: &str, shape: &[usize]| {
        let zero = Tensor::zeros(&[], DType::F32, &Device::Cpu);
        Ok(zero.broadcast_to(shape)?)
    };
    let model = LanguageModel::from_source(config, &stand_in, &Device::Cpu)?;
    let mut left = MAX_PARAMETERS;
    let check = |p: &weft_mixers::Param| {
        let (name, shape) = (p.name().to_string(), p.shape().to_vec());
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if count == Some(0) {
            return Err(Error::Config(format!(
                "the parameter {name} would be empty: its shape is {shape:?}"
            )));
        }
        let Some(rest) = count.and_then(|n| left.checked_sub(n)) else {
            return Err(Error::Config(format!(
                "the model would have more than {MAX_PARAMETERS} parameters ({name} is {shape:?})"
            )));
        };
        left = rest;
        Ok(Shape { name, shape })
    };
    model.params().iter().map(check).collect()
}

/// Ask the system for a block of this size and give it back untouched. `what` is it for?
pub(crate) fn check_memory(what: &str, bytes: usize) -> Result<()> {
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(bytes).map_err(|_| {
        let size = bytes as f64 / (1u64 << 30) as f64;
        Error::Config(format!(
            "{what} of {size:.1} GiB is more than this machine gives: make the model smaller"
        ))
    })
}
