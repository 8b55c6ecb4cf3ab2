//! The rule as an operation on tensors: shapes, dtypes and the gradient graph around the kernels.

use weft_tensor::{
    Buffer, Context, DType, Device, Error, Function, Real, Result, Stored, Tensor, apply,
    checkpoint, grad_enabled, recompute,
};

use super::chunk::{self, Saved};
use super::{Dims, Gate, Inputs, backward, composed, gpu, reference, step_gpu};

/// Operands of the rule. The state's dtype (f32 or f64) is what everything is computed in; the other operands
/// may have any float dtype, and the outputs get that of `qkv`.
#[derive(Clone)]
pub struct Operands {
    /// Queries and keys (before the L2 norm) and values, one after the other: [B, T, 2 H K + HV V].
    pub qkv: Tensor,
    /// Log decay g <= 0: [B, T, HV], [B, T, H, K] or [B, T, HV, K].
    pub decay: Option<Tensor>,
    /// Erase gate: [B, T, HV], [B, T, H, K] or [B, T, HV, K].
    pub erase: Tensor,
    /// Write gate: [B, T, HV] or [B, T, HV, V]. A tied gate is the same tensor as `erase`.
    pub write: Tensor,
    /// State before the first token: [B, HV, K, V].
    pub state: Tensor,
}

impl Operands {
    /// The sizes. Errors if the shapes do not fit each other.
    pub fn dims(&self) -> Result<Dims> {
        let [batch, _, _] = self.qkv.dims()?;
        self.sizes(batch)
    }

    /// The same with a state for each of `sequences` sequences.
    fn sizes(&self, sequences: usize) -> Result<Dims> {
        let ([batch, tokens, width], [b, value_heads, key_dim, value_dim]) =
            (self.qkv.dims()?, self.state.dims()?);
        let keys = width.saturating_sub(value_heads * value_dim);
        let heads = keys / (2 * key_dim).max(1);
        let dims = Dims {
            batch,
            tokens,
            heads,
            value_heads,
            key_dim,
            value_dim,
        };
        let whole = b == sequences
            && keys == 2 * heads * key_dim
            && self.qkv.count() * self.state.count() > 0;
        let gate = |gate: &Tensor, channels: usize, per_key_head: bool| match *gate.shape() {
            [b, t, n] => [b, t, n] == [batch, tokens, value_heads],
            [b, t, n, c] => {
                let head = n == value_heads || n == heads && per_key_head;
                [b, t, c] == [batch, tokens, channels] && head
            }
            _ => false,
        };
        let gates = self.decay.as_ref().is_none_or(|g| gate(g, key_dim, true))
            && gate(&self.erase, key_dim, true)
            && gate(&self.write, value_dim, false);
        if whole && heads > 0 && value_heads.is_multiple_of(heads) && gates {
            return Ok(dims);
        }
        Err(Error::Custom(format!(
            "delta_rule: qkv {:?}, decay {:?}, erase {:?}, write {:?}, state {:?}: expected [B, T, 2 H K + HV V], gates \
             [B, T, HV] or [B, T, heads, channels], [B, HV, K, V]",
            self.qkv.shape(),
            self.decay.as_ref().map(Tensor::shape),
            self.erase.shape(),
            self.write.shape(),
            self.state.shape()
        )))
    }

    /// Row-major and in the state's dtype.
    pub(super) fn prepared(&self) -> Result<Operands> {
        self.prepared_for(self.state.dtype())
    }

    /// Row-major, gates in the state's dtype, qkv in its own.
    fn prepared_for(&self, qkv: DType) -> Result<Operands> {
        let dtype = self.state.dtype();
        let prepare = |x: &Tensor| x.to_dtype(dtype)?.contiguous();
        Ok(Operands {
            qkv: self.qkv.to_dtype(qkv)?.contiguous()?,
            decay: self.decay.as_ref().map(prepare).transpose()?,
            erase: prepare(&self.erase)?,
            write: prepare(&self.write)?,
            state: prepare(&self.state)?,
        })
    }

    pub(super) fn list(&self) -> Vec<&Tensor> {
        [&self.qkv]
            .into_iter()
            .chain(&self.decay)
            .chain([&self.erase, &self.write, &self.state])
            .collect()
    }

    /// The inverse of [`Operands::list`].
    pub(super) fn from_list(list: &[Tensor]) -> Result<Operands> {
        let (qkv, decay, rest) = match list {
            [qkv, decay, rest @ ..] if rest.len() == 3 => (qkv, Some(decay.clone()), rest),
            [qkv, rest @ ..] => (qkv, None, rest),
            [] => return Err(Error::Custom("delta_rule: no operands".into())),
        };
        let [erase, write, state] = rest else {
            return Err(Error::Custom(format!(
                "delta_rule: {} operands",
                list.len()
            )));
        };
        let (erase, write, state) = (erase.clone(), write.clone(), state.clone());
        Ok(Operands {
            qkv: qkv.clone(),
            decay,
            erase,
            write,
            state,
        })
    }

