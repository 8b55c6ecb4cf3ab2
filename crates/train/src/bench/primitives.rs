//! The primitives of the tensor crate over x [rows, width], larger than any cache, and its matrix products.
//!
//! *Passes* are the reads and writes of x's size that an operation cannot avoid; reading and writing every element
//! once are two.

use weft_tensor::{DType, Device, Rng, Tensor};

use super::case::{Case, Work, gradients, one};
use super::input;
use crate::error::Result;

/// Sequences that the rows of x are.
const BATCH: usize = 8;
/// Taps of the short convolution.
const TAPS: usize = 4;
const HEAD_DIM: usize = 128;
/// Rows that are sorted.
const SORTED: usize = 4096;

/// What the primitives are applied to.
#[derive(Clone, Copy)]
struct Operands {
    rows: usize,
    width: usize,
    /// Rows of the embedding table.
    vocab: usize,
    dtype: DType,
    device: Device,
}

impl Operands {
    fn tensor(&self, seed: u64, shape: &[usize]) -> Result<Tensor> {
        input::activations(seed, shape, self.dtype, &self.device)
    }

    fn x(&self) -> Result<Tensor> {
        self.tensor(1, &[self.rows, self.width])
    }

    fn y(&self) -> Result<Tensor> {
        self.tensor(2, &[self.rows, self.width])
    }

    /// A row that x is multiplied by.
    fn row(&self) -> Result<Tensor> {
        self.tensor(3, &[self.width])
    }

    /// One integer in 0..most for each row.
    fn ids(&self, most: usize) -> Result<Tensor> {
        Ok(Rng::new(4).integers(&[self.rows], 0, most as i64, &self.device)?)
    }

    /// x as [B, T + taps - 1, width] and the filters [width, taps].
    fn conv(&self) -> Result<[Tensor; 2]> {
        let x = self.x()?.reshape(&[BATCH, self.rows / BATCH, self.width])?;
        Ok([x, self.tensor(5, &[self.width, TAPS])?])
    }
}

type Make = fn(&Operands) -> Result<Work>;

/// The gradient of y = f(inputs) along g of y's shape.
fn back(
    inputs: Vec<Tensor>,
    f: fn(&[Tensor]) -> weft_tensor::Result<Tensor>,
    seed: u64,
) -> Result<Work> {
    let leaves = inputs.iter().map(Tensor::requires_grad);
    let leaves = leaves.collect::<weft_tensor::Result<Vec<_>>>()?;
    let y = f(&leaves)?;
    let g = input::activations(seed, y.shape(), y.dtype(), &y.device())?;
    Ok(gradients(vec![y], vec![g], leaves))
}

/// Name, passes, and how it is called.
const PRIMITIVES: [(&str, f64, Make); 28] = [
    ("copy", 2.0, |o| {
        let x = o.x()?;
        one(move || x.affine(1.0, 0.0))
    }),
    ("exp", 2.0, |o| {
        let x = o.x()?;
        one(move || x.exp())
    }),
    ("silu", 2.0, |o| {
        let x = o.x()?;
        one(move || x.silu())
    }),
    ("add", 3.0, |o| {
        let (x, y) = (o.x()?, o.y()?);
        one(move || x.add(&y))
    }),
    ("mul by a row", 2.0, |o| {
        let (x, row) = (o.x()?, o.row()?);
        one(move || x.mul(&row))
    }),
    ("transpose", 2.0, |o| {
        let x = o.x()?.transpose(0, 1)?;
        one(move || x.contiguous())
    }),
    ("permute heads", 2.0, |o| {
        let shape = [BATCH, o.rows / BATCH, o.width / HEAD_DIM, HEAD_DIM];
        let x = o.x()?.reshape(&shape)?.transpose(1, 2)?;
        one(move || x.contiguous())
    }),
    ("cat", 4.0, |o| {
        let (x, y) = (o.x()?, o.y()?);
        one(move || Tensor::cat(&[&x, &y], 1))
    }),
    ("sum of rows", 1.0, |o| {
        let x = o.x()?;
        one(move || x.sum(&[1], false))
    }),
    ("sum of columns", 1.0, |o| {
        let x = o.x()?;
        one(move || x.sum(&[0], false))
    }),
    ("sum of all", 1.0, |o| {
        let x = o.x()?;
        one(move || x.sum_all())
    }),
    ("max of rows", 1.0, |o| {
        let x = o.x()?;
        one(move || x.max(1, false))
    }),
    ("argmax of rows", 1.0, |o| {
        let x = o.x()?;
        one(move || x.argmax(1, false))
    }),
    ("softmax", 2.0, |o| {
        let x = o.x()?;
        one(move || x.softmax(1))
    }),
    ("cumsum of rows", 2.0, |o| {
        let x = o.x()?;
        one(move || x.cumsum(1))
    }),
    ("cumsum of columns", 2.0, |o| {
        let x = o.x()?;
        one(move || x.cumsum(0))
    }),
    ("embedding", 2.0, |o| {
        let (table, ids) = (o.tensor(6, &[o.vocab, o.width])?, o.ids(o.vocab)?);
        one(move || table.embedding(&ids))
    }),
    // Reads the gradients, and writes the table.
    ("embedding back", 1.0, |o| {
        let ids = o.ids(o.vocab)?;
        let table = o.tensor(6, &[o.vocab, o.width])?.requires_grad()?;
        let y = table.embedding(&ids)?;
        Ok(gradients(vec![y], vec![o.x()?], vec![table]))
    }),
    ("rms_norm", 2.0, |o| {
        let (x, row) = (o.x()?, o.row()?);
        one(move || x.rms_norm(&row, 1e-5))
    }),
    ("rms_norm back", 3.0, |o| {
        back(vec![o.x()?, o.row()?], |t| t[0].rms_norm(&t[1], 1e-5), 2)
    }),
    ("silu_mul", 3.0, |o| {
        let (x, y) = (o.x()?, o.y()?);
        one(move || x.silu_mul(&y))
    }),
    ("silu_mul back", 5.0, |o| {
        back(vec![o.x()?, o.y()?], |t| t[0].silu_mul(&t[1]), 7)
    }),
    ("cross_entropy", 1.0, |o| {
        let (x, targets) = (o.x()?, o.ids(o.width)?);
        one(move || x.cross_entropy(&targets))
    }),
    ("cross_entropy back", 2.0, |o| {
        let (x, targets) = (o.x()?.requires_grad()?, o.ids(o.width)?);
        let y = x.cross_entropy(&targets)?;
        let g = y.detach().ones_like();
        Ok(gradients(vec![y], vec![g], vec![x]))
    }),
    ("conv1d_silu", 2.0, |o| {
        let [x, w] = o.conv()?;
        one(move || x.conv1d_silu(&w))
    }),
    ("conv1d_silu back", 3.0, |o| {
        back(o.conv()?.to_vec(), |t| t[0].conv1d_silu(&t[1]), 2)
    }),
    // Reads its part of x and writes as many 8-byte positions, in passes over x below.
    ("argsort of rows", 0.0, |o| {
        let x = o.tensor(1, &[SORTED, o.width])?;
        one(move || x.argsort(1, false))
    }),
    // Where the launch is all.
    ("small add", 0.0, |o| {
        let x = o.tensor(1, &[1024])?;
        one(move || x.add(&x))
    }),
];

