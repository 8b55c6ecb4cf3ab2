//! The squashing functions of the cells: on slices, and their slopes from their outputs.

use serde::{Deserialize, Serialize};
use weft_tensor::{Real, Result, Tensor};

/// A squashing function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// tanh x
    Tanh,
    /// max(x, 0)
    Relu,
    /// x
    Identity,
}

impl Activation {
    /// In tensor operations.
    pub fn plain(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Sigmoid => x.sigmoid(),
            Activation::Tanh => x.tanh(),
            Activation::Relu => x.relu(),
            Activation::Identity => Ok(x.clone()),
        }
    }

    /// x <- act(x)
    #[inline(always)]
    pub(super) fn apply<R: Real>(self, x: &mut [R]) {
        match self {
            Activation::Sigmoid => x.iter_mut().for_each(|x| *x = x.sigmoid()),
            Activation::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
            Activation::Relu => x.iter_mut().for_each(|x| *x = x.max(R::ZERO)),
            Activation::Identity => {}
        }
    }

    /// d <- d act'(x), y being act(x).
    #[inline(always)]
    pub(super) fn back<R: Real>(self, y: &[R], d: &mut [R]) {
        let both = d.iter_mut().zip(y);
        match self {
            Activation::Sigmoid => both.for_each(|(d, y)| *d *= *y * (R::ONE - *y)),
            Activation::Tanh => both.for_each(|(d, y)| *d *= R::ONE - *y * *y),
            Activation::Relu => both.for_each(|(d, y)| {
                if *y <= R::ZERO {
                    *d = R::ZERO;
                }
            }),
            Activation::Identity => {}
        }
    }
}

/// y = act(x + u).
#[inline(always)]
pub(super) fn squash<R: Real>(act: Activation, x: &[R], u: &[R], y: &mut [R]) {
    for ((y, x), u) in y.iter_mut().zip(x).zip(u) {
        *y = *x + *u;
    }
    act.apply(y);
}
