//! Which kernel serves a call, and the way back.

use weft_tensor::{Context, DType, Error, Function, Result, Tensor, apply, recompute};

use super::super::Dims;
use super::super::op::{Visibility, plain};
use super::backward::Pass;
use super::{FEW_QUERIES, HEAD_DIMS, Places, aligned, decode, few, forward, serves};

/// o [B, T, Hq, D] and lse [B, Hq, T], both differentiable; `None` if no kernel serves such a call.
pub fn attend(
    dims: &Dims,
    inputs: [&Tensor; 3],
    sees: &Visibility,
    scale: f64,
) -> Result<Option<(Tensor, Tensor)>> {
    if !serves(dims, inputs, scale) {
        return Ok(None);
    }
    let places = Places::of(sees, &inputs[0].device())?;
    if few(dims, inputs) {
        return Ok(Some(attend_few(dims, inputs, &places, scale)?));
    }
    let [q, k, v] = inputs.map(Tensor::contiguous);
    let inputs = [q?, k?, v?];
    let outputs = forward::forward(dims, inputs.each_ref(), &places, scale)?;
    let function = Attention {
        dims: *dims,
        sees: sees.clone(),
        places,
        scale,
        inputs: inputs.clone(),
    };
    let outputs = apply(function, &inputs.each_ref(), outputs);
    Ok(Some(outputs.into()))
}

/// The same for a few queries without gradients, wherever positions are kept; errors if no kernel serves such a call.
pub fn attend_few(
    dims: &Dims,
    inputs: [&Tensor; 3],
    places: &Places,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let [q, k, v] = inputs.map(|x| x.detach().contiguous());
    let inputs = [&q?, &k?, &v?];
    if dims.queries > FEW_QUERIES || !serves(dims, inputs, scale) {
        let (t, d, dv, dtype) = (dims.queries, dims.dim, dims.value_dim, inputs[0].dtype());
        return Err(Error::Custom(format!(
            "attention: no kernel for {t} queries with heads of {d} and values of {dv} in {dtype}: it takes up to \
             {FEW_QUERIES} queries, bf16 or f32, and heads of {HEAD_DIMS:?}"
        )));
    }
    let [o, lse] = decode::decode(dims, inputs, places, scale)?;
    Ok((o, lse))
}

struct Attention {
    dims: Dims,
    sees: Visibility,
    places: Places,
    scale: f64,
    inputs: [Tensor; 3],
}

impl Attention {
    /// o and lse in f32, by primitives.
    fn plain(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let f32 = |x: &Tensor| x.to_dtype(DType::F32);
        let (q, k, v) = (f32(&x[0])?, f32(&x[1])?, f32(&x[2])?);
        let (o, lse) = plain(&q, &k, &v, &self.sees, self.scale)
            .map_err(|e| weft_tensor::Error::Custom(e.to_string()))?;
        Ok(vec![o.to_dtype(DType::BF16)?, lse])
    }
}

impl Function for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn keeps_outputs(&self) -> bool {
        true
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let inputs = self.inputs.each_ref();
        if ctx.create_graph() {
            return recompute(ctx, &inputs, grads, |x| self.plain(x));
        }
        let (out, lse) = (ctx.output(0)?, ctx.output(1)?);
        let dout = match &grads[0] {
            Some(dout) if aligned(dout) => dout.contiguous()?,
            Some(dout) => dout.mul_scalar(1.0)?,
            None => out.zeros_like(),
        };
        let dlse = grads[1].as_ref().map(Tensor::contiguous).transpose()?;
        let pass = Pass {
            dims: &self.dims,
            inputs,
            out: &out,
            lse: &lse,
            dout: &dout,
            dlse: dlse.as_ref(),
            places: &self.places,
            scale: self.scale,
        };
        Ok(pass.run()?.map(Some).to_vec())
    }
}
