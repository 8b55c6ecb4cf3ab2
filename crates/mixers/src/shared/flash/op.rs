//! Attention as a tensor operation: q [B, T, Hq, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> o [B, T, Hq, Dv] and
//! the log-sum-exp [B, Hq, T], both differentiable. [`plain`] is the truth, in tensor operations with the
//! whole mask; [`attend`] runs the tiled kernels.

use weft_tensor::{
    Buffer, Context, DType, Device, Function, Real, Stored, Tensor, apply, recompute,
};

use super::{Dims, Gradients, Keys, Mask, backward, composed, forward, gpu};
use crate::error::{Error, Result};

/// [`Mask`] with its positions owned, as a graph must keep them.
#[derive(Clone, Debug)]
pub struct Visibility {
    /// Position of the first query of each sequence [B].
    pub query_start: Vec<i64>,
    /// Positions of the keys.
    pub keys: KeyPositions,
    /// How many positions back a query sees, itself included; `None` for all.
    pub window: Option<i64>,
    /// The first `sinks` positions stay visible outside the window.
    pub sinks: i64,
}

/// [`Keys`] with its positions owned.
#[derive(Clone, Debug)]
pub enum KeyPositions {
    /// Key s of sequence b is at position `start[b] + s`.
    Range(Vec<i64>),
    /// Key s of sequence b is at position `slots[b * S + s]`; -1 marks an empty slot.
    Slots(Vec<i64>),
}

impl Visibility {
    fn mask(&self) -> Mask<'_> {
        let keys = match &self.keys {
            KeyPositions::Range(start) => Keys::Range(start),
            KeyPositions::Slots(slots) => Keys::Slots(slots),
        };
        Mask {
            query_start: &self.query_start,
            keys,
            window: self.window,
            sinks: self.sinks,
        }
    }

    /// [B, T, S] u8: 1 where query t sees key s.
    fn matrix(&self, dims: &Dims) -> Vec<u8> {
        let mask = self.mask();
        let mut out = Vec::with_capacity(dims.batch * dims.queries * dims.keys);
        for b in 0..dims.batch {
            for t in 0..dims.queries {
                let query = self.query_start[b] + t as i64;
                let sees = |s| u8::from(mask.visible(query, mask.key(b, s, dims.keys)));
                out.extend((0..dims.keys).map(sees));
            }
        }
        out
    }
}

fn misfit(q: &Tensor, k: &Tensor, v: &Tensor) -> Error {
    let (q, k, v) = (q.shape(), k.shape(), v.shape());
    let detail = format!(
        "q {q:?}, k {k:?}, v {v:?}: expected [B, T, Hq, D], [B, S, Hkv, D], [B, S, Hkv, Dv], Hq a multiple of Hkv"
    );
    Error::Tensor(weft_tensor::Error::Shape {
        op: "attention",
        detail,
    })
}

fn sizes_of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Dims> {
    let (&[batch, queries, heads, dim], &[b, keys, kv_heads, d], &[b2, s2, h2, value_dim]) =
        (q.shape(), k.shape(), v.shape())
    else {
        return Err(misfit(q, k, v));
    };
    let same = (b, b2, s2, h2, d) == (batch, batch, keys, kv_heads, dim);
    if !same || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(misfit(q, k, v));
    }
    Ok(Dims {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
        value_dim,
    })
}

fn dims_of(q: &Tensor, k: &Tensor, v: &Tensor, sees: &Visibility) -> Result<Dims> {
    let dims = sizes_of(q, k, v)?;
    let positions = match &sees.keys {
        KeyPositions::Range(start) => start.len() == dims.batch,
        KeyPositions::Slots(slots) => slots.len() == dims.batch * dims.keys,
    };
    if !positions || sees.query_start.len() != dims.batch {
        return Err(misfit(q, k, v));
    }
    Ok(dims)
}

/// o and lse by the definition, with all T x S scores in memory. A key that no query sees may hold anything.
pub fn plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sees: &Visibility,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let dims = dims_of(q, k, v, sees)?;
    let Dims {
        batch: b,
        queries: t,
        keys: s,
        ..
    } = dims;
    let matrix = sees.matrix(&dims);
    let seen: Vec<u8> = (0..b * s)
        .map(|i| {
            (0..t)
                .map(|q| matrix[(i / s * t + q) * s + i % s])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let seen = Tensor::from_vec(seen, &[b, s, 1, 1], &q.device())?;
    let zero = Tensor::zeros(&[], q.dtype(), &q.device());
    let group = dims.group();
    // [B, S, Hkv, D] -> [B, Hq, S, D]
    let spread = |x: &Tensor| -> Result<Tensor> {
        Ok(seen
            .where_cond(x, &zero)?
            .repeat_interleave(2, group)?
            .permute(&[0, 2, 1, 3])?)
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let scores = q
        .permute(&[0, 2, 1, 3])?
        .matmul(&k.transpose(-1, -2)?)?
        .mul_scalar(scale)?;
    let visible = Tensor::from_vec(matrix, &[b, 1, t, s], &q.device())?;
    let hidden = Tensor::full(&[], f64::NEG_INFINITY, q.dtype(), &q.device());
    let scores = visible.where_cond(&scores, &hidden)?;
    let out = scores.softmax(-1)?.matmul(&v)?.permute(&[0, 2, 1, 3])?;
    Ok((out.contiguous()?, scores.logsumexp(-1, false)?))
}

/// o and lse by tiles; on a GPU by [`gpu`](super::gpu) where it has a kernel, or else by products of whole matrices. lse
/// of bf16 is f32; without a kernel bf16 is computed in f32.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sees: &Visibility,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let dims = dims_of(q, k, v, sees)?;
    let dtype = q.dtype();
    if q.device() != Device::Cpu
        && let Some(outputs) = gpu::attend(&dims, [q, k, v], sees, scale)?
    {
        return Ok(outputs);
    }
    if !matches!(dtype, DType::F32 | DType::F64) {
        let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F32));
        let (o, lse) = attend(&q?, &k?, &v?, sees, scale)?;
        return Ok((o.to_dtype(dtype)?, lse));
    }
    if q.device() != Device::Cpu {
        return compose(q, k, v, sees, scale);
    }
    let [q, k, v] = [q, k, v].map(Tensor::contiguous);
    let (q, k, v) = (q?, k?, v?);
    let outputs = match dtype {
        DType::F64 => run::<f64>(&dims, sees, scale, [&q, &k, &v])?,
        _ => run::<f32>(&dims, sees, scale, [&q, &k, &v])?,
    };
    let function = Attention {
        dims,
        sees: sees.clone(),
        scale,
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
    };
    Ok(apply(function, &[&q, &k, &v], outputs).into())
}

