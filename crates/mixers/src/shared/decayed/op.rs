//! The recurrence as an operation on tensors: shapes, dtypes and the gradient graph around the kernels.

use weft_tensor::{
    Buffer, Context, DType, Device, Error, Function, Real, Result, Stored, Tensor, apply,
    checkpoint, grad_enabled, recompute,
};

use super::chunk::{self, Saved};
use super::{Decay, Dims, Inputs, backward, composed, reference};

/// Operands. The state's dtype (f32 or f64) is what everything is computed in; the other operands may have any
/// float dtype, and the outputs get that of `v`.
#[derive(Clone)]
pub struct Operands {
    /// Queries [B, T, H, K].
    pub q: Tensor,
    /// Keys [B, T, H, K].
    pub k: Tensor,
    /// Values [B, T, HV, V].
    pub v: Tensor,
    /// Log decay g <= 0: [B, T, HV] or [B, T, H, K].
    pub decay: Tensor,
    /// Factor on the outputs.
    pub scale: f64,
    /// State before the first token [B, HV, K, V].
    pub state: Tensor,
}

impl Operands {
    /// The sizes. Errors if the shapes do not fit each other.
    pub fn dims(&self) -> Result<Dims> {
        let [batch, tokens, heads, key_dim] = self.q.dims()?;
        let [_, _, value_heads, value_dim] = self.v.dims()?;
        let dims = Dims {
            batch,
            tokens,
            heads,
            value_heads,
            key_dim,
            value_dim,
        };
        let decay = match self.decay.rank() {
            3 => self.decay.shape() == [batch, tokens, value_heads],
            _ => self.decay.shape() == self.q.shape(),
        };
        let fits = decay
            && self.q.count() * self.v.count() > 0
            && value_heads.is_multiple_of(heads)
            && self.k.shape() == self.q.shape()
            && self.v.shape() == [batch, tokens, value_heads, value_dim]
            && self.state.shape() == [batch, value_heads, key_dim, value_dim];
        if fits {
            return Ok(dims);
        }
        Err(Error::Custom(format!(
            "decayed: q {:?}, k {:?}, v {:?}, decay {:?}, state {:?}: expected [B, T, H, K] twice, [B, T, HV, V], \
             [B, T, HV] or [B, T, H, K], [B, HV, K, V] with HV a multiple of H",
            self.q.shape(),
            self.k.shape(),
            self.v.shape(),
            self.decay.shape(),
            self.state.shape()
        )))
    }

    /// Row-major and in the state's dtype.
    fn prepared(&self) -> Result<Operands> {
        let dtype = self.state.dtype();
        let prepare = |x: &Tensor| x.to_dtype(dtype)?.contiguous();
        Ok(Operands {
            q: prepare(&self.q)?,
            k: prepare(&self.k)?,
            v: prepare(&self.v)?,
            decay: prepare(&self.decay)?,
            scale: self.scale,
            state: prepare(&self.state)?,
        })
    }

    fn list(&self) -> [&Tensor; 5] {
        [&self.q, &self.k, &self.v, &self.decay, &self.state]
    }

    /// The inverse of [`Operands::list`].
    pub(super) fn from_list(list: &[Tensor], scale: f64) -> Result<Operands> {
        let [q, k, v, decay, state] = list else {
            return Err(Error::Custom(format!("decayed: {} operands", list.len())));
        };
        Ok(Operands {
            q: q.clone(),
            k: k.clone(),
            v: v.clone(),
            decay: decay.clone(),
            scale,
            state: state.clone(),
        })
    }

    fn inputs<R: Real + Stored>(&self) -> Result<Inputs<'_, R>> {
        let decay = self.decay.slice()?;
        Ok(Inputs {
            q: self.q.slice()?,
            k: self.k.slice()?,
            v: self.v.slice()?,
            decay: match self.decay.rank() {
                3 => Decay::Heads(decay),
                _ => Decay::Channels(decay),
            },
            scale: R::from_f64(self.scale),
        })
    }
}

/// All tokens in chunks, by the kernels or on a GPU in tensor operations: outputs [B, T, HV, V] and final state
/// [B, HV, K, V]. Gradients flow to every operand.
pub fn decayed(x: &Operands, chunk: usize) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let dtype = x.v.dtype();
    let x = x.prepared()?;
    let (o, state) = match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => compose(&x, chunk)?,
        DType::F64 => run::<f64>(x, dims, chunk)?,
        _ => run::<f32>(x, dims, chunk)?,
    };
    Ok((o.to_dtype(dtype)?, state))
}