    pub(super) fn inputs<R: Real + Stored>(&self) -> Result<Inputs<'_, R>> {
        fn gate<R: Real + Stored>(x: &Tensor) -> Result<Gate<'_, R>> {
            let width = if x.rank() == 4 { x.dim(3)? } else { 1 };
            Ok(Gate::new(x.slice()?, x.dim(2)?, width))
        }
        Ok(Inputs {
            qkv: self.qkv.slice()?,
            decay: self.decay.as_ref().map(gate).transpose()?,
            erase: gate(&self.erase)?,
            write: gate(&self.write)?,
            state: Some(self.state.slice()?),
        })
    }
}

/// All tokens in chunks of about `chunk`, by the kernels or on a GPU in tensor operations where it has none: outputs
/// [B, T, HV, V] and final state [B, HV, K, V]. Gradients flow to every operand.
pub fn delta_rule(x: &Operands, chunk: usize) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let dtype = x.qkv.dtype();
    if gpu::takes(x, dims, None) {
        return gpu::forward(x.prepared_for(dtype)?, dims, None);
    }
    let x = x.prepared()?;
    let (o, state) = match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => compose(&x, chunk)?,
        DType::F64 => run::<f64>(x, dims, chunk)?,
        _ => run::<f32>(x, dims, chunk)?,
    };
    Ok((o.to_dtype(dtype)?, state))
}

/// Sequences of any lengths packed one behind the other: operands with B = 1 and a state for each of N sequences
/// [N, HV, K, V]; `starts` i64 [N + 1] are their first tokens and then the number of all tokens, on the operands' device.
/// Outputs [1, T, HV, V] and final states. The GPU's kernels do not wait for the host and so do not refuse `starts` that
/// fall or leave tokens out: such outputs are undefined.
pub fn delta_rule_packed(x: &Operands, starts: &Tensor, chunk: usize) -> Result<(Tensor, Tensor)> {
    let [entries] = starts.dims()?;
    let dims = x.sizes(entries.saturating_sub(1))?;
    if dims.batch != 1 || starts.dtype() != DType::I64 {
        return Err(Error::Custom(format!(
            "delta_rule_packed: qkv {:?}, starts {}: expected [1, T, 2 H K + HV V] and i64",
            x.qkv.shape(),
            starts.dtype()
        )));
    }
    if gpu::takes(x, dims, Some(starts)) {
        let starts = starts.contiguous()?;
        return gpu::forward(x.prepared_for(x.qkv.dtype())?, dims, Some(&starts));
    }
    each_sequence(x, Some(starts), |x| delta_rule(x, chunk))
}

/// `f` of each sequence, outputs packed again.
pub(super) fn each_sequence(
    x: &Operands,
    starts: Option<&Tensor>,
    f: impl Fn(&Operands) -> Result<(Tensor, Tensor)>,
) -> Result<(Tensor, Tensor)> {
    let Some(starts) = starts else {
        return f(x);
    };
    let starts = starts.to_vec::<i64>()?;
    let tokens = x.qkv.dim(1)? as i64;
    let whole = starts.first() == Some(&0) && starts.last() == Some(&tokens);
    if !whole || starts.windows(2).any(|w| w[0] > w[1]) {
        return Err(Error::Custom(format!(
            "delta_rule_packed: starts {starts:?} do not lead from 0 to {tokens} without falling"
        )));
    }
    let (mut outputs, mut states) = (vec![], vec![]);
    for (i, w) in starts.windows(2).enumerate() {
        let (first, count) = (w[0] as usize, (w[1] - w[0]) as usize);
        let state = x.state.narrow(0, i, 1)?;
        if count == 0 {
            states.push(state);
            continue;
        }
        let part = |x: &Tensor| x.narrow(1, first, count);
        let (o, state) = f(&Operands {
            qkv: part(&x.qkv)?,
            decay: x.decay.as_ref().map(part).transpose()?,
            erase: part(&x.erase)?,
            write: part(&x.write)?,
            state,
        })?;
        outputs.push(o);
        states.push(state);
    }
    let joined = |x: &[Tensor], axis| Tensor::cat(&x.iter().collect::<Vec<_>>(), axis);
    Ok((joined(&outputs, 1)?, joined(&states, 0)?))
}

