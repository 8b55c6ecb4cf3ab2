//! The decay gate g = -exp(A_log) softplus(f + dt_bias), fused: one pass forward, one back.
//!
//! f [B, T, heads, width] (or [B, T, heads]), dt_bias one number for each channel, A_log one for each head:
//!
//! ```text
//! df = -dg exp(A_log) sigmoid(f + dt_bias)     d dt_bias = sum over B, T of df     dA_log = sum of dg g
//! ```

use rayon::prelude::*;
use weft_tensor::cpu::simd::vectorize;
use weft_tensor::{
    Buffer, Context, DType, Device, Function, Real, Result, Stored, Tensor, apply, recompute,
};

/// Rows in a piece of work; partial sums are added piece by piece, so results do not depend on the threads.
const PIECE: usize = 64;

/// Log decays g of f's shape. All three of one dtype, f32 or f64, but f may be bf16 on a GPU; `dt_bias` and `a_log` without other axes than
/// those of f from the third on (`a_log`: the third).
pub fn log_decay(f: &Tensor, dt_bias: &Tensor, a_log: &Tensor) -> Result<Tensor> {
    if f.device() != Device::Cpu {
        let rate = spread(&a_log.exp()?, f)?;
        return Tensor::fused("log_decay", &[f, dt_bias, &rate], a_log.dtype(), |v| {
            -((v[0].clone() + v[1].clone()).softplus() * v[2].clone())
        });
    }
    match f.dtype() {
        DType::F64 => run::<f64>(f, dt_bias, a_log),
        _ => run::<f32>(f, dt_bias, a_log),
    }
}

fn plain(f: &Tensor, dt_bias: &Tensor, a_log: &Tensor) -> Result<Tensor> {
    let rate = spread(&a_log.exp()?.neg()?, f)?;
    f.add(dt_bias)?.softplus()?.mul(&rate)
}

/// A number for each head beside f.
pub fn spread(rate: &Tensor, f: &Tensor) -> Result<Tensor> {
    match f.rank() {
        4 => rate.unsqueeze(-1),
        _ => Ok(rate.clone()),
    }
}

/// -exp(A_log), repeated for each channel of its head.
fn rates<R: Real + Stored>(a_log: &Tensor, channels: usize) -> Result<Vec<R>> {
    let a_log = a_log.slice::<R>()?;
    let repeat = channels / a_log.len().max(1);
    Ok(a_log
        .iter()
        .flat_map(|a| std::iter::repeat_n(-a.exp(), repeat))
        .collect())
}

fn run<R: Real + Stored>(f: &Tensor, dt_bias: &Tensor, a_log: &Tensor) -> Result<Tensor> {
    let inputs = [f.contiguous()?, dt_bias.contiguous()?, a_log.contiguous()?];
    let channels = inputs[1].count();
    let (x, bias) = (inputs[0].slice::<R>()?, inputs[1].slice::<R>()?);
    let rate = rates::<R>(&inputs[2], channels)?;
    let mut g = Buffer::unwritten(x.len());
    let pieces = g
        .par_chunks_mut(PIECE * channels)
        .zip(x.par_chunks(PIECE * channels));
    pieces.for_each(|(g, x)| {
        vectorize(
            #[inline(always)]
            || {
                for (g, x) in g.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for (((g, x), bias), rate) in g.iter_mut().zip(x).zip(bias).zip(&rate) {
                        *g = *rate * (*x + *bias).softplus();
                    }
                }
            },
        )
    });
    let g = Tensor::from_buffer(g, f.shape())?;
    let function = LogDecay {
        inputs: inputs.clone(),
        g: g.clone(),
        real: std::marker::PhantomData::<R>,
    };
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let [g] = apply(function, &inputs, [g]);
    Ok(g)
}

struct LogDecay<R> {
    inputs: [Tensor; 3],
    g: Tensor,
    real: std::marker::PhantomData<R>,
}

