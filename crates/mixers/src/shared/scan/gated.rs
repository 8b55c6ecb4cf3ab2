//! The gated recurrence, channel by channel:
//!
//! ```text
//! h_t = exp(g_t) h_{t-1} + x_t                  g, x, h [B, T, C]
//! dh_t += exp(g_{t+1}) dh_{t+1}     dx_t = dh_t     dg_t = dh_t exp(g_t) h_{t-1}
//! ```
//!
//! The way back is the same scan in the other direction. On the CPU time runs in order, sequences and pieces of
//! channels in parallel: one pass over memory, where rounds of doubling reach would make log2 T.

use rayon::prelude::*;
use weft_tensor::cpu::simd::vectorize;
use weft_tensor::{
    Buffer, Context, DType, Device, Error, Function, Real, Result, Stored, Tensor, apply, recompute,
};

use super::{Monoid, Options, fold, scan};

/// Channels of a task.
const PIECE: usize = 128;

/// Elements (g, x): what a run of tokens does to a channel, h -> exp(g) h + x.
#[derive(Clone, Copy, Debug)]
pub struct Gated;

impl Monoid for Gated {
    fn combine(&self, older: &[Tensor], newer: &[Tensor]) -> Result<Vec<Tensor>> {
        let ([g, x], [later, y]) = (older, newer) else {
            return Err(Error::Custom("gated scan: elements are pairs".into()));
        };
        Ok(vec![g.add(later)?, x.mul(&later.exp()?)?.add(y)?])
    }
}

/// h [B, T, C] of g, x [B, T, C], both f32 or f64, from `initial` [B, C]; `resets` u8 [B, T] and `reverse` as in
/// [`Options`]. Gradients flow to g, x and `initial`.
pub fn gated(
    g: &Tensor,
    x: &Tensor,
    initial: &Tensor,
    resets: Option<&Tensor>,
    reverse: bool,
) -> Result<Tensor> {
    let fits = g.rank() == 3
        && g.shape() == x.shape()
        && initial.shape() == [g.dim(0)?, g.dim(2)?]
        && resets.is_none_or(|r| r.shape() == &g.shape()[..2])
        && g.count() > 0;
    if !fits {
        return Err(Error::Custom(format!(
            "gated scan: g {:?}, x {:?}, initial {:?}, resets {:?}: expected [B, T, C] twice, [B, C], [B, T]",
            g.shape(),
            x.shape(),
            initial.shape(),
            resets.map(Tensor::shape)
        )));
    }
    let call = Call {
        inputs: [g.contiguous()?, x.contiguous()?, initial.contiguous()?],
        resets: resets.map(Tensor::contiguous).transpose()?,
        reverse,
    };
    match g.dtype() {
        _ if g.device() != Device::Cpu => call.composed(&call.inputs, scan),
        DType::F64 => call.run::<f64>(),
        _ => call.run::<f32>(),
    }
}

#[derive(Clone)]
struct Call {
    /// g, x, initial
    inputs: [Tensor; 3],
    resets: Option<Tensor>,
    reverse: bool,
}

pub(super) type Scan = fn(&Gated, &[Tensor], &Options) -> Result<Vec<Tensor>>;

impl Call {
    fn composed(&self, inputs: &[Tensor], scan: Scan) -> Result<Tensor> {
        let [g, x, initial] = inputs else {
            return Err(Error::Custom(format!(
                "gated scan: {} inputs",
                inputs.len()
            )));
        };
        let options = Options {
            // Its own gate never acts on anything.
            initial: Some(&[initial.zeros_like(), initial.clone()]),
            resets: self.resets.as_ref(),
            reverse: self.reverse,
        };
        Ok(scan(&Gated, &[g.clone(), x.clone()], &options)?.swap_remove(1))
    }

    fn sizes(&self) -> Result<Sizes> {
        let [batch, tokens, channels] = self.inputs[0].dims()?;
        Ok(Sizes {
            batch,
            tokens,
            channels,
        })
    }

    fn flags(&self) -> Result<Option<&[u8]>> {
        self.resets.as_ref().map(Tensor::slice::<u8>).transpose()
    }

