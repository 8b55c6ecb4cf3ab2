//! Attention as matrix products of tensors, for devices without a tiled kernel: the scores of a piece of the queries
//! exist at a time, and again in the backward pass, which computes them anew. Masks are made on the device.

use weft_tensor::{Context, DType, Device, Function, Result, Tensor, apply, no_grad, recompute};

use super::Dims;
use super::op::{KeyPositions, Visibility};

/// Most scores at a time, over all sequences and heads: a GiB in f32.
const MOST_SCORES: usize = 1 << 28;

/// o [B, T, Hq, Dv] and lse [B, Hq, T], differentiable; q, k and v of one dtype, f32 or f64.
pub fn attend(
    dims: &Dims,
    [q, k, v]: [&Tensor; 3],
    sees: &Visibility,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let rows = (MOST_SCORES / (dims.batch * dims.heads * dims.keys).max(1)).max(1);
    let (mut outs, mut lses) = (vec![], vec![]);
    for from in (0..dims.queries).step_by(rows) {
        let count = rows.min(dims.queries - from);
        let piece = Piece {
            sees: sees.clone(),
            from,
            scale,
            inputs: [q.narrow(1, from, count)?, k.clone(), v.clone()],
        };
        let [q, k, v] = piece.inputs.clone();
        let outputs = no_grad(|| piece.compute(&[q.detach(), k.detach(), v.detach()]))?;
        let [o, lse] = apply(piece, &[&q, &k, &v], outputs);
        outs.push(o);
        lses.push(lse);
    }
    let join = |parts: &[Tensor], axis| match parts {
        [one] => Ok(one.clone()),
        all => Tensor::cat(&all.iter().collect::<Vec<_>>(), axis),
    };
    Ok((join(&outs, 1)?, join(&lses, 2)?))
}

/// Some of the queries: those from `from` on.
struct Piece {
    sees: Visibility,
    from: usize,
    scale: f64,
    inputs: [Tensor; 3],
}

impl Function for Piece {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        recompute(ctx, &self.inputs.each_ref(), grads, |x| {
            self.compute(x).map(Vec::from)
        })
    }
}

impl Piece {
    fn compute(&self, x: &[Tensor]) -> Result<[Tensor; 2]> {
        let ([b, t, hq, d], [_, s, hkv, _]) = (x[0].dims()?, x[1].dims()?);
        let device = x[0].device();
        let (first, keys) = self.reach(t, s);
        let (mut k, mut v) = (x[1].narrow(1, first, keys)?, x[2].narrow(1, first, keys)?);
        let visible = self.visible(t, first, keys, s, &device)?;
        let zero = Tensor::zeros(&[], k.dtype(), &device);
        if !self.aligned() || self.sees.sinks > 0 {
            // What no query sees may hold anything, even NaN, and 0 times NaN is NaN.
            let seen = visible.max(1, false)?.unsqueeze(-1)?.unsqueeze(-1)?;
            (k, v) = (seen.where_cond(&k, &zero)?, seen.where_cond(&v, &zero)?);
        }
        // [B, Hkv, r, T, D] and [B, Hkv, 1, S, D]
        let q = x[0]
            .mul_scalar(self.scale)?
            .reshape(&[b, t, hkv, hq / hkv, d])?
            .permute(&[0, 2, 3, 1, 4])?;
        let heads = |x: &Tensor| x.transpose(1, 2)?.unsqueeze(2);
        let scores = q.matmul(&heads(&k)?.transpose(-1, -2)?)?;
        let hidden = Tensor::full(&[], f64::NEG_INFINITY, k.dtype(), &device);
        let visible = visible.unsqueeze(1)?.unsqueeze(1)?;
        let scores = visible.where_cond(&scores, &hidden)?;
        let lse = scores.logsumexp(-1, false)?.reshape(&[b, hq, t])?;
        let o = scores.softmax(-1)?.matmul(&heads(&v)?)?;
        let o = o.permute(&[0, 3, 1, 2, 4])?;
        let width = o.dim(-1)?;
        Ok([o.reshape(&[b, t, hq, width])?, lse])
    }

    /// Whether all sequences stand at the same place, and keys are a run of positions.
    fn aligned(&self) -> bool {
        let same = |x: &[i64]| x.windows(2).all(|w| w[0] == w[1]);
        let keys = match &self.sees.keys {
            KeyPositions::Range(start) => same(start),
            KeyPositions::Slots(_) => false,
        };
        keys && same(&self.sees.query_start)
    }

    /// The keys that some of the t queries may see: first and number.
    fn reach(&self, t: usize, s: usize) -> (usize, usize) {
        let (KeyPositions::Range(start), true) = (&self.sees.keys, self.aligned()) else {
            return (0, s);
        };
        let ahead = |x: &[i64]| x.first().copied().unwrap_or(0);
        let query = ahead(&self.sees.query_start) + self.from as i64 - ahead(start);
        let clamp = |n: i64| usize::try_from(n).unwrap_or(0).min(s);
        let end = clamp(query + t as i64).max(1);
        let first = match self.sees.window {
            Some(window) if self.sees.sinks == 0 => clamp(query - window + 1).min(end - 1),
            _ => 0,
        };
        (first, end - first)
    }

    /// [B or 1, T, keys] u8: 1 where a query sees a key.
    fn visible(
        &self,
        t: usize,
        first: usize,
        keys: usize,
        all_keys: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let sees = &self.sees;
        let run = |starts: &[i64], skip: usize, n: usize| -> Result<Tensor> {
            let starts = match starts {
                [first, rest @ ..] if rest.iter().all(|s| s == first) => &starts[..1],
                all => all,
            };
            let skip = skip as i64;
            if let [start] = starts {
                return Tensor::arange(start + skip, start + skip + n as i64, DType::I64, device)?
                    .unsqueeze(0);
            }
            let starts = Tensor::from_slice(starts, &[starts.len(), 1], device)?;
            starts.add(&Tensor::arange(skip, skip + n as i64, DType::I64, device)?)
        };
        let q = run(&sees.query_start, self.from, t)?.unsqueeze(-1)?;
        let k = match &sees.keys {
            KeyPositions::Range(start) => run(start, first, keys)?,
            KeyPositions::Slots(slots) => {
                let rows = slots.len() / all_keys.max(1);
                Tensor::from_slice(slots, &[rows, all_keys], device)?.narrow(1, first, keys)?
            }
        };
        let k = k.unsqueeze(1)?;
        let number = |n: i64| Tensor::full(&[], n as f64, DType::I64, device);
        let mut visible = k.le(&q)?;
        if matches!(sees.keys, KeyPositions::Slots(_)) {
            visible = visible.minimum(&k.ge(&number(0))?)?;
        }
        if let Some(window) = sees.window {
            let near = q.sub(&k)?.lt(&number(window))?;
            visible = visible.minimum(&near.maximum(&k.lt(&number(sees.sinks))?)?)?;
        }
        Ok(visible)
    }
}