/// The same, token by token in plain operations: see [`reference`].
pub fn recurrence(x: &Operands) -> Result<(Tensor, Tensor)> {
    x.dims()?;
    let dtype = x.qkv.dtype();
    let (o, state) = reference::recurrence(&x.prepared()?)?;
    Ok((o.to_dtype(dtype)?, state))
}

/// One token without gradients: outputs [B, 1, HV, V]; the state's tensor is changed in place where it has
/// no other owner.
pub fn delta_rule_step(x: Operands) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    if dims.tokens != 1 {
        return Err(Error::Custom(format!(
            "delta_rule_step: {} tokens, expected one",
            dims.tokens
        )));
    }
    let dtype = x.qkv.dtype();
    let (o, state) = match x.state.dtype() {
        state if x.state.device() != Device::Cpu => {
            match step_gpu::fits(dims.key_dim, dims.value_dim, state) {
                true => step_gpu::step(x, dims)?,
                false => reference::recurrence(&x.prepared()?)?,
            }
        }
        DType::F64 => step::<f64>(x, dims)?,
        _ => step::<f32>(x, dims)?,
    };
    Ok((o.to_dtype(dtype)?, state))
}

/// The chunkwise form in tensor operations; with gradients it is computed again in the backward pass, so that only the
/// operands are kept.
pub(super) fn compose(x: &Operands, chunk: usize) -> Result<(Tensor, Tensor)> {
    let list = x.list();
    if !grad_enabled() || list.iter().all(|t| !t.is_tracked()) {
        return composed::chunks(x, chunk);
    }
    let both = checkpoint(&list, move |list| {
        Ok(composed::chunks(&Operands::from_list(list)?, chunk)?.into())
    })?;
    Ok(both.into())
}

fn run<R: Real + Stored>(x: Operands, dims: Dims, chunk: usize) -> Result<(Tensor, Tensor)> {
    let list = x.list();
    let save = grad_enabled() && list.iter().any(|t| t.is_tracked());
    let done = chunk::forward(dims, &x.inputs::<R>()?, chunk, save);
    let o = Tensor::from_buffer(
        done.o,
        &[dims.batch, dims.tokens, dims.value_heads, dims.value_dim],
    )?;
    let state = Tensor::from_buffer(done.state, x.state.shape())?;
    let Some(saved) = done.saved else {
        return Ok((o, state));
    };
    let rule = Rule {
        x: x.clone(),
        dims,
        saved,
    };
    Ok(apply(rule, &list, [o, state]).into())
}

fn step<R: Real + Stored>(x: Operands, dims: Dims) -> Result<(Tensor, Tensor)> {
    // Everything but the state is small; the state must not be copied, so its tensor is moved out first.
    let Operands {
        qkv,
        decay,
        erase,
        write,
        state,
    } = x;
    let mut state = state.into_detached();
    let none = Tensor::zeros(&[0], state.dtype(), &state.device());
    let small = Operands {
        qkv,
        decay,
        erase,
        write,
        state: none,
    }
    .prepared()?;
    let inputs = Inputs {
        state: None,
        ..small.inputs::<R>()?
    };
    let mut o = Buffer::unwritten(dims.output_len());
    state.write(|state| super::step(dims, &inputs, state, &mut o))?;
    let o = Tensor::from_buffer(o, &[dims.batch, 1, dims.value_heads, dims.value_dim])?;
    Ok((o, state))
}

struct Rule<R: Real> {
    x: Operands,
    dims: Dims,
    saved: Saved<R>,
}

impl<R: Real + Stored> Function for Rule<R> {
    fn name(&self) -> &'static str {
        "delta_rule"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let list = self.x.list();
        if ctx.create_graph() {
            return recompute(ctx, &list, grads, |x| {
                let (o, state) = reference::recurrence(&Operands::from_list(x)?)?;
                Ok(vec![o, state])
            });
        }
        let d_state = grads[1].as_ref().map(Tensor::contiguous).transpose()?;
        let d_state = d_state.as_ref().map(Tensor::slice::<R>).transpose()?;
        let d_o = match &grads[0] {
            Some(d_o) => d_o.contiguous()?,
            None if d_state.is_none() => return Ok(vec![None; list.len()]),
            None => Tensor::zeros(ctx.output_shape(0), R::DTYPE, &self.x.state.device()),
        };
        let g = backward(
            self.dims,
            &self.x.inputs()?,
            &self.saved,
            d_o.slice()?,
            d_state,
        );
        let decay = self.x.decay.is_some().then_some(g.decay);
        let grads = [g.qkv]
            .into_iter()
            .chain(decay)
            .chain([g.erase, g.write, g.state]);
        grads
            .zip(list)
            .map(|(g, x)| Ok(Some(Tensor::from_buffer(g, x.shape())?)))
            .collect()
    }
}