/// Bytes of a primitive beside its passes over x.
fn extra_bytes(name: &str, o: &Operands) -> usize {
    let size = o.dtype.size();
    match name {
        "embedding back" => o.vocab * o.width * size,
        "argsort of rows" => SORTED * o.width * (size + 8),
        "small add" => 3 * 1024 * size,
        _ => 0,
    }
}

fn primitive(
    (name, passes, make): (&'static str, f64, Make),
    [rows, width, vocab]: [usize; 3],
    dtype: DType,
    device: Device,
) -> Case {
    let operands = Operands {
        rows,
        width,
        vocab,
        dtype,
        device,
    };
    let x = (rows * width * dtype.size()) as f64;
    let shape = match name {
        "argsort of rows" => format!("{SORTED} x {width}"),
        "small add" => "1024".into(),
        _ => format!("{rows} x {width}"),
    };
    Case {
        name: name.into(),
        shape,
        dtype,
        bytes: passes * x + extra_bytes(name, &operands) as f64,
        flops: 0.0,
        prepare: Box::new(move |_| make(&operands)),
    }
}

/// How the operands of a product [m, k] [k, n] lie in memory.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    /// The second is the transpose of a [n, k], as a layer's weight is.
    SecondTransposed,
    /// The first is the transpose of a [k, m], as in the gradient of a weight.
    FirstTransposed,
}

const FORMS: [(Form, &str); 3] = [
    (Form::Plain, "A B"),
    (Form::SecondTransposed, "A B^T"),
    (Form::FirstTransposed, "A^T B"),
];

fn product([m, n, k]: [usize; 3], dtype: DType, (form, text): (Form, &str)) -> Case {
    let make = move |device: &Device| -> Result<Work> {
        let matrix = |seed, rows, columns, turned: bool| -> Result<Tensor> {
            let shape = if turned {
                [columns, rows]
            } else {
                [rows, columns]
            };
            let x = input::activations(seed, &shape, dtype, device)?;
            Ok(if turned { x.transpose(0, 1)? } else { x })
        };
        let a = matrix(1, m, k, matches!(form, Form::FirstTransposed))?;
        let b = matrix(2, k, n, matches!(form, Form::SecondTransposed))?;
        one(move || a.matmul(&b))
    };
    Case {
        name: format!("matmul {text}"),
        shape: format!("{m} x {n} x {k}"),
        dtype,
        bytes: ((m * k + k * n + m * n) * dtype.size()) as f64,
        flops: 2.0 * (m * n) as f64 * k as f64,
        prepare: Box::new(make),
    }
}

/// All of them. A CPU computes in f32 whatever is stored, so most are measured in f32 alone there.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let cpu = *device == Device::Cpu;
    let sizes = if cpu {
        [8192, 2048, 8192]
    } else {
        [32_768, 4096, 50_000]
    };
    let dtypes: &[DType] = if cpu {
        &[DType::F32]
    } else {
        &[DType::BF16, DType::F32]
    };
    // Squares, then a layer and a head of the model of the training row.
    let products: &[([usize; 3], DType)] = if cpu {
        &[
            ([1024; 3], DType::F32),
            ([1024; 3], DType::BF16),
            ([2048, 704, 256], DType::F32),
        ]
    } else {
        &[
            ([8192; 3], DType::BF16),
            ([4096; 3], DType::BF16),
            ([2048; 3], DType::BF16),
            ([16_384, 2048, 768], DType::BF16),
            ([16_384, 32_000, 768], DType::BF16),
            ([4096; 3], DType::F32),
            ([4096; 3], DType::F64),
        ]
    };
    let mut all: Vec<Case> = dtypes
        .iter()
        .flat_map(|&dtype| PRIMITIVES.map(|p| primitive(p, sizes, dtype, *device)))
        .collect();
    for &(shape, dtype) in products {
        all.extend(FORMS.map(|form| product(shape, dtype, form)));
    }
    all
}