impl<R: Real + Stored> Function for LogDecay<R> {
    fn name(&self) -> &'static str {
        "log_decay"
    }

    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [f, dt_bias, a_log] = &self.inputs;
        if ctx.create_graph() {
            let inputs = [f, dt_bias, a_log];
            return recompute(ctx, &inputs, grads, |x| {
                Ok(vec![plain(&x[0], &x[1], &x[2])?])
            });
        }
        let Some(d_g) = &grads[0] else {
            return Ok(vec![None; 3]);
        };
        let channels = dt_bias.count();
        let d_g = d_g.contiguous()?;
        let (x, bias, rate) = (
            f.slice::<R>()?,
            dt_bias.slice::<R>()?,
            rates::<R>(a_log, channels)?,
        );
        let mut d_f = Buffer::unwritten(x.len());
        let piece = PIECE * channels;
        let partial: Vec<Vec<R>> = d_f
            .par_chunks_mut(piece)
            .zip(x.par_chunks(piece))
            .zip(
                d_g.slice::<R>()?
                    .par_chunks(piece)
                    .zip(self.g.slice::<R>()?.par_chunks(piece)),
            )
            .map(|((d_f, x), (d_g, g))| {
                let mut sums = vec![R::ZERO; 2 * channels];
                let (d_bias, d_log) = sums.split_at_mut(channels);
                vectorize(
                    #[inline(always)]
                    || {
                        for row in (0..x.len()).step_by(channels) {
                            let (x, d_f) = (&x[row..][..channels], &mut d_f[row..][..channels]);
                            let (d_g, g) = (&d_g[row..][..channels], &g[row..][..channels]);
                            for c in 0..channels {
                                d_f[c] = d_g[c] * rate[c] * (x[c] + bias[c]).sigmoid();
                                d_bias[c] += d_f[c];
                                d_log[c] = d_g[c].mul_add(g[c], d_log[c]);
                            }
                        }
                    },
                );
                sums
            })
            .collect();
        let mut sums = vec![R::ZERO; 2 * channels];
        for piece in &partial {
            sums.iter_mut().zip(piece).for_each(|(sum, x)| *sum += *x);
        }
        let (d_bias, d_log) = sums.split_at(channels);
        let repeat = channels / a_log.count().max(1);
        let d_log: Vec<R> = d_log
            .chunks(repeat)
            .map(|head| head.iter().copied().sum())
            .collect();
        let device = f.device();
        Ok(vec![
            Some(Tensor::from_buffer(d_f, f.shape())?),
            Some(Tensor::from_slice(d_bias, dt_bias.shape(), &device)?),
            Some(Tensor::from_slice(&d_log, a_log.shape(), &device)?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use weft_tensor::{Device, Rng, grad};

    use super::*;
    use crate::golden::assert_close;

    #[test]
    fn equals_the_plain_composition_with_its_gradients() {
        let draw = |seed, shape: &[usize]| {
            let x = Rng::new(seed)
                .normal(shape, 0.0, 3.0, DType::F64, &Device::Cpu)
                .unwrap();
            x.requires_grad().unwrap()
        };
        for shape in [&[2, 70, 3, 5][..], &[2, 70, 3]] {
            let (f, bias, a_log) = (draw(1, shape), draw(2, &shape[2..]), draw(3, &[3]));
            let all = [&f, &bias, &a_log];
            let run = |g: Tensor| {
                let loss = g.mul(&draw(4, shape).detach()).unwrap().sum_all().unwrap();
                [
                    vec![Some(g.clone())],
                    grad(&[&loss], None, &all, false).unwrap(),
                ]
                .concat()
            };
            let got = run(log_decay(&f, &bias, &a_log).unwrap());
            let want = run(plain(&f, &bias, &a_log).unwrap());
            for (got, want) in got.into_iter().zip(want) {
                assert_close("log_decay", &got.unwrap(), &want.unwrap(), 1e-12);
            }
        }
    }
}
