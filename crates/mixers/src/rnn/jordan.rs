//! Jordan's network (Jordan 1986): its outputs are fed back through context units that remember.
//!
//! ```text
//! c_t = mu c_{t-1} + y_{t-1}                                    mu in [0, 1)
//! h_t = act(W x_t + C c_t + b)        y_t = softmax(V h_t + b_y)
//! ```
//!
//! The state is the context of the next token, mu c_t + y_t; the outputs of the cell are y_t [B, T, N, O].

use serde::Deserialize;
use serde_json::json;
use weft_tensor::{Real, Result as TensorResult, Tensor};

use super::activation::{Activation, squash};
use super::layer::{FORMS, Layer, Units};
use crate::error::{Error, Result};
use crate::mixer::Mixer;
use crate::params::{Init, Scope};
use crate::registry::{Entry, Options};
use crate::shared::recurrent::product::dot;
use crate::shared::recurrent::{Backward, Cell, Forward, Operands, Sizes, product_of_heads};

/// Its line in the registry.
pub static ENTRY: Entry = Entry {
    name: "jordan",
    title: "Jordan network",
    paper: "Jordan 1986; reviewed in Lipton, Berkowitz, Elkan 2015, arXiv 1506.00019",
    page: "docs/mixers/rnn.md",
    forms: FORMS,
    build,
    samples,
};

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads with weights of their own.
    pub num_heads: usize,
    /// Hidden units of a head; default: width / heads.
    pub head_dim: Option<usize>,
    /// Outputs, and context units, of a head; default: `head_dim`.
    pub outputs: Option<usize>,
    /// mu: how much the context units keep of themselves.
    pub memory: f64,
    /// act
    pub activation: Activation,
    /// Clamp the gradient of the state to [-c, c] from token to token.
    pub gradient_clipping: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            num_heads: 1,
            head_dim: None,
            outputs: None,
            memory: 0.5,
            activation: Activation::Sigmoid,
            gradient_clipping: None,
        }
    }
}

fn samples() -> Vec<Options> {
    [
        json!({"outputs": 5}),
        json!({"num_heads": 2, "memory": 0.0, "activation": "tanh", "gradient_clipping": 1e6}),
    ]
    .into_iter()
    .map(|table| Options::new(12, table))
    .collect()
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let units = Units::resolve(ENTRY.name, options.d_model, c.num_heads, c.head_dim, 1)?;
    let outputs = c.outputs.unwrap_or(units.dim);
    // The same limits hold for the outputs of a head.
    Units::resolve(ENTRY.name, options.d_model, c.num_heads, Some(outputs), 1)?;
    if !(0.0..1.0).contains(&c.memory) {
        let detail = format!("memory {}: expected a number in [0, 1)", c.memory);
        return Err(Error::config(ENTRY.name, detail));
    }
    let cell = Jordan {
        units: units.dim,
        outputs,
        activation: c.activation,
    };
    let fan_in = Init::FanIn { gain: 1.0 };
    let mut layer = Layer::new(
        ENTRY.name,
        options.d_model,
        units,
        cell,
        c.gradient_clipping,
        Init::Const(0.0),
        scope,
    )?;
    layer.recurrent("weight_hc", fan_in.clone(), scope)?;
    layer.recurrent("weight_yh", fan_in, scope)?;
    layer.param("bias_y", outputs, scope)?;
    layer.fixed(c.memory);
    Ok(Box::new(layer))
}

/// The cell, for one head. Parameters: b_y [O], mu.
#[derive(Clone, Copy, Debug)]
pub struct Jordan {
    /// Hidden units.
    pub units: usize,
    /// O
    pub outputs: usize,
    /// act
    pub activation: Activation,
}

impl Cell for Jordan {
    fn sizes(&self) -> Sizes {
        let (n, o) = (self.units, self.outputs);
        Sizes {
            input: n,
            state: o,
            output: o,
            params: o + 1,
            // h, then y.
            kept: n + o,
            first: [o, n],
            second: Some([n, o]),
        }
    }

    fn plain(&self, x: &Tensor, c: &Tensor, all: &Operands) -> TensorResult<(Tensor, Tensor)> {
        let Some(params) = &all.params else {
            return Err(weft_tensor::Error::Custom("jordan: no parameters".into()));
        };
        let (bias, mu) = (
            params.narrow(-1, 0, self.outputs)?,
            params.narrow(-1, self.outputs, 1)?,
        );
        let h = self
            .activation
            .plain(&x.add(&product_of_heads(c, &all.weights[0])?)?)?;
        let y = product_of_heads(&h, &all.weights[1])?
            .add(&bias)?
            .softmax(-1)?;
        let c = c.mul(&mu)?.add(&y)?;
        Ok((y, c))
    }

    #[inline(always)]
    fn first<R: Real>(&self, row: Forward<R>) {
        squash(self.activation, row.x, row.u, &mut row.kept[..self.units]);
    }

    #[inline(always)]
    fn second<R: Real>(&self, row: Forward<R>) {
        let o = self.outputs;
        let (bias, mu) = (&row.params[..o], row.params[o]);
        let y = &mut row.kept[self.units..][..o];
        let mut top = R::NEG_INFINITY;
        for j in 0..o {
            y[j] = row.u[j] + bias[j];
            top = top.max(y[j]);
        }
        y.iter_mut().for_each(|y| *y = (*y - top).exp());
        let scale = R::ONE / y.iter().copied().sum();
        for j in 0..o {
            y[j] *= scale;
            row.after[j] = mu.mul_add(row.before[j], y[j]);
        }
        row.o.copy_from_slice(y);
    }

    #[inline(always)]
    fn second_back<R: Real>(&self, row: Backward<R>) {
        let o = self.outputs;
        let (y, mu) = (&row.kept[self.units..][..o], row.params[o]);
        // d_u holds the gradient of y, then that of the logits.
        for j in 0..o {
            row.d_u[j] = row.d_o[j] + row.d_after[j];
            row.d_before[j] += mu * row.d_after[j];
        }
        let mean = dot(row.d_u, y);
        for j in 0..o {
            row.d_u[j] = y[j] * (row.d_u[j] - mean);
            row.d_params[j] += row.d_u[j];
        }
        row.d_params[o] += dot(row.d_after, row.before);
    }

    #[inline(always)]
    fn first_back<R: Real>(&self, row: Backward<R>) {
        row.d_u.copy_from_slice(row.d_fed);
        self.activation.back(&row.kept[..self.units], row.d_u);
        row.d_x.copy_from_slice(row.d_u);
    }
}
