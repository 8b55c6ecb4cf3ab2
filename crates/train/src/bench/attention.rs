//! Causal softmax attention, forward and backward: q, k, v [B, T, H, D].
//!
//! The products of the visible half of the scores count, two operations to a multiply-add: 2 B H T T D forward, and 5
//! B H T T D backward, with the scores that it computes again. Bytes are those of q, k, v, o and their gradients.

use weft_mixers::shared::flash::op::{KeyPositions, Visibility, attend};
use weft_tensor::{DType, Device, Tensor, no_grad};

use super::case::{Case, Work, gradients};
use super::input;
use crate::error::Result;

#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
}

impl Shape {
    const fn causal(batch: usize, tokens: usize, heads: usize, dim: usize) -> Shape {
        Shape {
            batch,
            tokens,
            heads,
            kv_heads: heads,
            dim,
            window: None,
        }
    }

    fn text(&self) -> String {
        let Shape {
            batch,
            tokens,
            heads,
            kv_heads,
            dim,
            window,
        } = self;
        let heads = match heads == kv_heads {
            true => heads.to_string(),
            false => format!("{heads}/{kv_heads}"),
        };
        let window = window.map_or(String::new(), |w| format!(" window {w}"));
        format!("B{batch} T{tokens} H{heads} D{dim}{window}")
    }

    /// Pairs of a query and a key that it sees, in one head: half of T T, or a window for each query.
    fn pairs(&self) -> f64 {
        let tokens = self.tokens as f64;
        match self.window {
            Some(window) if window < self.tokens => tokens * window as f64,
            _ => tokens * tokens / 2.0,
        }
    }

    fn inputs(&self, dtype: DType, device: &Device) -> Result<[Tensor; 3]> {
        let draw = |seed, heads| {
            let shape = [self.batch, self.tokens, heads, self.dim];
            input::activations(seed, &shape, dtype, device)
        };
        Ok([
            draw(1, self.heads)?,
            draw(2, self.kv_heads)?,
            draw(3, self.kv_heads)?,
        ])
    }

    fn attend(&self, [q, k, v]: &[Tensor; 3]) -> Result<Tensor> {
        let sees = Visibility {
            query_start: vec![0; self.batch],
            keys: KeyPositions::Range(vec![0; self.batch]),
            window: self.window.map(|w| w as i64),
            sinks: 0,
        };
        let (o, _) = attend(q, k, v, &sees, (self.dim as f64).powf(-0.5))?;
        Ok(o)
    }

    fn forward(self, dtype: DType, device: &Device) -> Result<Work> {
        let inputs = self.inputs(dtype, device)?;
        Ok(Box::new(move || {
            Ok(vec![no_grad(|| self.attend(&inputs))?])
        }))
    }

    fn backward(self, dtype: DType, device: &Device) -> Result<Work> {
        let [q, k, v] = self.inputs(dtype, device)?;
        let leaves = [q.requires_grad()?, k.requires_grad()?, v.requires_grad()?];
        let o = self.attend(&leaves)?;
        let along = input::activations(4, o.shape(), o.dtype(), device)?;
        Ok(gradients(vec![o], vec![along], leaves.to_vec()))
    }

    /// Forward and backward.
    fn cases(self, dtype: DType) -> [Case; 2] {
        let heads = 2 * self.heads + 2 * self.kv_heads;
        let bytes = (self.batch * self.tokens * heads * self.dim * dtype.size()) as f64;
        let products = (self.batch * self.heads * self.dim) as f64 * 2.0 * self.pairs();
        let case =
            |name: &str, bytes, flops, make: fn(Shape, DType, &Device) -> Result<Work>| Case {
                name: name.into(),
                shape: self.text(),
                dtype,
                bytes,
                flops,
                prepare: Box::new(move |device| make(self, dtype, device)),
            };
        [
            case("attention", bytes, 2.0 * products, Shape::forward),
            case(
                "attention back",
                2.0 * bytes,
                5.0 * products,
                Shape::backward,
            ),
        ]
    }
}

/// On a GPU the shape that libraries publish, the training row's, a grouped and a windowed one.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let (shapes, dtype): (&[Shape], DType) = match device {
        Device::Cuda(_) => (
            &[
                Shape::causal(4, 4096, 16, 128),
                Shape::causal(16, 1024, 12, 64),
                Shape {
                    kv_heads: 4,
                    ..Shape::causal(4, 4096, 16, 128)
                },
                Shape {
                    window: Some(512),
                    ..Shape::causal(4, 4096, 16, 128)
                },
            ],
            DType::BF16,
        ),
        _ => (
            &[Shape::causal(8, 256, 4, 64), Shape::causal(1, 1024, 4, 128)],
            DType::F32,
        ),
    };
    shapes.iter().flat_map(|s| s.cases(dtype)).collect()
}
