//! The recurrence as an operation on tensors: shapes, dtypes and the gradient graph around the kernels.

use weft_tensor::{
    Buffer, Context, DType, Device, Error, Function, Real, Result, Stored, Tensor, apply,
    checkpoint, grad_enabled, recompute,
};

use super::backward::{Bounds, backward};
use super::forward::forward;
use super::{Dims, Inputs, reference};

/// Operands. Everything is computed in the state's dtype, f32 or f64. N is the number of heads of the state; every
/// other number of heads divides it, and head j of N reads head floor(j n / N) of n.
#[derive(Clone)]
pub struct Operands {
    /// Queries [B, T, Nq, K], neither scaled nor normalised.
    pub q: Tensor,
    /// Keys [B, T, Nk, K].
    pub k: Tensor,
    /// Values [B, T, Nv, V].
    pub v: Tensor,
    /// How much of the state is kept, in (0, 1): [B, T, Nf].
    pub f: Tensor,
    /// State weights [Nw, V, V], applied from the right.
    pub w: Tensor,
    /// State before the first token [B, N, K, V].
    pub state: Tensor,
    /// Without tanh: a linear recurrence with the same state, to compare with.
    pub linear: bool,
}

/// How the gradient of the state is clamped, element by element, on its way back through the tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Not at all.
    None,
    /// What comes from the next token, before this token's output adds its own: what the authors trained with.
    Carry(f64),
    /// The sum of both: the authors' plain form.
    Total(f64),
}

impl Clip {
    pub(super) fn carry(self) -> Option<f64> {
        if let Clip::Carry(c) = self {
            Some(c)
        } else {
            None
        }
    }

    pub(super) fn total(self) -> Option<f64> {
        if let Clip::Total(c) = self {
            Some(c)
        } else {
            None
        }
    }
}

impl Operands {
    /// The sizes. Errors if the shapes do not fit each other.
    pub fn dims(&self) -> Result<Dims> {
        let ([batch, heads, key_dim, value_dim], [_, tokens, q_heads, _], [_, _, k_heads, _]) =
            (self.state.dims()?, self.q.dims()?, self.k.dims()?);
        let divides = |n: usize| n > 0 && heads.is_multiple_of(n);
        let ([.., v_heads, _], [_, _, f_heads], [w_heads, ..]) = (
            self.v.dims::<4>()?,
            self.f.dims::<3>()?,
            self.w.dims::<3>()?,
        );
        let fit = self.q.shape() == [batch, tokens, q_heads, key_dim]
            && self.k.shape() == [batch, tokens, k_heads, key_dim]
            && self.v.shape() == [batch, tokens, v_heads, value_dim]
            && self.f.shape() == [batch, tokens, f_heads]
            && self.w.shape() == [w_heads, value_dim, value_dim]
            && [q_heads, k_heads, v_heads, f_heads, w_heads]
                .into_iter()
                .all(divides)
            && self.state.count() * tokens > 0;
        if fit {
            return Ok(Dims {
                batch,
                tokens,
                heads,
                q_heads,
                k_heads,
                key_dim,
                value_dim,
            });
        }
        Err(Error::Custom(format!(
            "m2rnn: q {:?}, k {:?}, v {:?}, f {:?}, w {:?}, state {:?}: expected [B, T, n, K], [B, T, n, K], \
             [B, T, n, V], [B, T, n], [n, V, V], [B, N, K, V], every n a divisor of N",
            self.q.shape(),
            self.k.shape(),
            self.v.shape(),
            self.f.shape(),
            self.w.shape(),
            self.state.shape()
        )))
    }

    fn list(&self) -> [&Tensor; 6] {
        [&self.q, &self.k, &self.v, &self.f, &self.w, &self.state]
    }

    fn from_list(list: &[Tensor], linear: bool) -> Result<Operands> {
        let [q, k, v, f, w, state] = list else {
            return Err(Error::Custom("m2rnn: lost an operand".into()));
        };
        let [q, k, v, f, w, state] = [q, k, v, f, w, state].map(Tensor::clone);
        Ok(Operands {
            q,
            k,
            v,
            f,
            w,
            state,
            linear,
        })
    }

    /// Everything in the state's dtype, row-major, with N heads of values, gates and weights.
    fn prepared(&self, dims: &Dims) -> Result<Operands> {
        let dtype = match self.state.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let heads = |x: &Tensor, axis: isize| match dims.heads / x.dim(axis)?.max(1) {
            1 => Ok(x.clone()),
            n => x.repeat_interleave(axis, n),
        };
        let whole = |x: &Tensor| x.to_dtype(dtype)?.contiguous();
        Ok(Operands {
            q: whole(&self.q)?,
            k: whole(&self.k)?,
            v: whole(&heads(&self.v, 2)?)?,
            f: whole(&heads(&self.f, 2)?)?,
            w: whole(&heads(&self.w, 0)?)?,
            state: whole(&self.state)?,
            linear: self.linear,
        })
    }

