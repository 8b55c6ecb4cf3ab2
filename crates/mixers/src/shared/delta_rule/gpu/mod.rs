//! The chunkwise rule on tensor cores, for bf16 activations and f32 gates and states. Per value head and chunk of C = 64
//! tokens, with G the sum of log decays up to a token, unit k and q (q times K^-1/2):
//!
//! ```text
//! A_rs = sum_c (b k)_r[c] e^(G_r - G_s)[c] k_s[c]  (s < r)     T = (I + A)^-1
//! P_rs = sum_c q_r[c] e^(G_r - G_s)[c] k_s[c]      (s <= r)
//! W = T (b k e^G)     U = T (w v)
//! u = U - W S     o = (q e^G) S + P u     S <- diag(e^G_C) S + (k e^(G_C - G))^T u
//! ```
//!
//! What does not need S is done for all chunks in parallel ([`kernels::prepare`]), the last line one chunk after the other
//! for a few value columns each ([`kernels::scan`]). Where all gates are one number for a value head, W, U and the rest are
//! only rows of k, q and v times a number: then the scan takes those as they are ([`kernels::prepare_scalar`]), a third of
//! the bytes. Exponents are never positive.
//!
//! Backward ([`backward`]) needs the operands, the state before each chunk and u; it makes the rest again. For gradients of
//! gradients, packed sequences and value heads it has no kernel for, it goes through tensor operations.

pub(crate) mod backward;
#[cfg(test)]
mod backward_tests;
pub(crate) mod kernels;
pub(crate) mod layer_step;
#[cfg(test)]
mod tests;

use weft_tensor::cuda::context;
use weft_tensor::{
    Context, DType, Device, Function, Result, Tensor, apply, grad_enabled, recompute,
};

use super::op::{Operands, each_sequence};
use super::{Dims, composed, reference};
use kernels::{Call, Prepared};

/// Whether there are kernels for heads of this size on a device.
pub fn fits(key_dim: usize, value_dim: usize, device: Device) -> bool {
    let Device::Cuda(ordinal) = device else {
        return false;
    };
    context(ordinal).is_ok_and(|gpu| kernels::fits(key_dim, value_dim, gpu.shared_memory))
}

/// How chunks are computed on a device, to be appended to a sentence.
pub fn plan(key_dim: usize, value_dim: usize, device: Device) -> String {
    if device == Device::Cpu {
        String::new()
    } else if fits(key_dim, value_dim, device) {
        ", on tensor cores with bf16 activations, as matrix products with others".into()
    } else {
        format!(
            ", as matrix products: the kernels take 64, 128 or 256 key channels and a multiple of 64 value channels, not \
             {key_dim} by {value_dim}, on a GPU with 163 KiB of shared memory to a block (more for 256)"
        )
    }
}

/// Whether the kernels take these operands; `starts` are those of packed sequences.
pub fn takes(x: &Operands, dims: Dims, starts: Option<&Tensor>) -> bool {
    x.qkv.dtype() == DType::BF16
        && x.state.dtype() == DType::F32
        && call(x, dims, starts).is_countable()
        && fits(dims.key_dim, dims.value_dim, x.state.device())
}

fn call<'a>(x: &Operands, dims: Dims, starts: Option<&'a Tensor>) -> Call<'a> {
    Call {
        dims,
        starts,
        sequences: x.state.shape()[0],
    }
}

/// Outputs [B, T, HV, V] in bf16 and final states. Gates in f32; everything contiguous.
pub fn forward(x: Operands, dims: Dims, starts: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let list = x.list();
    let keep = grad_enabled() && list.iter().any(|t| t.is_tracked());
    let call = call(&x, dims, starts);
    let prepared = match kernels::is_scalar(&x) {
        true => Prepared::Rows(kernels::prepare_scalar(&x, &call)?),
        false => Prepared::Tiles(kernels::prepare(&x, &call)?),
    };
    let done = kernels::scan(&x, &call, &prepared, keep)?;
    let Some([before, added]) = done.kept else {
        return Ok((done.o, done.state));
    };
    let rule = Rule {
        x: x.clone(),
        dims,
        starts: starts.cloned(),
        before,
        added,
    };
    Ok(apply(rule, &list, [done.o, done.state]).into())
}

/// The way back.
struct Rule {
    x: Operands,
    dims: Dims,
    starts: Option<Tensor>,
    /// State before each chunk [B, HV, slots, K, V] in bf16.
    before: Tensor,
    /// What each token adds, u [B, HV, slots, C, V] in bf16.
    added: Tensor,
}

impl Rule {
    /// Whether the kernels of the way back take the operands: packed sequences they do not.
    fn has_kernels(&self) -> bool {
        let Device::Cuda(ordinal) = self.x.qkv.device() else {
            return false;
        };
        let (keys, values) = (self.dims.key_dim, self.dims.value_dim);
        self.starts.is_none()
            && context(ordinal).is_ok_and(|gpu| backward::fits(keys, values, gpu.shared_memory))
    }

    fn by_kernels(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let d_state = grads[1].as_ref().map(Tensor::contiguous).transpose()?;
        let d_o = match &grads[0] {
            Some(d_o) => d_o.to_dtype(DType::BF16)?.contiguous()?,
            None if d_state.is_none() => return Ok(vec![None; self.x.list().len()]),
            None => Tensor::zeros(ctx.output_shape(0), DType::BF16, &self.x.qkv.device()),
        };
        let tiles = kernels::prepare(&self.x, &call(&self.x, self.dims, None))?;
        let chunks = backward::Chunks {
            tiles: &tiles,
            before: &self.before,
            added: &self.added,
        };
        let grads = backward::backward(&self.x, self.dims, &chunks, &d_o, d_state.as_ref())?;
        Ok(grads.into_iter().map(Some).collect())
    }
}

impl Function for Rule {
    fn name(&self) -> &'static str {
        "delta_rule"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let second_order = ctx.create_graph();
        if !second_order && self.has_kernels() {
            return self.by_kernels(ctx, grads);
        }
        recompute(ctx, &self.x.list(), grads, |list| {
            let x = Operands::from_list(list)?;
            let (o, state) = each_sequence(&x, self.starts.as_ref(), |x| {
                let x = x.prepared()?;
                match second_order {
                    true => reference::recurrence(&x),
                    false => composed::chunks(&x, super::CHUNK),
                }
            })?;
            Ok(vec![o.to_dtype(DType::BF16)?, state])
        })
    }
}
