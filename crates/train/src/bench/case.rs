//! A kernel to be timed, and what came of it.

use serde::Serialize;
use weft_tensor::{DType, Device, Tensor};

use super::{Ceilings, Clock};
use crate::error::{Error, Result};

/// Calls the kernel once over operands that it keeps; gives its outputs.
pub(super) type Work = Box<dyn FnMut() -> Result<Vec<Tensor>>>;

/// Makes the operands on a device.
pub(super) type Prepare = Box<dyn Fn(&Device) -> Result<Work>>;

/// A kernel with its shape and its two numbers; operands are made when it is measured.
pub struct Case {
    /// What it computes.
    pub name: String,
    /// The sizes of its operands.
    pub shape: String,
    /// Dtype of its activations.
    pub dtype: DType,
    /// Bytes that it cannot avoid to move.
    pub bytes: f64,
    /// Floating-point operations of matrix products; 0 where only bytes count.
    pub flops: f64,
    pub(super) prepare: Prepare,
}

/// What bounds a kernel from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ceiling {
    /// The rate of a large copy.
    Copy,
    /// The rate of a large matrix product.
    Product,
}

/// A kernel's time, and how near it comes to its ceiling.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was computed.
    pub name: String,
    /// The sizes of the operands.
    pub shape: String,
    /// Dtype of the activations, such as `bf16`.
    pub dtype: String,
    /// Milliseconds of a call.
    pub ms: f64,
    /// Bytes that cannot be avoided.
    pub bytes: f64,
    /// Floating-point operations of matrix products.
    pub flops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Operations per second.
    pub flops_per_second: f64,
    /// The part of its ceiling that was reached.
    pub share: f64,
    /// Which ceiling that is.
    pub ceiling: Ceiling,
}

impl Case {
    /// Make the operands, see that the outputs are finite, and take the time.
    ///
    /// # Errors
    /// When memory is short, the kernel fails or an output is not finite; the next case can still be measured.
    pub fn measure(&self, device: &Device, clock: &Clock, ceilings: &Ceilings) -> Result<Row> {
        super::fresh_memory(device)?;
        let mut work = (self.prepare)(device)?;
        for output in work()? {
            if output.dtype().is_float() && !output.all_finite()? {
                return Err(Error::Data(format!(
                    "{} {} gave numbers that are not finite: it is wrong, so it was not timed",
                    self.name, self.shape
                )));
            }
        }
        let ms = clock.ms(|| work().map(drop))?;
        Ok(self.row(ms, ceilings))
    }

    pub(super) fn row(&self, ms: f64, ceilings: &Ceilings) -> Row {
        let per_second = |n: f64| 1e3 * n / ms;
        let copy = per_second(self.bytes) / ceilings.copy;
        let product = per_second(self.flops) / ceilings.product(self.dtype);
        Row {
            name: self.name.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype.to_string(),
            ms,
            bytes: self.bytes,
            flops: self.flops,
            bytes_per_second: per_second(self.bytes),
            flops_per_second: per_second(self.flops),
            share: copy.max(product),
            ceiling: match product > copy {
                true => Ceiling::Product,
                false => Ceiling::Copy,
            },
        }
    }
}

/// Work with one output.
pub(super) fn one(mut f: impl FnMut() -> weft_tensor::Result<Tensor> + 'static) -> Result<Work> {
    Ok(Box::new(move || Ok(vec![f()?])))
}

/// Work that takes the gradients of outputs with respect to inputs, again and again over one graph.
pub(super) fn gradients(outputs: Vec<Tensor>, along: Vec<Tensor>, inputs: Vec<Tensor>) -> Work {
    Box::new(move || {
        let outputs: Vec<&Tensor> = outputs.iter().collect();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let found = weft_tensor::grad(&outputs, Some(&along), &inputs, false)?;
        Ok(found.into_iter().flatten().collect())
    })
}