/// The same, token by token in plain operations.
pub fn recurrence(x: &Operands) -> Result<(Tensor, Tensor)> {
    x.dims()?;
    let dtype = x.v.dtype();
    let (o, state) = reference::recurrence(&x.prepared()?)?;
    Ok((o.to_dtype(dtype)?, state))
}

/// One token without gradients: outputs [B, 1, HV, V]; the state's tensor is changed in place where it has no other
/// owner.
pub fn decayed_step(x: Operands) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    if dims.tokens != 1 {
        return Err(Error::Custom(format!(
            "decayed_step: {} tokens, expected one",
            dims.tokens
        )));
    }
    let dtype = x.v.dtype();
    let (o, state) = match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => reference::recurrence(&x.prepared()?)?,
        DType::F64 => step::<f64>(x, dims)?,
        _ => step::<f32>(x, dims)?,
    };
    Ok((o.to_dtype(dtype)?, state))
}

/// The chunkwise form in tensor operations; with gradients it is computed again in the backward pass, so that only the
/// operands are kept.
pub(super) fn compose(x: &Operands, chunk: usize) -> Result<(Tensor, Tensor)> {
    let (list, scale) = (x.list(), x.scale);
    if !grad_enabled() || list.iter().all(|t| !t.is_tracked()) {
        return composed::chunks(x, chunk);
    }
    let both = checkpoint(&list, move |list| {
        Ok(composed::chunks(&Operands::from_list(list, scale)?, chunk)?.into())
    })?;
    Ok(both.into())
}

fn run<R: Real + Stored>(x: Operands, dims: Dims, chunk: usize) -> Result<(Tensor, Tensor)> {
    let save = grad_enabled() && x.list().iter().any(|t| t.is_tracked());
    let done = chunk::forward(dims, &x.inputs::<R>()?, x.state.slice()?, chunk, save);
    let o = Tensor::from_buffer(done.o, x.v.shape())?;
    let state = Tensor::from_buffer(done.state, x.state.shape())?;
    let Some(saved) = done.saved else {
        return Ok((o, state));
    };
    let function = Decayed {
        x: x.clone(),
        dims,
        saved,
    };
    Ok(apply(function, &x.list(), [o, state]).into())
}

fn step<R: Real + Stored>(x: Operands, dims: Dims) -> Result<(Tensor, Tensor)> {
    // Everything but the state is small; the state must not be copied, so its tensor is moved out first.
    let none = Tensor::zeros(&[0], x.state.dtype(), &Device::Cpu);
    let mut state = x.state.into_detached();
    let small = Operands { state: none, ..x }.prepared()?;
    let inputs = small.inputs::<R>()?;
    let mut o = Buffer::unwritten(dims.values_len());
    state.write(|state| super::step(dims, &inputs, state, &mut o))?;
    Ok((Tensor::from_buffer(o, small.v.shape())?, state))
}

struct Decayed<R: Real> {
    x: Operands,
    dims: Dims,
    saved: Saved<R>,
}

impl<R: Real + Stored> Function for Decayed<R> {
    fn name(&self) -> &'static str {
        "decayed"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let list = self.x.list();
        if ctx.create_graph() {
            return recompute(ctx, &list, grads, |x| {
                let (o, state) = reference::recurrence(&Operands::from_list(x, self.x.scale)?)?;
                Ok(vec![o, state])
            });
        }
        let d_state = grads[1].as_ref().map(Tensor::contiguous).transpose()?;
        let d_state = d_state.as_ref().map(Tensor::slice::<R>).transpose()?;
        let d_o = match &grads[0] {
            Some(d_o) => d_o.contiguous()?,
            None if d_state.is_none() => return Ok(vec![None; list.len()]),
            None => Tensor::zeros(ctx.output_shape(0), R::DTYPE, &Device::Cpu),
        };
        let inputs = self.x.inputs()?;
        let g = backward(
            self.dims,
            &inputs,
            &self.saved,
            d_o.slice()?,
            d_state,
            ctx.needs(3),
        );
        [Some(g.q), Some(g.k), Some(g.v), g.decay, Some(g.state)]
            .into_iter()
            .zip(list)
            .map(|(g, x)| g.map(|g| Tensor::from_buffer(g, x.shape())).transpose())
            .collect()
    }
}