/// o and lse of a few queries, without gradients, at positions that the GPU holds: the launch is the same for every
/// position, so that a captured graph of it can be replayed while they advance.
///
/// # Errors
/// If no kernel takes such a call: heads of other sizes, more than [`gpu::FEW_QUERIES`] queries, other dtypes.
pub fn attend_at(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    places: &gpu::Places,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let dims = sizes_of(q, k, v)?;
    let slots = if places.slots { dims.keys } else { 1 };
    let fits = |place: &gpu::Place, per_sequence: usize| match place {
        gpu::Place::Same(_) => per_sequence == 1,
        gpu::Place::Each(list) => list.count() == dims.batch * per_sequence,
    };
    if !fits(&places.query_start, 1) || !fits(&places.keys, slots) {
        let detail = format!(
            "positions do not fit {} sequences of {} keys",
            dims.batch, dims.keys
        );
        return Err(Error::config("attention", detail));
    }
    Ok(gpu::attend_few(&dims, [q, k, v], places, scale)?)
}

/// o and lse by products of whole matrices.
pub(super) fn compose(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sees: &Visibility,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let dims = dims_of(q, k, v, sees)?;
    Ok(composed::attend(&dims, [q, k, v], sees, scale)?)
}

fn run<R: Real + Stored>(
    dims: &Dims,
    sees: &Visibility,
    scale: f64,
    [q, k, v]: [&Tensor; 3],
) -> weft_tensor::Result<[Tensor; 2]> {
    let shape = [dims.batch, dims.queries, dims.heads, dims.value_dim];
    let rows = [dims.batch, dims.heads, dims.queries];
    let mut out = Buffer::<R>::unwritten(shape.iter().product());
    let mut lse = Buffer::<R>::unwritten(rows.iter().product());
    let inputs = (q.slice()?, k.slice()?, v.slice()?);
    forward(
        dims,
        &sees.mask(),
        R::from_f64(scale),
        inputs,
        &mut out,
        &mut lse,
    );
    Ok([
        Tensor::from_buffer(out, &shape)?,
        Tensor::from_buffer(lse, &rows)?,
    ])
}

struct Attention {
    dims: Dims,
    sees: Visibility,
    scale: f64,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Attention {
    fn back<R: Real + Stored>(
        &self,
        ctx: &Context,
        dout: &Tensor,
        dlse: Option<&Tensor>,
    ) -> weft_tensor::Result<Vec<Option<Tensor>>> {
        let [mut dq, mut dk, mut dv] =
            [&self.q, &self.k, &self.v].map(|t| Buffer::<R>::unwritten(t.count()));
        let (out, lse, dout) = (ctx.output(0)?, ctx.output(1)?, dout.contiguous()?);
        let dlse = dlse.map(Tensor::contiguous).transpose()?;
        let grads = Gradients {
            out: out.slice()?,
            lse: lse.slice()?,
            dout: dout.slice()?,
            dlse: dlse.as_ref().map(|d| d.slice()).transpose()?,
        };
        let inputs = (self.q.slice()?, self.k.slice()?, self.v.slice()?);
        let mask = self.sees.mask();
        backward(
            &self.dims,
            &mask,
            R::from_f64(self.scale),
            inputs,
            grads,
            (&mut dq, &mut dk, &mut dv),
        );
        [(dq, &self.q), (dk, &self.k), (dv, &self.v)]
            .into_iter()
            .map(|(g, t)| Ok(Some(Tensor::from_buffer(g, t.shape())?)))
            .collect()
    }
}

impl Function for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn keeps_outputs(&self) -> bool {
        true
    }
    fn backward(
        &self,
        ctx: &Context,
        grads: &[Option<Tensor>],
    ) -> weft_tensor::Result<Vec<Option<Tensor>>> {
        if ctx.create_graph() {
            return recompute(ctx, &[&self.q, &self.k, &self.v], grads, |x| {
                let (o, lse) = plain(&x[0], &x[1], &x[2], &self.sees, self.scale)
                    .map_err(|e| weft_tensor::Error::Custom(e.to_string()))?;
                Ok(vec![o, lse])
            });
        }
        let out = ctx.output(0)?;
        let dout = grads[0].clone().unwrap_or_else(|| out.zeros_like());
        match self.q.dtype() {
            DType::F64 => self.back::<f64>(ctx, &dout, grads[1].as_ref()),
            _ => self.back::<f32>(ctx, &dout, grads[1].as_ref()),
        }
    }
}
