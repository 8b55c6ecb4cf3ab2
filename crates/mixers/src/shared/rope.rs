//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): pair i of a head is turned by the angle
//! position * base^(-2i / n), so that products of queries and keys depend on the distance between them.
//!
//! The first n channels of a head are rotated, the rest pass. Two layouts of the pairs are in use:
//! half-split (i, i + n/2), as in Llama checkpoints of Hugging Face, and adjacent (2i, 2i + 1), as in the paper.

use std::sync::{Arc, OnceLock};

use weft_tensor::{Buffer, Context, DType, Device, Function, Real, Stored, Tensor, apply, no_grad};

use crate::error::Result;

/// Which channels form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// (i, i + n/2)
    Half,
    /// (2i, 2i + 1)
    Adjacent,
}

/// Cosines and sines for the tokens of one call: [rows, T, n/2], one row if all sequences start at one position. They
/// are computed in f64 where they are first needed, on the host or on the GPU.
#[derive(Clone)]
pub struct Table(Arc<Angles>);

struct Angles {
    /// Of each row.
    starts: Vec<usize>,
    tokens: usize,
    rotated: usize,
    base: f64,
    layout: Layout,
    /// (cos, sin)
    host: OnceLock<Vec<(f64, f64)>>,
    /// cos and sin, [rows, T, 1, n/2] in f64
    gpu: OnceLock<(Tensor, Tensor)>,
}

impl Angles {
    fn host(&self) -> &[(f64, f64)] {
        self.host.get_or_init(|| {
            let frequency = |i: usize| self.base.powf(-2.0 * i as f64 / self.rotated as f64);
            let frequencies: Vec<f64> = (0..self.rotated / 2).map(frequency).collect();
            let positions = self.starts.iter().flat_map(|&s| s..s + self.tokens);
            let turn = |p: usize| frequencies.iter().map(move |f| (p as f64 * f).sin_cos());
            positions
                .flat_map(turn)
                .map(|(sin, cos)| (cos, sin))
                .collect()
        })
    }

    fn gpu(&self, device: &Device) -> weft_tensor::Result<(Tensor, Tensor)> {
        if let Some((cos, sin)) = self.gpu.get()
            && cos.device() == *device
        {
            return Ok((cos.clone(), sin.clone()));
        }
        let run = |n: usize| Tensor::arange(0, n as i64, DType::F64, device);
        let rate = -2.0 * self.base.ln() / self.rotated.max(1) as f64;
        let frequencies = run(self.rotated / 2)?.mul_scalar(rate)?.exp()?;
        let tokens = run(self.tokens)?;
        let positions = match self.starts.as_slice() {
            [start] => tokens.add_scalar(*start as f64)?.unsqueeze(0)?,
            all => {
                let starts = all.iter().map(|&s| s as f64).collect();
                Tensor::from_vec(starts, &[all.len(), 1], device)?.add(&tokens)?
            }
        };
        let angles = positions.unsqueeze(-1)?.unsqueeze(-1)?.mul(&frequencies)?;
        let made = (angles.cos()?, angles.sin()?);
        Ok(self.gpu.get_or_init(|| made).clone())
    }
}

impl Table {
    /// Angles for tokens `starts[b] ..` of each sequence; `rotated` channels (even) of each head turn.
    pub fn new(
        starts: &[usize],
        tokens: usize,
        rotated: usize,
        base: f64,
        layout: Layout,
    ) -> Table {
        let same = starts.windows(2).all(|w| w[0] == w[1]);
        let rows = if same { 1 } else { starts.len() };
        Table(Arc::new(Angles {
            starts: starts.iter().copied().take(rows).collect(),
            tokens,
            rotated,
            base,
            layout,
            host: OnceLock::new(),
            gpu: OnceLock::new(),
        }))
    }

