//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): pair i of a head is turned by the angle
//! position * base^(-2i / n), so that products of queries and keys depend on the distance between them.
//!
//! The first n channels of a head are rotated, the rest pass. Two layouts of the pairs are in use:
//! half-split (i, i + n/2), as in Llama checkpoints of Hugging Face, and adjacent (2i, 2i + 1), as in the paper.

use weft_tensor::{Buffer, Context, DType, Function, Real, Stored, Tensor, apply};

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

/// Cosines and sines for the tokens of one call: [rows, T, n/2], one row if all sequences start at one position.
#[derive(Clone)]
pub struct Table {
    cos_sin: std::sync::Arc<Vec<(f64, f64)>>,
    rows: usize,
    tokens: usize,
    rotated: usize,
    layout: Layout,
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
        let starts = if same {
            &starts[..starts.len().min(1)]
        } else {
            starts
        };
        let frequencies: Vec<f64> = (0..rotated / 2)
            .map(|i| base.powf(-2.0 * i as f64 / rotated as f64))
            .collect();
        let positions = starts.iter().flat_map(|&s| s..s + tokens);
        let turn = |p: usize| frequencies.iter().map(move |f| (p as f64 * f).sin_cos());
        let cos_sin = positions
            .flat_map(turn)
            .map(|(sin, cos)| (cos, sin))
            .collect();
        Table {
            cos_sin: std::sync::Arc::new(cos_sin),
            rows: starts.len(),
            tokens,
            rotated,
            layout,
        }
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
        let y = match x.dtype() {
            DType::F64 => self.kernel::<f64>(&x.contiguous()?, back)?,
            _ => self.kernel::<f32>(&x.contiguous()?, back)?,
        };
        let function = Rotation {
            table: self.clone(),
            back,
        };
        Ok(apply(function, &[x], vec![y]).remove(0))
    }

    fn kernel<R: Real + Stored>(&self, x: &Tensor, back: bool) -> weft_tensor::Result<Tensor> {
        let [b, t, h, d] = x.dims()?;
        let n = self.rotated / 2;
        if t != self.tokens || self.rotated > d || (self.rows != 1 && self.rows != b) {
            let (rows, tokens, rotated) = (self.rows, self.tokens, self.rotated);
            let detail = format!(
                "rope: input {:?} with a table of {rows} rows, {tokens} tokens, {rotated} channels",
                x.shape()
            );
            return Err(weft_tensor::Error::Custom(detail));
        }
        let sign = if back { -1.0 } else { 1.0 };
        let table: Vec<(R, R)> = self
            .cos_sin
            .iter()
            .map(|&(c, s)| (R::from_f64(c), R::from_f64(s * sign)))
            .collect();
        let (first, second, step) = match self.layout {
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
            let row = if self.rows == 1 { token % t } else { token };
            y[self.rotated..].copy_from_slice(&x[self.rotated..]);
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
    use weft_tensor::{Device, Rng, grad};

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
