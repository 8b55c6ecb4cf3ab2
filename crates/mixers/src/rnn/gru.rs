//! The gated recurrent unit (Cho et al. 2014), z being what is kept:
//!
//! ```text
//! r = sigmoid(W_r x_t + U_r h + b_r)      z = sigmoid(W_z x_t + U_z h + b_z)      h: before the token
//! n = tanh(W_n x_t + b_n + r . (U_n h + b_hn))          reset after the product (cuDNN, PyTorch)
//! n = tanh(W_n x_t + U_n (r . h) + b_n)                 reset before it (the paper)
//! h_t = z . h + (1 - z) . n
//! ```
//!
//! Rows of the weights are in the order r, z, n.

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{Error as TensorError, Real, Result as TensorResult, Tensor};

use super::activation::{Activation, squash};
use super::layer::{FORMS, Layer, RecurrentInit, Units};
use crate::error::Result;
use crate::mixer::Mixer;
use crate::params::{Init, Scope};
use crate::registry::{Entry, Options};
use crate::shared::recurrent::{Backward, Cell, Forward, Operands, Sizes, product_of_heads};

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "gru",
    title: "GRU",
    paper: "Cho et al. 2014, arXiv 1406.1078",
    page: "docs/mixers/rnn.md",
    forms: FORMS,
    build,
    samples,
};

/// Where the reset gate acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reset {
    /// On U_n h + b_hn: one product for a token.
    After,
    /// On h, in front of U_n: two products for a token.
    Before,
}

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads with recurrent weights of their own (block-diagonal weights).
    pub num_heads: usize,
    /// Units of a head; default: width / heads.
    pub head_dim: Option<usize>,
    /// Where the reset gate acts.
    pub reset: Reset,
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
            reset: Reset::After,
            recurrent_init: RecurrentInit::Orthogonal,
            gradient_clipping: None,
        }
    }
}

fn samples() -> Vec<Options> {
    [
        json!({}),
        json!({"num_heads": 2, "head_dim": 5, "reset": "before", "gradient_clipping": 1e6}),
    ]
    .into_iter()
    .map(|table| Options::new(12, table))
    .collect()
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let units = Units::resolve(ENTRY.name, options.d_model, c.num_heads, c.head_dim, 3)?;
    let cell = Gru {
        units: units.dim,
        reset: c.reset,
    };
    let init = c.recurrent_init.of(units.dim);
    let mut layer = Layer::new(
        ENTRY.name,
        options.d_model,
        units,
        cell,
        c.gradient_clipping,
        Init::Const(0.0),
        scope,
    )?;
    layer.recurrent("weight_hh", init.clone(), scope)?;
    match c.reset {
        Reset::After => layer.param("bias_hn", units.dim, scope)?,
        Reset::Before => layer.recurrent("weight_hn", init, scope)?,
    }
    Ok(Box::new(layer))
}

/// The cell, for one head. Parameters: b_hn [n] if the reset gate acts after the product.
#[derive(Clone, Copy, Debug)]
pub struct Gru {
    /// n
    pub units: usize,
    /// Where the reset gate acts.
    pub reset: Reset,
}

/// Blocks of what is kept: what the reset gate acts on or makes (U_n h + b_hn, or r . h), r, z, n.
const KEPT: usize = 4;

impl Gru {
    /// h_t = z h + (1 - z) n
    #[inline(always)]
    fn blend<R: Real>(&self, before: &[R], (z, new): (&[R], &[R]), after: &mut [R], o: &mut [R]) {
        let n = self.units;
        let (before, z, new, after) = (&before[..n], &z[..n], &new[..n], &mut after[..n]);
        for j in 0..n {
            after[j] = z[j].mul_add(before[j] - new[j], new[j]);
        }
        o.copy_from_slice(after);
    }

    /// The way back of the blend: pre-activations of z and of n; what of it reaches h is added.
    #[inline(always)]
    fn blend_back<R: Real>(
        &self,
        (d_o, d_after): (&[R], &[R]),
        before: &[R],
        (z, new): (&[R], &[R]),
        (d_z, d_new): (&mut [R], &mut [R]),
        d_before: &mut [R],
    ) {
        let n = self.units;
        let (d_o, d_after, before) = (&d_o[..n], &d_after[..n], &before[..n]);
        let (z, new) = (&z[..n], &new[..n]);
        let (d_z, d_new, d_before) = (&mut d_z[..n], &mut d_new[..n], &mut d_before[..n]);
        for j in 0..n {
            let d = d_o[j] + d_after[j];
            d_z[j] = d * (before[j] - new[j]) * z[j] * (R::ONE - z[j]);
            d_new[j] = d * (R::ONE - z[j]) * (R::ONE - new[j] * new[j]);
            d_before[j] += d * z[j];
        }
    }
}