    /// x [B, T, H, D] with its first channels rotated; bf16 is rotated in f32.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        match x.dtype() {
            DType::F64 | DType::F32 => Ok(self.turn(x, false)?),
            other => Ok(self
                .turn(&x.to_dtype(DType::F32)?, false)?
                .to_dtype(other)?),
        }
    }

    /// Rotate, or with `back` by the opposite angles: each is the other's way back.
    fn turn(&self, x: &Tensor, back: bool) -> weft_tensor::Result<Tensor> {
        self.check(x)?;
        let y = match x.dtype() {
            _ if x.device() != Device::Cpu => no_grad(|| self.composed(&x.detach(), back))?,
            DType::F64 => self.kernel::<f64>(&x.contiguous()?, back)?,
            _ => self.kernel::<f32>(&x.contiguous()?, back)?,
        };
        let function = Rotation {
            table: self.clone(),
            back,
        };
        Ok(apply(function, &[x], vec![y]).remove(0))
    }

    fn check(&self, x: &Tensor) -> weft_tensor::Result<()> {
        let [b, t, _, d] = x.dims()?;
        let (rows, tokens, rotated) = (self.0.starts.len(), self.0.tokens, self.0.rotated);
        if t == tokens && rotated <= d && (rows == 1 || rows == b) {
            return Ok(());
        }
        let detail = format!(
            "rope: input {:?} with a table of {rows} rows, {tokens} tokens, {rotated} channels",
            x.shape()
        );
        Err(weft_tensor::Error::Custom(detail))
    }

    /// In tensor operations.
    fn composed(&self, x: &Tensor, back: bool) -> weft_tensor::Result<Tensor> {
        let ([b, t, h, d], n) = (x.dims()?, self.0.rotated / 2);
        let (cos, sin) = self.0.gpu(&x.device())?;
        let sin = if back { sin.neg()? } else { sin };
        let (cos, sin) = (cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
        let turning = x.narrow(-1, 0, 2 * n)?;
        let (p, q) = match self.0.layout {
            Layout::Half => (turning.narrow(-1, 0, n)?, turning.narrow(-1, n, n)?),
            Layout::Adjacent => {
                let pairs = turning.reshape(&[b, t, h, n, 2])?;
                (pairs.select(-1, 0)?, pairs.select(-1, 1)?)
            }
        };
        let turned = [
            p.mul(&cos)?.sub(&q.mul(&sin)?)?,
            p.mul(&sin)?.add(&q.mul(&cos)?)?,
        ];
        let [p, q] = &turned;
        let turned = match self.0.layout {
            Layout::Half => Tensor::cat(&[p, q], -1)?,
            Layout::Adjacent => Tensor::stack(&[p, q], -1)?.reshape(&[b, t, h, 2 * n])?,
        };
        if 2 * n == d {
            return Ok(turned);
        }
        Tensor::cat(&[&turned, &x.narrow(-1, 2 * n, d - 2 * n)?], -1)
    }

    fn kernel<R: Real + Stored>(&self, x: &Tensor, back: bool) -> weft_tensor::Result<Tensor> {
        let ([_, t, h, d], n) = (x.dims()?, self.0.rotated / 2);
        let rows = self.0.starts.len();
        let sign = if back { -1.0 } else { 1.0 };
        let table: Vec<(R, R)> = self
            .0
            .host()
            .iter()
            .map(|&(c, s)| (R::from_f64(c), R::from_f64(s * sign)))
            .collect();
        let (first, second, step) = match self.0.layout {
            Layout::Half => (0, n, 1),
            Layout::Adjacent => (0, 1, 2),
        };
        let source = x.slice::<R>()?;
        let mut out = Buffer::<R>::unwritten(source.len());
        let heads = out
            .chunks_exact_mut(d.max(1))
            .zip(source.chunks_exact(d.max(1)));
        for (i, (y, x)) in heads.enumerate() {
            let token = i / h;
            let row = if rows == 1 { token % t } else { token };
            y[self.0.rotated..].copy_from_slice(&x[self.0.rotated..]);
            for (j, &(c, s)) in table[row * n..][..n].iter().enumerate() {
                let (p, q) = (first + j * step, second + j * step);
                y[p] = x[p] * c - x[q] * s;
                y[q] = x[p] * s + x[q] * c;
            }
        }
        Tensor::from_buffer(out, x.shape())
    }
}

struct Rotation {
    table: Table,
    back: bool,
}

impl Function for Rotation {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn backward(
        &self,
        _: &Context,
        grads: &[Option<Tensor>],
    ) -> weft_tensor::Result<Vec<Option<Tensor>>> {
        let turned = grads[0].as_ref().map(|g| self.table.turn(g, !self.back));
        Ok(vec![turned.transpose()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_tensor::{Rng, grad};

    fn random(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed)
            .normal(shape, 0.0, 1.0, DType::F64, &Device::Cpu)
            .unwrap()
    }

    #[test]
    fn pairs_turn_by_position_times_frequency() {
        let x = random(&[1, 3, 1, 6], 1);
        for (layout, pairs) in [
            (Layout::Half, [(0, 2), (1, 3)]),
            (Layout::Adjacent, [(0, 1), (2, 3)]),
        ] {
            let y = Table::new(&[5], 3, 4, 100.0, layout).rotate(&x).unwrap();
            let (x, y) = (x.to_vec::<f64>().unwrap(), y.to_vec::<f64>().unwrap());
            for t in 0..3 {
                for (i, (p, q)) in pairs.into_iter().enumerate() {
                    let (s, c) = ((5 + t) as f64 * 100f64.powf(-(i as f64) / 2.0)).sin_cos();
                    assert!((y[t * 6 + p] - (x[t * 6 + p] * c - x[t * 6 + q] * s)).abs() < 1e-14);
                    assert!((y[t * 6 + q] - (x[t * 6 + p] * s + x[t * 6 + q] * c)).abs() < 1e-14);
                }
                assert_eq!(y[t * 6 + 4..t * 6 + 6], x[t * 6 + 4..t * 6 + 6]);
            }
        }
    }

    #[test]
    fn tensor_operations_turn_like_the_loop() {
        let x = random(&[2, 5, 3, 10], 1);
        for (starts, layout) in [(&[7, 7], Layout::Half), (&[0, 90], Layout::Adjacent)] {
            for rotated in [10, 6, 0] {
                let table = Table::new(starts, 5, rotated, 1e4, layout);
                for back in [false, true] {
                    let (a, b) = (table.composed(&x, back), table.kernel::<f64>(&x, back));
                    let (a, b) = (a.unwrap().to_vec::<f64>(), b.unwrap().to_vec::<f64>());
                    for (a, b) in a.unwrap().iter().zip(b.unwrap()) {
                        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_way_back_is_the_opposite_rotation() {
        let x = random(&[2, 3, 2, 4], 1).requires_grad().unwrap();
        let table = Table::new(&[5, 9], 3, 4, 100.0, Layout::Half);
        let w = random(&[2, 3, 2, 4], 2);
        let loss = table
            .rotate(&x)
            .unwrap()
            .mul(&w)
            .unwrap()
            .sum_all()
            .unwrap();
        let g = grad(&[&loss], None, &[&x], false)
            .unwrap()
            .remove(0)
            .unwrap();
        // <R x, w> = <x, R^T w>, and R^T R = 1.
        let again = table.rotate(&g).unwrap();
        for (a, b) in again
            .to_vec::<f64>()
            .unwrap()
            .iter()
            .zip(w.to_vec::<f64>().unwrap())
        {
            assert!((a - b).abs() < 1e-14);
        }
    }
}
