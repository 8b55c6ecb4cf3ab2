//! Elementwise chains in one pass: an expression is written once, its derivative follows from it, and both run as one
//! loop on the CPU and as one kernel on a GPU, compiled when first used.
//!
//! ```
//! use weft_tensor::{DType, Device, Tensor};
//! let x = Tensor::from_vec(vec![-1f32, 0.0, 2.0], &[3], &Device::Cpu)?;
//! let b = Tensor::from_vec(vec![0.5f32], &[1], &Device::Cpu)?;
//! let y = Tensor::fused("gate", &[&x, &b], DType::F32, |v| (v[0].clone() + v[1].clone()).sigmoid() * 2.0)?;
//! assert_eq!(y.to_vec::<f32>()?[0], 2.0 / (1.0 + 0.5f32.exp()));
//! # Ok::<(), weft_tensor::Error>(())
//! ```

mod cpu;
mod tape;

pub use tape::{Binary, Expr, Op, Tape, Unary};

use crate::autograd::{Context, Function, apply_all};
use crate::cuda;
use crate::dtype::DType;
use crate::error::{Result, dtype_error, shape_error};
use crate::layout::{Layout, broadcast};
use crate::storage::{CpuStorage, Storage, devices_differ};
use crate::tensor::{Tensor, need_float};

/// Operands of a pass; a derivative's gradients are among them.
const MOST_INPUTS: usize = 8;

impl Tensor {
    /// The expression `f` of inputs that broadcast, of any float dtypes, computed in f32 (in f64 if an input is f64) and
    /// rounded once to `dtype`. Differentiable: the derivative is an expression like every other.
    ///
    /// # Errors
    /// For inputs that are not of a float dtype, do not broadcast or live on different devices. One pass takes 8 operands, and a
    /// derivative takes those of its expression and a gradient for each output: 7 inputs have a gradient, 3 have one of
    /// second order.
    pub fn fused(
        name: &'static str,
        inputs: &[&Tensor],
        dtype: DType,
        f: impl FnOnce(&[Expr]) -> Expr,
    ) -> Result<Tensor> {
        let tape = Tape::of(inputs.len(), f);
        let mut outputs = evaluate(name, tape, inputs, &[dtype])?;
        Ok(outputs.remove(0))
    }
}

/// All outputs of a tape, recorded.
fn evaluate(
    name: &'static str,
    tape: Tape,
    inputs: &[&Tensor],
    dtypes: &[DType],
) -> Result<Vec<Tensor>> {
    if inputs.is_empty() || inputs.len() > MOST_INPUTS {
        let n = inputs.len();
        return shape_error(name, format!("{n} inputs; 1 to {MOST_INPUTS} can be fused"));
    }
    let mut shape = vec![];
    for x in inputs {
        need_float(name, x)?;
        shape = broadcast(name, &shape, x.shape())?;
    }
    if let Some(dtype) = dtypes.iter().find(|d| !d.is_float()) {
        return dtype_error(name, *dtype, "a float dtype");
    }
    let wide = inputs.iter().any(|x| x.dtype() == DType::F64);
    let layouts = inputs.iter().map(|x| x.layout().broadcast_to(name, &shape));
    let layouts = layouts.collect::<Result<Vec<Layout>>>()?;
    let storages: Vec<&Storage> = inputs.iter().map(|x| x.operand().0).collect();
    let call = Call {
        name,
        tape: &tape,
        layouts: &layouts,
        dtypes,
        wide,
    };
    let cpu: Option<Vec<&CpuStorage>> = storages.iter().map(|s| s.cpu()).collect();
    let gpu = storages.iter().map(|s| match s {
        Storage::Cuda(s) => Some(s),
        _ => None,
    });
    let outputs: Vec<Storage> = match (cpu, gpu.collect::<Option<Vec<_>>>()) {
        (Some(cpu), _) => cpu::run(&call, &cpu)?
            .into_iter()
            .map(Storage::Cpu)
            .collect(),
        (_, Some(gpu)) => cuda::fuse::run(&call, &gpu)?
            .into_iter()
            .map(Storage::Cuda)
            .collect(),
        _ => return devices_differ(name, &storages),
    };
    let outputs = outputs
        .into_iter()
        .map(|s| Tensor::new(s, &shape))
        .collect();
    let function = Fusion {
        name,
        tape,
        inputs: inputs.iter().map(|&x| x.clone()).collect(),
    };
    Ok(apply_all(function, inputs, outputs))
}

/// One run: what to compute of operands with these layouts, all of the result's shape.
pub(crate) struct Call<'a> {
    pub(crate) name: &'static str,
    pub(crate) tape: &'a Tape,
    pub(crate) layouts: &'a [Layout],
    /// Of the outputs.
    pub(crate) dtypes: &'a [DType],
    /// Whether it is computed in f64.
    pub(crate) wide: bool,
}

struct Fusion {
    name: &'static str,
    tape: Tape,
    inputs: Vec<Tensor>,
}

impl Function for Fusion {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let given: Vec<usize> = (0..grads.len()).filter(|&i| grads[i].is_some()).collect();
        let wanted: Vec<usize> = (0..self.inputs.len()).filter(|&i| ctx.needs(i)).collect();
        let mut result = vec![None; self.inputs.len()];
        if given.is_empty() || wanted.is_empty() {
            return Ok(result);
        }
        let derivative = self.tape.derivative(&given, &wanted);
        let inputs: Vec<&Tensor> = self.inputs.iter().chain(grads.iter().flatten()).collect();
        // What is summed over broadcast axes is rounded after the sum.
        let wide = inputs.iter().any(|x| x.dtype() == DType::F64);
        let computing = if wide { DType::F64 } else { DType::F32 };
        let whole = ctx.output_shape(0);
        let dtypes: Vec<DType> = wanted
            .iter()
            .map(|&i| match self.inputs[i].shape() == whole {
                true => self.inputs[i].dtype(),
                false => computing,
            })
            .collect();
        let found = evaluate(self.name, derivative, &inputs, &dtypes)?;
        for (&i, g) in wanted.iter().zip(found) {
            let x = &self.inputs[i];
            result[i] = Some(g.sum_to(x.shape())?.to_dtype(x.dtype())?);
        }
        Ok(result)
    }
}
