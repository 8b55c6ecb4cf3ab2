//! The scan as an operation on tensors: shapes, dtypes and the gradient graph around the kernel.

use weft_tensor::{
    Buffer, Context, DType, Device, Error, Function, Real, Result, Stored, Tensor, apply,
    checkpoint, grad_enabled, recompute,
};

use super::backward::backward;
use super::forward::forward;
use super::{Cell, Dims, Inputs, Sizes, recurrence};

/// Operands of a scan. Everything is computed in the state's dtype, f32 or f64.
#[derive(Clone)]
pub struct Operands {
    /// Pre-activations that come from the input [B, T, N, X].
    pub x: Tensor,
    /// Recurrent weights [N, out, in] of the first product and, if the cell has one, of the second.
    pub weights: Vec<Tensor>,
    /// Other parameters [N, P], if the cell has any.
    pub params: Option<Tensor>,
    /// The state before the first token [B, N, S].
    pub state: Tensor,
}

/// How a scan is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// Clamp the gradient of the state to [-c, c] from token to token.
    pub clip: Option<f64>,
    /// Valid tokens of each row; those behind leave the state as it is and have outputs of 0.
    pub lengths: Option<&'a [usize]>,
}

impl Operands {
    /// The sizes. Errors if the shapes do not fit the cell and each other.
    pub fn dims(&self, sizes: &Sizes) -> Result<Dims> {
        let [batch, tokens, heads, input] = self.x.dims()?;
        let products: Vec<[usize; 2]> = [Some(sizes.first), sizes.second]
            .into_iter()
            .flatten()
            .collect();
        let weights = self.weights.len() == products.len()
            && self
                .weights
                .iter()
                .zip(&products)
                .all(|(w, [n_in, n_out])| w.shape() == [heads, *n_out, *n_in]);
        let params = match &self.params {
            Some(p) => p.shape() == [heads, sizes.params],
            None => sizes.params == 0,
        };
        let state = self.state.shape() == [batch, heads, sizes.state];
        if weights && params && state && input == sizes.input && self.x.count() > 0 {
            return Ok(Dims {
                batch,
                tokens,
                heads,
            });
        }
        Err(Error::Custom(format!(
            "recurrent scan: x {:?}, weights {:?}, parameters {:?}, state {:?} do not fit a cell of {sizes:?}",
            self.x.shape(),
            self.weights.iter().map(Tensor::shape).collect::<Vec<_>>(),
            self.params.as_ref().map(Tensor::shape),
            self.state.shape(),
        )))
    }

    fn list(&self) -> Vec<&Tensor> {
        let params = self.params.iter();
        std::iter::once(&self.x)
            .chain(&self.weights)
            .chain(params)
            .chain([&self.state])
            .collect()
    }

    /// The operands from a list in the order of [`Operands::list`].
    fn from_list(list: &[Tensor], weights: usize) -> Result<Operands> {
        match list {
            [x, rest @ .., state] if rest.len() >= weights => Ok(Operands {
                x: x.clone(),
                weights: rest[..weights].to_vec(),
                params: rest.get(weights).cloned(),
                state: state.clone(),
            }),
            _ => Err(Error::Custom("recurrent scan: lost an operand".into())),
        }
    }

    /// Everything in the state's dtype, row-major.
    fn prepared(&self) -> Result<Operands> {
        let dtype = match self.state.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let list = self
            .list()
            .into_iter()
            .map(|t| t.to_dtype(dtype)?.contiguous());
        Operands::from_list(&list.collect::<Result<Vec<_>>>()?, self.weights.len())
    }

    fn inputs<'a, R: Real + Stored>(
        &'a self,
        lengths: Option<&'a [usize]>,
    ) -> Result<Inputs<'a, R>> {
        let second: Option<&[R]> = self.weights.get(1).map(Tensor::slice).transpose()?;
        let params: Option<&[R]> = self.params.as_ref().map(Tensor::slice).transpose()?;
        Ok(Inputs {
            x: self.x.slice()?,
            weights: [self.weights[0].slice()?, second.unwrap_or_default()],
            params: params.unwrap_or_default(),
            lengths,
        })
    }
}

/// Outputs [B, T, N, O] and the last state [B, N, S], in the state's dtype, with gradients of every operand. On a
/// GPU the recurrence in tensor operations, run again on the way back.
///
/// Errors if shapes do not fit.
pub fn scan<C: Cell>(cell: &C, x: &Operands, how: &How) -> Result<(Tensor, Tensor)> {
    let dims = x.dims(&cell.sizes())?;
    let x = x.prepared()?;
    match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => composed(cell, &x, how),
        DType::F64 => run::<C, f64>(cell, x, dims, how),
        _ => run::<C, f32>(cell, x, dims, how),
    }
}

