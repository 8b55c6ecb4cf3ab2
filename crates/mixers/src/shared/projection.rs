//! The linear maps of recurrent layers: several of one input as one product, or one through a narrow middle; how they
//! and time steps start.

use weft_tensor::{DType, Tensor};

use crate::error::Result;
use crate::params::{Init, Linear, Scope};

/// How linear maps of recurrent layers start: Xavier with gain 2^-2.5 (GDN-2, section 4).
pub const LINEAR_INIT: Init = Init::Xavier {
    gain: 0.176_776_695_296_636_9,
};

/// Where biases of time steps start: softplus of them is log-uniform in [1e-3, 0.1] (Gu & Dao 2023).
pub const TIME_STEP: Init = Init::Map(|u| {
    let dt = (u * (0.1f64 / 1e-3).ln() + 1e-3f64.ln()).exp().max(1e-4);
    dt + (-(-dt).exp_m1()).ln()
});

/// A linear map, or two in a row through a narrow middle. Maps of one input may be stacked along their outputs:
/// one product instead of several.
pub struct Projection(Vec<Vec<Linear>>);

impl Projection {
    /// `name` [output, input].
    pub fn full(scope: &mut Scope, name: &str, input: usize, output: usize) -> Result<Projection> {
        Projection::stacked(scope, input, &[(name, output)])
    }

    /// Several maps of one input, their outputs one after the other.
    pub fn stacked(scope: &mut Scope, input: usize, parts: &[(&str, usize)]) -> Result<Projection> {
        let linear =
            |&(name, output): &(&str, usize)| scope.linear(name, input, output, false, LINEAR_INIT);
        Ok(Projection(vec![
            parts.iter().map(linear).collect::<Result<_>>()?,
        ]))
    }

    /// `names[0]` [middle, input], then `names[1]` [output, middle], the second with a bias if asked for.
    pub fn low_rank(
        scope: &mut Scope,
        names: [&str; 2],
        [input, middle, output]: [usize; 3],
        bias: bool,
    ) -> Result<Projection> {
        let first = scope.linear(names[0], input, middle, false, LINEAR_INIT)?;
        let second = scope.linear(names[1], middle, output, bias, LINEAR_INIT)?;
        Ok(Projection(vec![vec![first], vec![second]]))
    }

    /// x [.., input] -> [.., output].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(x.clone(), |x, stage| {
            let [one] = &stage[..] else {
                return stacked(&x, stage);
            };
            one.forward(&x)
        })
    }

    /// x [B, T, input] -> [B, T, heads, output / heads].
    pub fn heads(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        split_heads(&self.forward(x)?, heads)
    }

    /// Multiply-adds for one token.
    pub fn cost(&self) -> usize {
        self.0
            .iter()
            .flatten()
            .map(|l| l.weight.shape().iter().product::<usize>())
            .sum()
    }
}

/// Several maps of x, outputs one after the other. What must be copied for that is the weights or the outputs:
/// in training the weights are fewer, for a few tokens the outputs.
fn stacked(x: &Tensor, parts: &[Linear]) -> Result<Tensor> {
    let tokens = x.count() / x.dim(-1)?.max(1);
    if tokens < x.dim(-1)? {
        let outputs = parts
            .iter()
            .map(|l| l.forward(x))
            .collect::<Result<Vec<_>>>()?;
        return Ok(Tensor::cat(&outputs.iter().collect::<Vec<_>>(), -1)?);
    }
    // Products with bf16 round f32 masters themselves, and give them gradients that are not rounded.
    let stored = |l: &Linear| match (x.dtype(), l.weight.get()) {
        (DType::BF16, w) if w.dtype() == DType::F32 => Ok(w),
        (dtype, w) => w.to_dtype(dtype),
    };
    let weights = parts.iter().map(stored);
    let weights = weights.collect::<weft_tensor::Result<Vec<_>>>()?;
    Ok(x.linear(&Tensor::cat(&weights.iter().collect::<Vec<_>>(), 0)?, None)?)
}

/// [B, T, heads * n] -> [B, T, heads, n].
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let [b, t, width] = x.dims()?;
    Ok(x.reshape(&[b, t, heads, width / heads])?)
}