    fn run<R: Real + Stored>(&self) -> Result<Tensor> {
        let (sizes, [g, x, initial]) = (self.sizes()?, &self.inputs);
        let (g, x, initial) = (g.slice::<R>()?, x.slice::<R>()?, initial.slice::<R>()?);
        let flags = self.flags()?;
        let mut h = Buffer::unwritten(x.len());
        let pieces = sizes.pieces(&mut h);
        pieces
            .into_par_iter()
            .enumerate()
            .for_each(|(i, mut rows)| {
                let (row, from) = sizes.piece(i);
                let mut run = initial[row * sizes.channels + from..][..rows[0].len()].to_vec();
                vectorize(
                    #[inline(always)]
                    || {
                        for t in sizes.order(self.reverse) {
                            let at = row * sizes.tokens + t;
                            let (out, i) = (&mut *rows[t], at * sizes.channels + from);
                            if flags.is_some_and(|f| f[at] != 0) {
                                run.fill(R::ZERO);
                            }
                            for (((run, out), g), x) in
                                run.iter_mut().zip(out).zip(&g[i..]).zip(&x[i..])
                            {
                                *run = g.exp().mul_add(*run, *x);
                                *out = *run;
                            }
                        }
                    },
                );
            });
        let h = Tensor::from_buffer(h, self.inputs[1].shape())?;
        let function = Backward {
            call: self.clone(),
            h: h.clone(),
            real: std::marker::PhantomData::<R>,
        };
        let [h] = apply(function, &self.inputs.each_ref(), [h]);
        Ok(h)
    }
}

/// One row for each token.
type Rows<'a, R> = Vec<&'a mut [R]>;

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    tokens: usize,
    channels: usize,
}

impl Sizes {
    fn count(&self) -> usize {
        self.channels.div_ceil(PIECE)
    }

    /// The sequence and the first channel of a piece.
    fn piece(&self, i: usize) -> (usize, usize) {
        (i / self.count(), i % self.count() * PIECE)
    }

    /// The T rows of every piece of [B, T, C].
    fn pieces<'a, R>(&self, data: &'a mut [R]) -> Vec<Rows<'a, R>> {
        let mut pieces: Vec<Rows<R>> = (0..self.batch * self.count())
            .map(|_| Vec::with_capacity(self.tokens))
            .collect();
        for (at, row) in data.chunks_exact_mut(self.channels).enumerate() {
            let first = at / self.tokens * self.count();
            for (n, part) in row.chunks_mut(PIECE).enumerate() {
                pieces[first + n].push(part);
            }
        }
        pieces
    }

    fn order(&self, reverse: bool) -> impl Iterator<Item = usize> + use<> {
        let last = self.tokens - 1;
        (0..self.tokens).map(move |n| if reverse { last - n } else { n })
    }
}

struct Backward<R> {
    call: Call,
    h: Tensor,
    real: std::marker::PhantomData<R>,
}

impl<R: Real + Stored> Function for Backward<R> {
    fn name(&self) -> &'static str {
        "gated scan"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(d_h) = &grads[0] else {
            return Ok(vec![None; 3]);
        };
        let inputs = self.call.inputs.each_ref();
        if ctx.create_graph() {
            return recompute(ctx, &inputs, grads, |x| {
                Ok(vec![self.call.composed(x, fold)?])
            });
        }
        let (sizes, reverse, flags) = (self.call.sizes()?, self.call.reverse, self.call.flags()?);
        let d_h = d_h.contiguous()?;
        let (d_h, h) = (d_h.slice::<R>()?, self.h.slice::<R>()?);
        let (g, initial) = (inputs[0].slice::<R>()?, inputs[2].slice::<R>()?);
        let (mut d_g, mut d_x) = (Buffer::unwritten(h.len()), Buffer::unwritten(h.len()));
        let pieces = sizes
            .pieces(&mut d_g)
            .into_iter()
            .zip(sizes.pieces(&mut d_x));
        let work = |(i, (mut d_g, mut d_x)): (usize, (Rows<R>, Rows<R>))| {
            let (row, from) = sizes.piece(i);
            let mut run = vec![R::ZERO; d_g[0].len()];
            let first = if reverse { sizes.tokens - 1 } else { 0 };
            vectorize(
                #[inline(always)]
                || {
                    for t in sizes.order(!reverse) {
                        let at = row * sizes.tokens + t;
                        let i = at * sizes.channels + from;
                        let before = match (t == first, reverse) {
                            (true, _) => &initial[row * sizes.channels + from..],
                            (false, false) => &h[i - sizes.channels..],
                            (false, true) => &h[i + sizes.channels..],
                        };
                        let open = match flags.is_some_and(|f| f[at] != 0) {
                            true => R::ZERO,
                            false => R::ONE,
                        };
                        let (d_g, d_x) = (&mut *d_g[t], &mut *d_x[t]);
                        for c in 0..run.len() {
                            let d = run[c] + d_h[i + c];
                            d_x[c] = d;
                            run[c] = open * g[i + c].exp() * d;
                            d_g[c] = run[c] * before[c];
                        }
                    }
                },
            );
            run
        };
        let runs: Vec<Vec<R>> = pieces
            .collect::<Vec<_>>()
            .into_par_iter()
            .enumerate()
            .map(work)
            .collect();
        let shape = inputs[1].shape();
        Ok(vec![
            Some(Tensor::from_buffer(d_g, shape)?),
            Some(Tensor::from_buffer(d_x, shape)?),
            Some(Tensor::from_vec(
                runs.concat(),
                inputs[2].shape(),
                &Device::Cpu,
            )?),
        ])
    }
}