    fn inputs<R: Real + Stored>(&self) -> Result<Inputs<'_, R>> {
        Ok(Inputs {
            q: self.q.slice()?,
            k: self.k.slice()?,
            v: self.v.slice()?,
            f: self.f.slice()?,
            w: self.w.slice()?,
            linear: self.linear,
        })
    }
}

/// Outputs [B, T, N, V] and the last state [B, N, K, V], in the state's dtype, with gradients of every operand. On a
/// GPU the recurrence in tensor operations, run again on the way back.
///
/// Errors if shapes do not fit.
pub fn m2rnn(x: &Operands, clip: Clip) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let x = x.prepared(&dims)?;
    match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => composed(&x, clip),
        DType::F64 => run::<f64>(x, dims, clip),
        _ => run::<f32>(x, dims, clip),
    }
}

/// The same, token by token in tensor operations.
pub fn recurrence(x: &Operands, clip: Clip) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    reference::recurrence(&x.prepared(&dims)?, clip)
}

/// One token without gradients: outputs [B, 1, N, V]; the state's tensor is changed in place where it has no other
/// owner.
pub fn m2rnn_step(x: Operands) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => recurrence(&x, Clip::None),
        DType::F64 => step::<f64>(x, dims),
        _ => step::<f32>(x, dims),
    }
}

fn composed(x: &Operands, clip: Clip) -> Result<(Tensor, Tensor)> {
    let (list, linear) = (x.list(), x.linear);
    if !grad_enabled() || list.iter().all(|t| !t.is_tracked()) {
        return reference::recurrence(x, clip);
    }
    let both = checkpoint(&list, move |list| {
        let both = reference::recurrence(&Operands::from_list(list, linear)?, clip)?;
        Ok(both.into())
    })?;
    Ok(both.into())
}

fn run<R: Real + Stored>(x: Operands, dims: Dims, clip: Clip) -> Result<(Tensor, Tensor)> {
    let list = x.list();
    let save = grad_enabled() && list.iter().any(|t| t.is_tracked());
    let mut state = Buffer::from_slice(x.state.slice::<R>()?);
    let done = forward(dims, &x.inputs::<R>()?, &mut state, save);
    let o = Tensor::from_buffer(
        done.o,
        &[dims.batch, dims.tokens, dims.heads, dims.value_dim],
    )?;
    let state = Tensor::from_buffer(state, x.state.shape())?;
    let Some(starts) = done.starts else {
        return Ok((o, state));
    };
    let function = Recurrence {
        x: x.clone(),
        dims,
        clip,
        starts,
    };
    Ok(apply(function, &list, [o, state]).into())
}

fn step<R: Real + Stored>(x: Operands, dims: Dims) -> Result<(Tensor, Tensor)> {
    let mut state = x.state.into_detached();
    let none = Tensor::zeros(&[0], state.dtype(), &state.device());
    let rest = Operands { state: none, ..x }.prepared(&dims)?;
    let inputs = rest.inputs::<R>()?;
    let o = state.write(|state| forward(dims, &inputs, state, false).o)?;
    let shape = [dims.batch, dims.tokens, dims.heads, dims.value_dim];
    Ok((Tensor::from_buffer(o, &shape)?, state))
}

struct Recurrence<R: Real> {
    x: Operands,
    dims: Dims,
    clip: Clip,
    starts: Vec<Vec<Buffer<R>>>,
}

impl<R: Real + Stored> Function for Recurrence<R> {
    fn name(&self) -> &'static str {
        "m2rnn"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let list = self.x.list();
        if ctx.create_graph() {
            return recompute(ctx, &list, grads, |list| {
                let x = Operands::from_list(list, self.x.linear)?;
                let (o, state) = reference::recurrence(&x, self.clip)?;
                Ok(vec![o, state])
            });
        }
        let d_state = grads[1].as_ref().map(Tensor::contiguous).transpose()?;
        let d_state = d_state.as_ref().map(Tensor::slice::<R>).transpose()?;
        let d_o = match &grads[0] {
            Some(d_o) => d_o.contiguous()?,
            None => Tensor::zeros(ctx.output_shape(0), R::DTYPE, &self.x.state.device()),
        };
        let bound = |c: Option<f64>| c.map_or(-R::NEG_INFINITY, R::from_f64);
        let bounds = Bounds {
            carry: bound(self.clip.carry()),
            total: bound(self.clip.total()),
        };
        let from = (d_o.slice()?, d_state);
        let g = backward(self.dims, &self.x.inputs()?, &self.starts, from, bounds);
        let grads = [g.q, g.k, g.v, g.f, g.w, g.state].into_iter().zip(list);
        grads
            .map(|(g, x)| Ok(Some(Tensor::from_buffer(g, x.shape())?)))
            .collect()
    }
}
