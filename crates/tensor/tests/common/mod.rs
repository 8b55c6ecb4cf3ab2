//! The table of differentiable primitives, shared by the tests that run each of them. A new primitive is one
//! more line. Not every test uses every item.
#![allow(dead_code)]

pub mod device;

use weft_tensor::{DType, Device, Result, Rng, Tensor, grad};

pub const CPU: Device = Device::Cpu;

pub type Op = fn(&[Tensor]) -> Result<Tensor>;

/// How inputs are drawn.
#[derive(Clone, Copy)]
pub enum Draw {
    /// Normal numbers.
    Any,
    /// In [0.5, 2]: domains of ln, sqrt, division.
    Positive,
    /// Distinct multiples of 0.1 in random order: nothing near a kink or a tie.
    Spread,
}
pub use Draw::*;

/// Indices on the device of another tensor.
pub fn ids(v: &[i64], shape: &[usize], beside: &Tensor) -> Tensor {
    Tensor::from_slice(v, shape, &beside.device()).unwrap()
}

/// Name, inputs, their shapes, the operation.
pub struct Case(
    pub &'static str,
    pub Draw,
    pub &'static [&'static [usize]],
    pub Op,
);

#[rustfmt::skip]
pub fn table() -> Vec<Case> {
    vec![
        Case("neg", Any, &[&[2, 3]], |x| x[0].neg()),
        Case("abs", Spread, &[&[2, 3]], |x| x[0].abs()),
        Case("exp", Any, &[&[2, 3]], |x| x[0].exp()),
        Case("ln", Positive, &[&[2, 3]], |x| x[0].ln()),
        Case("sin", Any, &[&[5]], |x| x[0].sin()),
        Case("cos", Any, &[&[5]], |x| x[0].cos()),
        Case("sqrt", Positive, &[&[5]], |x| x[0].sqrt()),
        Case("rsqrt", Positive, &[&[5]], |x| x[0].rsqrt()),
        Case("recip", Positive, &[&[5]], |x| x[0].recip()),
        Case("square", Any, &[&[5]], |x| x[0].square()),
        Case("powf", Positive, &[&[5]], |x| x[0].powf(2.5)),
        Case("sigmoid", Any, &[&[5]], |x| x[0].sigmoid()),
        Case("tanh", Any, &[&[5]], |x| x[0].tanh()),
        Case("silu", Any, &[&[5]], |x| x[0].silu()),
        Case("relu", Spread, &[&[5]], |x| x[0].relu()),
        Case("softplus", Any, &[&[5]], |x| x[0].softplus()),
        Case("log_sigmoid", Any, &[&[5]], |x| x[0].log_sigmoid()),
        Case("erf", Any, &[&[5]], |x| x[0].erf()),
        Case("gelu", Any, &[&[5]], |x| x[0].gelu()),
        Case("gelu_tanh", Any, &[&[5]], |x| x[0].gelu_tanh()),
        Case("clamp", Spread, &[&[7]], |x| x[0].clamp(-0.25, 0.25)),
        Case("affine", Any, &[&[5]], |x| x[0].affine(3.0, -1.0)),
        Case("add", Any, &[&[2, 3], &[2, 3]], |x| &x[0] + &x[1]),
        Case("add broadcast", Any, &[&[2, 1, 3], &[4, 1]], |x| &x[0] + &x[1]),
        Case("sub broadcast", Any, &[&[3], &[2, 3]], |x| &x[0] - &x[1]),
        Case("mul", Any, &[&[2, 3], &[2, 3]], |x| &x[0] * &x[1]),
        Case("mul broadcast", Any, &[&[2, 3, 1], &[3, 4]], |x| &x[0] * &x[1]),
        Case("div broadcast", Positive, &[&[2, 3], &[3]], |x| &x[0] / &x[1]),
        Case("pow", Positive, &[&[2, 3], &[2, 3]], |x| x[0].pow(&x[1])),
        Case("maximum", Spread, &[&[2, 3], &[3]], |x| x[0].maximum(&x[1])),
        Case("minimum", Spread, &[&[2, 3], &[3]], |x| x[0].minimum(&x[1])),
        Case("where_cond", Any, &[&[2, 3], &[3]], |x| Tensor::tril_mask(2, 3, 0, &x[0].device())?.where_cond(&x[0], &x[1])),
        Case("masked_fill", Any, &[&[3, 3]], |x| x[0].masked_fill(&Tensor::tril_mask(3, 3, 0, &x[0].device())?, 2.0)),
        Case("sum", Any, &[&[2, 3, 4]], |x| x[0].sum(&[0, 2], false)),
        Case("sum neighbours", Any, &[&[2, 3, 4]], |x| x[0].sum(&[0, 1], true)),
        Case("mean", Any, &[&[2, 3, 4]], |x| x[0].mean(&[-1], true)),
        Case("sum_all", Any, &[&[2, 3]], |x| x[0].sum_all()),
        Case("max", Spread, &[&[2, 5]], |x| x[0].max(1, false)),
        Case("min", Spread, &[&[5, 2]], |x| x[0].min(0, true)),
        Case("softmax", Any, &[&[2, 5]], |x| x[0].softmax(-1)),
        Case("softmax axis 0", Any, &[&[4, 2, 3]], |x| x[0].softmax(0)),
        Case("log_softmax", Any, &[&[2, 5]], |x| x[0].log_softmax(-1)),
        Case("logsumexp", Any, &[&[2, 5, 2]], |x| x[0].logsumexp(1, false)),
        Case("cumsum", Any, &[&[2, 5, 2]], |x| x[0].cumsum(1)),
        Case("rev_cumsum", Any, &[&[5, 2]], |x| x[0].rev_cumsum(0)),
        Case("cummax", Spread, &[&[2, 7]], |x| x[0].cummax(1)),
        Case("cumprod", Positive, &[&[2, 5]], |x| x[0].cumprod(1)),
        Case("reshape", Any, &[&[2, 6]], |x| x[0].reshape(&[3, 4])),
        Case("transpose", Any, &[&[2, 3, 4]], |x| x[0].transpose(0, 2)),
        Case("permute", Any, &[&[2, 3, 4]], |x| x[0].permute(&[2, 0, 1])),
        Case("transpose + reshape", Any, &[&[2, 3, 4]], |x| x[0].transpose(1, 2)?.reshape(&[8, 3])),
        Case("narrow", Any, &[&[4, 3]], |x| x[0].narrow(0, 1, 2)),
        Case("slice_axis", Any, &[&[7, 2]], |x| x[0].slice_axis(0, 1, 3, 2)),
        Case("select", Any, &[&[4, 3]], |x| x[0].select(-1, 1)),
        Case("unsqueeze", Any, &[&[4]], |x| x[0].unsqueeze(-1)),
        Case("broadcast_to", Any, &[&[3, 1]], |x| x[0].broadcast_to(&[2, 3, 4])),
        Case("cat", Any, &[&[2, 1], &[2, 3]], |x| Tensor::cat(&[&x[0], &x[1], &x[0]], 1)),
        Case("stack", Any, &[&[2], &[2]], |x| Tensor::stack(&[&x[0], &x[1]], 1)),
        Case("pad", Any, &[&[2, 3]], |x| x[0].pad(1, 2, 1, 0.5)),
        Case("flip", Any, &[&[2, 3]], |x| x[0].flip(1)),
        Case("repeat", Any, &[&[2, 3]], |x| x[0].repeat(&[2, 2])),
        Case("repeat_interleave", Any, &[&[2, 3]], |x| x[0].repeat_interleave(0, 3)),
        Case("tril", Any, &[&[2, 3, 3]], |x| x[0].tril(-1)),
        Case("triu", Any, &[&[3, 3]], |x| x[0].triu(1)),
        Case("matmul", Any, &[&[2, 3], &[3, 4]], |x| x[0].matmul(&x[1])),
        Case("matmul batched", Any, &[&[2, 2, 3], &[2, 3, 4]], |x| x[0].matmul(&x[1])),
        Case("matmul broadcast", Any, &[&[2, 1, 2, 3], &[3, 3, 2]], |x| x[0].matmul(&x[1])),
        Case("matmul shared right", Any, &[&[2, 2, 3], &[3, 4]], |x| x[0].matmul(&x[1])),
        Case("matmul transposed", Any, &[&[3, 2], &[4, 3]], |x| x[0].transpose(0, 1)?.matmul(&x[1].transpose(0, 1)?)),
        Case("linear", Any, &[&[2, 2, 3], &[4, 3], &[4]], |x| x[0].linear(&x[1], Some(&x[2]))),
        Case("index_select", Any, &[&[3, 4]], |x| x[0].index_select(1, &ids(&[3, 0, 3], &[3], &x[0]))),
        Case("embedding", Any, &[&[4, 3]], |x| x[0].embedding(&ids(&[1, 1, 3, 0], &[2, 2], &x[0]))),
        Case("gather", Any, &[&[2, 4]], |x| x[0].gather(1, &ids(&[3, 3, 0, 1], &[2, 2], &x[0]))),
        Case("scatter_add", Any, &[&[2, 4], &[2, 3]], |x| x[0].scatter_add(1, &ids(&[3, 3, 0, 1, 2, 1], &[2, 3], &x[0]), &x[1])),
        Case("index_add", Any, &[&[3, 2], &[2, 2]], |x| x[0].index_add(0, &ids(&[2, 2], &[2], &x[0]), &x[1])),
        Case("sort", Spread, &[&[2, 5]], |x| Ok(x[0].sort(1, true)?.0)),
        Case("topk", Spread, &[&[5, 2]], |x| Ok(x[0].topk(2, 0)?.0)),
        Case("tri_solve lower", Positive, &[&[2, 3, 3], &[2, 3, 2]], |x| x[0].tri_solve(&x[1], false, false)),
        Case("tri_solve upper", Positive, &[&[3, 3], &[2, 3, 2]], |x| x[0].tri_solve(&x[1], true, false)),
        Case("tri_solve unit", Any, &[&[3, 3], &[3, 2]], |x| x[0].tri_solve(&x[1], false, true)),
        Case("conv1d_causal", Any, &[&[2, 5, 3], &[3, 4]], |x| x[0].conv1d_causal(&x[1])),
        Case("add_rms_norm", Any, &[&[3, 16], &[3, 16], &[16]], |x| {
            let [sum, normed] = x[0].add_rms_norm(&x[1], &x[2], 1e-5)?;
            &sum * &normed
        }),
        Case("add_rms_norm of a branch alone", Any, &[&[3, 16], &[16]], |x| {
            let [sum, normed] = x[0].ones_like().add_rms_norm(&x[0], &x[1], 1e-5)?;
            &sum * &normed
        }),
        Case("rms_norm", Any, &[&[3, 37], &[37]], |x| x[0].rms_norm(&x[1], 1e-5)),
        Case("silu_mul", Any, &[&[2, 3], &[2, 3]], |x| x[0].silu_mul(&x[1])),
        Case("cross_entropy", Any, &[&[3, 5]], |x| x[0].cross_entropy(&ids(&[4, -1, 0], &[3], &x[0]))),
        Case("conv1d_silu", Any, &[&[2, 70, 3], &[3, 4]], |x| x[0].conv1d_silu(&x[1])),
        Case("conv2d", Any, &[&[1, 2, 5, 4], &[3, 2, 3, 2]], |x| x[0].conv2d(&x[1], 2, 1)),
    ]
}