impl Cell for Gru {
    fn sizes(&self) -> Sizes {
        let n = self.units;
        let (params, first, second) = match self.reset {
            Reset::After => (n, [n, 3 * n], None),
            Reset::Before => (0, [n, 2 * n], Some([n, n])),
        };
        Sizes {
            input: 3 * n,
            state: n,
            output: n,
            params,
            kept: KEPT * n,
            first,
            second,
        }
    }

    fn plain(&self, x: &Tensor, h: &Tensor, all: &Operands) -> TensorResult<(Tensor, Tensor)> {
        let n = self.units;
        let block = |a: &Tensor, i: usize| a.narrow(-1, i * n, n);
        let u = product_of_heads(h, &all.weights[0])?;
        let r = block(x, 0)?.add(&block(&u, 0)?)?.sigmoid()?;
        let z = block(x, 1)?.add(&block(&u, 1)?)?.sigmoid()?;
        let inner = match (self.reset, &all.params) {
            (Reset::Before, _) => product_of_heads(&r.mul(h)?, &all.weights[1])?,
            (Reset::After, Some(bias)) => r.mul(&block(&u, 2)?.add(bias)?)?,
            (Reset::After, None) => return Err(TensorError::Custom("gru: no parameters".into())),
        };
        let new = block(x, 2)?.add(&inner)?.tanh()?;
        let h = z.mul(h)?.add(&z.affine(-1.0, 1.0)?.mul(&new)?)?;
        Ok((h.clone(), h))
    }

    #[inline(always)]
    fn first<R: Real>(&self, row: Forward<R>) {
        let n = self.units;
        let (inner, gates) = row.kept.split_at_mut(n);
        let (gates, new) = gates.split_at_mut(2 * n);
        squash(Activation::Sigmoid, &row.x[..2 * n], &row.u[..2 * n], gates);
        let (r, z) = gates.split_at(n);
        match self.reset {
            Reset::Before => {
                for j in 0..n {
                    inner[j] = r[j] * row.before[j];
                }
            }
            Reset::After => {
                let (u, x) = (&row.u[2 * n..][..n], &row.x[2 * n..][..n]);
                for j in 0..n {
                    inner[j] = u[j] + row.params[j];
                    new[j] = r[j].mul_add(inner[j], x[j]);
                }
                Activation::Tanh.apply(new);
                self.blend(row.before, (z, new), row.after, row.o);
            }
        }
    }

    #[inline(always)]
    fn second<R: Real>(&self, row: Forward<R>) {
        let n = self.units;
        let (gates, new) = row.kept.split_at_mut(3 * n);
        squash(Activation::Tanh, &row.x[2 * n..], row.u, new);
        self.blend(row.before, (&gates[2 * n..], new), row.after, row.o);
    }

    #[inline(always)]
    fn second_back<R: Real>(&self, row: Backward<R>) {
        let n = self.units;
        let (z, new) = row.kept[2 * n..].split_at(n);
        let (d_gates, d_new) = row.d_x.split_at_mut(2 * n);
        let from = (row.d_o, row.d_after);
        self.blend_back(
            from,
            row.before,
            (z, new),
            (&mut d_gates[n..], d_new),
            row.d_before,
        );
        row.d_u.copy_from_slice(d_new);
    }

    #[inline(always)]
    fn first_back<R: Real>(&self, row: Backward<R>) {
        let n = self.units;
        let (inner, r) = (&row.kept[..n], &row.kept[n..][..n]);
        let (d_r, rest) = row.d_x.split_at_mut(n);
        let (d_z, d_new) = rest.split_at_mut(n);
        match self.reset {
            Reset::Before => {
                for j in 0..n {
                    d_r[j] = row.d_fed[j] * row.before[j];
                    row.d_before[j] = row.d_fed[j].mul_add(r[j], row.d_before[j]);
                }
            }
            Reset::After => {
                let (z, new) = row.kept[2 * n..].split_at(n);
                let from = (row.d_o, row.d_after);
                self.blend_back(from, row.before, (z, new), (d_z, d_new), row.d_before);
                let d_u = &mut row.d_u[2 * n..][..n];
                for j in 0..n {
                    d_u[j] = d_new[j] * r[j];
                    d_r[j] = d_new[j] * inner[j];
                    row.d_params[j] += d_u[j];
                }
            }
        }
        Activation::Sigmoid.back(r, d_r);
        row.d_u[..2 * n].copy_from_slice(&row.d_x[..2 * n]);
    }
}
