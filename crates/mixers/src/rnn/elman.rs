//! Elman's network (Elman 1990), with leaky units as an option:
//!
//! ```text
//! h_t = (1 - a) h_{t-1} + a act(W x_t + U h_{t-1} + b)          a in (0, 1], 1 by default
//! ```
//!
//! With `relu` and identity weights it is the IRNN (Le, Jaitly, Hinton 2015).

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{Real, Result as TensorResult, Tensor};

use super::activation::{Activation, squash};
use super::layer::{FORMS, Layer, RecurrentInit, Units};
use crate::error::{Error, Result};
use crate::mixer::Mixer;
use crate::params::{Init, Scope};
use crate::registry::{Entry, Options};
use crate::shared::recurrent::{Backward, Cell, Forward, Operands, Sizes, product_of_heads};

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "elman",
    title: "Elman network",
    paper: "Elman 1990; reviewed in Lipton, Berkowitz, Elkan 2015, arXiv 1506.00019",
    page: "docs/mixers/rnn.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads with recurrent weights of their own (block-diagonal weights).
    pub num_heads: usize,
    /// Units of a head; default: width / heads.
    pub head_dim: Option<usize>,
    /// act. With `relu` and `identity` nothing bounds the state.
    pub activation: Activation,
    /// a: how much of a unit is new at each token.
    pub leak: f64,
    /// How the recurrent weights start.
    pub recurrent_init: RecurrentInit,
    /// Clamp the gradient of the state to [-c, c] from token to token.
    pub gradient_clipping: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: 1,
            head_dim: None,
            activation: Activation::Tanh,
            leak: 1.0,
            recurrent_init: RecurrentInit::Orthogonal,
            gradient_clipping: None,
        }
    }
}

// Relu and identity are not among the samples: unbounded states overflow under the law of extreme gates, as they
// must. `tests.rs` holds their kernel against the plain form.
fn samples() -> Vec<Options> {
    [
        json!({}),
        json!({"num_heads": 2, "head_dim": 5, "activation": "sigmoid", "leak": 0.4, "gradient_clipping": 1e6}),
        json!({"num_heads": 3, "head_dim": 4, "recurrent_init": "uniform"}),
        json!({"head_dim": 6, "recurrent_init": "identity"}),
    ]
    .into_iter()
    .map(|table| Options::new(12, table))
    .collect()
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    if !(c.leak > 0.0 && c.leak <= 1.0) {
        let detail = format!("leak {}: expected a number in (0, 1]", c.leak);
        return Err(Error::config(ENTRY.name, detail));
    }
    let units = Units::resolve(ENTRY.name, options.d_model, c.num_heads, c.head_dim, 1)?;
    let cell = Elman {
        units: units.dim,
        activation: c.activation,
        leak: c.leak,
    };
    let mut layer = Layer::new(
        ENTRY.name,
        options.d_model,
        units,
        cell,
        c.gradient_clipping,
        Init::Const(0.0),
        scope,
    )?;
    layer.recurrent("weight_hh", c.recurrent_init.of(units.dim), scope)?;
    Ok(Box::new(layer))
}

/// The cell, for one head.
#[derive(Clone, Copy, Debug)]
pub struct Elman {
    /// n
    pub units: usize,
    /// act
    pub activation: Activation,
    /// a
    pub leak: f64,
}

impl Cell for Elman {
    fn sizes(&self) -> Sizes {
        let n = self.units;
        Sizes {
            input: n,
            state: n,
            output: n,
            params: 0,
            kept: n,
            first: [n, n],
            second: None,
        }
    }

    fn plain(&self, x: &Tensor, h: &Tensor, all: &Operands) -> TensorResult<(Tensor, Tensor)> {
        let y = x.add(&product_of_heads(h, &all.weights[0])?)?;
        let y = self.activation.plain(&y)?;
        let h = h
            .mul_scalar(1.0 - self.leak)?
            .add(&y.mul_scalar(self.leak)?)?;
        Ok((h.clone(), h))
    }

    #[inline(always)]
    fn first<R: Real>(&self, row: Forward<R>) {
        let (leak, n) = (R::from_f64(self.leak), self.units);
        squash(self.activation, row.x, row.u, row.kept);
        let (kept, before) = (&row.kept[..n], &row.before[..n]);
        for j in 0..n {
            row.after[j] = (R::ONE - leak).mul_add(before[j], leak * kept[j]);
        }
        row.o.copy_from_slice(row.after);
    }

    #[inline(always)]
    fn first_back<R: Real>(&self, row: Backward<R>) {
        let (leak, n) = (R::from_f64(self.leak), self.units);
        let (d_o, d_after) = (&row.d_o[..n], &row.d_after[..n]);
        let (d_u, d_before) = (&mut row.d_u[..n], &mut row.d_before[..n]);
        for j in 0..n {
            let d = d_o[j] + d_after[j];
            d_before[j] += (R::ONE - leak) * d;
            d_u[j] = leak * d;
        }
        self.activation.back(row.kept, d_u);
        row.d_x.copy_from_slice(d_u);
    }
}