pub fn inputs(case: &Case, rng: &mut Rng) -> Vec<Tensor> {
    let draw = |shape: &&[usize]| {
        let n: usize = shape.iter().product();
        match case.1 {
            Any => rng.normal(shape, 0.0, 1.0, DType::F64, &CPU).unwrap(),
            Positive => rng.uniform(shape, 0.5, 2.0, DType::F64, &CPU).unwrap(),
            Spread => {
                let v: Vec<f64> = rng
                    .permutation(n)
                    .iter()
                    .map(|&i| 0.1 * i as f64 - 0.05 * n as f64 + 0.021)
                    .collect();
                Tensor::from_vec(v, shape, &CPU).unwrap()
            }
        }
    };
    case.2.iter().map(draw).collect()
}

/// sum(w * f(x)) with fixed random weights, so that no gradient cancels.
pub fn loss(f: Op, x: &[Tensor], w: &mut Option<Tensor>) -> Result<Tensor> {
    let y = f(x)?;
    let w = w.get_or_insert_with(|| {
        let w = Rng::new(5).normal(y.shape(), 0.0, 1.0, DType::F64, &CPU);
        let w = w.unwrap().to_dtype(y.dtype()).unwrap();
        w.to_device(&y.device()).unwrap()
    });
    (&y * w)?.sum_all()
}

/// The squared norm of the gradient, itself differentiated: a gradient inside a forward.
pub fn gradient_norm(
    f: Op,
    x: &[Tensor],
    w: &mut Option<Tensor>,
    create_graph: bool,
) -> Result<Option<Tensor>> {
    let refs: Vec<&Tensor> = x.iter().collect();
    let l = loss(f, x, w)?;
    let mut norm: Option<Tensor> = None;
    for g in grad(&[&l], None, &refs, create_graph)?.iter().flatten() {
        let n = g.square()?.sum_all()?;
        norm = Some(match norm {
            Some(sum) => sum.add(&n)?,
            None => n,
        });
    }
    Ok(norm)
}