/// One token without gradients; the state's tensor is changed in place where it has no other owner.
pub fn step<C: Cell>(cell: &C, x: Operands, how: &How) -> Result<(Tensor, Tensor)> {
    let dims = x.dims(&cell.sizes())?;
    match x.state.dtype() {
        _ if x.state.device() != Device::Cpu => recurrence(cell, &x.prepared()?, how),
        DType::F64 => in_place::<C, f64>(cell, x, dims, how),
        _ => in_place::<C, f32>(cell, x, dims, how),
    }
}

fn composed<C: Cell>(cell: &C, x: &Operands, how: &How) -> Result<(Tensor, Tensor)> {
    let list = x.list();
    if !grad_enabled() || list.iter().all(|t| !t.is_tracked()) {
        return recurrence(cell, x, how);
    }
    let (cell, weights) = (cell.clone(), x.weights.len());
    let (clip, lengths) = (how.clip, how.lengths.map(<[usize]>::to_vec));
    let both = checkpoint(&list, move |list| {
        let how = How {
            clip,
            lengths: lengths.as_deref(),
        };
        Ok(recurrence(&cell, &Operands::from_list(list, weights)?, &how)?.into())
    })?;
    Ok(both.into())
}

fn run<C: Cell, R: Real + Stored>(
    cell: &C,
    x: Operands,
    dims: Dims,
    how: &How,
) -> Result<(Tensor, Tensor)> {
    let sizes = cell.sizes();
    let list = x.list();
    let save = grad_enabled() && list.iter().any(|t| t.is_tracked());
    let mut state = Buffer::from_slice(x.state.slice::<R>()?);
    let done = forward(cell, dims, &x.inputs::<R>(how.lengths)?, &mut state, save);
    let o = Tensor::from_buffer(done.o, &[dims.batch, dims.tokens, dims.heads, sizes.output])?;
    let state = Tensor::from_buffer(state, x.state.shape())?;
    let Some(starts) = done.starts else {
        return Ok((o, state));
    };
    let function = Scan {
        cell: cell.clone(),
        x: x.clone(),
        dims,
        clip: how.clip,
        lengths: how.lengths.map(<[usize]>::to_vec),
        starts,
    };
    Ok(apply(function, &list, [o, state]).into())
}

fn in_place<C: Cell, R: Real + Stored>(
    cell: &C,
    x: Operands,
    dims: Dims,
    how: &How,
) -> Result<(Tensor, Tensor)> {
    let mut state = x.state.into_detached();
    let none = Tensor::zeros(&[0], state.dtype(), &state.device());
    let rest = Operands { state: none, ..x }.prepared()?;
    let inputs = rest.inputs::<R>(how.lengths)?;
    let o = state.write(|state| forward(cell, dims, &inputs, state, false).o)?;
    let shape = [dims.batch, dims.tokens, dims.heads, cell.sizes().output];
    Ok((Tensor::from_buffer(o, &shape)?, state))
}

struct Scan<C, R: Real> {
    cell: C,
    x: Operands,
    dims: Dims,
    clip: Option<f64>,
    lengths: Option<Vec<usize>>,
    starts: Vec<Buffer<R>>,
}

impl<C: Cell, R: Real + Stored> Function for Scan<C, R> {
    fn name(&self) -> &'static str {
        "recurrent_scan"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let list = self.x.list();
        let lengths = self.lengths.as_deref();
        if ctx.create_graph() {
            return recompute(ctx, &list, grads, |list| {
                let how = How {
                    clip: self.clip,
                    lengths,
                };
                let x = Operands::from_list(list, self.x.weights.len())?;
                let (o, state) = recurrence(&self.cell, &x, &how)?;
                Ok(vec![o, state])
            });
        }
        let d_state = grads[1].as_ref().map(Tensor::contiguous).transpose()?;
        let d_state = d_state.as_ref().map(Tensor::slice::<R>).transpose()?;
        let d_o = match &grads[0] {
            Some(d_o) => d_o.contiguous()?,
            None => Tensor::zeros(ctx.output_shape(0), R::DTYPE, &self.x.state.device()),
        };
        let clip = self.clip.map(R::from_f64);
        let from = (d_o.slice()?, d_state);
        let g = backward(
            &self.cell,
            self.dims,
            &self.x.inputs(lengths)?,
            &self.starts,
            from,
            clip,
        );
        let weights = g.weights.into_iter().take(self.x.weights.len());
        let params = self.x.params.is_some().then_some(g.params);
        let grads = std::iter::once(g.x)
            .chain(weights)
            .chain(params)
            .chain([g.state]);
        grads
            .zip(list)
            .map(|(g, x)| Ok(Some(Tensor::from_buffer(g, x.shape())?)))
            .collect()
    }
}
