//! Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate and peepholes: Gers et al. 2000):
//!
//! ```text
//! i = sigmoid(W_i x_t + U_i h + b_i [+ p_i . s])        f = sigmoid(W_f x_t + U_f h + b_f [+ p_f . s])
//! g = act(W_g x_t + U_g h + b_g)                        h, s: before the token
//! s_t = i . g + f . s
//! o = sigmoid(W_o x_t + U_o h + b_o [+ p_o . s_t])      h_t = o . squash(s_t)
//! ```
//!
//! Rows of the weights are in the order i, f, g, o of the frameworks, without the gates that an option removes:
//! no forget gate (f = 1, the cell of 1997), coupled gates (i = 1 - f). The state is h, then s.

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
    name: "lstm",
    title: "LSTM",
    paper: "Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000; reviewed in arXiv 1506.00019",
    page: "docs/mixers/rnn.md",
    forms: FORMS,
    build,
    samples,
};

/// Which gates decide what is kept and what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gates {
    /// An input and a forget gate.
    Both,
    /// No forget gate: f = 1 (1997).
    Input,
    /// One gate for both: i = 1 - f.
    Coupled,
}

/// Settings of the layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads with recurrent weights of their own (block-diagonal weights).
    pub num_heads: usize,
    /// Units of a head; default: width / heads.
    pub head_dim: Option<usize>,
    /// Which gates it has beside the output gate.
    pub gates: Gates,
    /// Gates that see the cell state.
    pub peepholes: bool,
    /// act, of what is written.
    pub input_squash: Activation,
    /// squash, of what is read.
    pub output_squash: Activation,
    /// Where the biases of the forget gate start; those of the others start at 0.
    pub forget_bias: f64,
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
            gates: Gates::Both,
            peepholes: false,
            input_squash: Activation::Tanh,
            output_squash: Activation::Tanh,
            forget_bias: 1.0,
            recurrent_init: RecurrentInit::Orthogonal,
            gradient_clipping: None,
        }
    }
}

fn samples() -> Vec<Options> {
    [
        json!({}),
        json!({"num_heads": 2, "head_dim": 3, "peepholes": true, "gradient_clipping": 1e6}),
        json!({"gates": "input", "peepholes": true, "input_squash": "sigmoid", "head_dim": 7}),
        json!({"gates": "coupled", "peepholes": true, "output_squash": "identity"}),
    ]
    .into_iter()
    .map(|table| Options::new(12, table))
    .collect()
}

fn build(options: &Options, scope: &mut Scope) -> Result<Box<dyn Mixer>> {
    let c: Config = options.parse(ENTRY.name)?;
    let units = Units::resolve(ENTRY.name, options.d_model, c.num_heads, c.head_dim, 4)?;
    let bounded = [Activation::Sigmoid, Activation::Tanh];
    if !bounded.contains(&c.input_squash) {
        let detail = "input_squash: expected sigmoid or tanh, which bound what is written";
        return Err(Error::config(ENTRY.name, detail));
    }
    let n = units.dim;
    let cell = Lstm {
        units: n,
        gates: c.gates,
        peepholes: c.peepholes,
        input_squash: c.input_squash,
        output_squash: c.output_squash,
    };
    let mut bias = vec![0.0; cell.sizes().input];
    if let Some(f) = cell.forget_gate() {
        bias[f * n..][..n].fill(c.forget_bias);
    }
    let bias = Init::Data(bias.repeat(units.heads));
    let mut layer = Layer::new(
        ENTRY.name,
        options.d_model,
        units,
        cell,
        c.gradient_clipping,
        bias,
        scope,
    )?;
    layer.recurrent("weight_hh", c.recurrent_init.of(n), scope)?;
    let peepholes = [
        ("weight_ci", cell.input_gate()),
        ("weight_cf", cell.forget_gate()),
        ("weight_co", Some(0)),
    ];
    for (name, gate) in peepholes {
        if c.peepholes && gate.is_some() {
            layer.param(name, n, scope)?;
        }
    }
    Ok(Box::new(layer))
}

/// The cell, for one head. Parameters: the peepholes of the gates that it has, in the order i, f, o.
#[derive(Clone, Copy, Debug)]
pub struct Lstm {
    /// n
    pub units: usize,
    /// Which gates it has beside the output gate.
    pub gates: Gates,
    /// Gates that see the cell state.
    pub peepholes: bool,
    /// act, of what is written.
    pub input_squash: Activation,
    /// squash, of what is read.
    pub output_squash: Activation,
}

/// Blocks of what is kept: i, f, g, o, squash(s).
const KEPT: usize = 5;

impl Lstm {
    /// The block of the input gate in the weights.
    fn input_gate(&self) -> Option<usize> {
        (self.gates != Gates::Coupled).then_some(0)
    }

    /// The block of the forget gate.
    fn forget_gate(&self) -> Option<usize> {
        match self.gates {
            Gates::Both => Some(1),
            Gates::Input => None,
            Gates::Coupled => Some(0),
        }
    }

    /// The block of what is written; the output gate's follows.
    fn cell_block(&self) -> usize {
        if self.gates == Gates::Both { 2 } else { 1 }
    }

    /// Where the peephole of the gate of a block begins; that of g, which has none, is left out.
    fn peephole(&self, block: usize) -> Option<usize> {
        let place = block - usize::from(block > self.cell_block());
        self.peepholes.then_some(place * self.units)
    }

    /// y = sigmoid(x + u + p . s) for the gate of a block.
    #[inline(always)]
    fn gate<R: Real>(
        &self,
        block: usize,
        (x, u): (&[R], &[R]),
        params: &[R],
        s: &[R],
        y: &mut [R],
    ) {
        let n = self.units;
        let (x, u, s, y) = (
            &x[block * n..][..n],
            &u[block * n..][..n],
            &s[..n],
            &mut y[..n],
        );
        for j in 0..n {
            y[j] = x[j] + u[j];
        }
        if let Some(at) = self.peephole(block) {
            let p = &params[at..][..n];
            for j in 0..n {
                y[j] = p[j].mul_add(s[j], y[j]);
            }
        }
        Activation::Sigmoid.apply(y);
    }

    /// From d, the gradient of a gate's value y, to that of its pre-activation; through its peephole to s.
    #[inline(always)]
    fn gate_back<R: Real>(
        &self,
        block: usize,
        y: &[R],
        (params, d_params): (&[R], &mut [R]),
        (s, d_s): (&[R], &mut [R]),
        d: &mut [R],
    ) {
        let n = self.units;
        let (s, d_s, d) = (&s[..n], &mut d_s[..n], &mut d[..n]);
        Activation::Sigmoid.back(&y[..n], d);
        if let Some(at) = self.peephole(block) {
            let (p, d_p) = (&params[at..][..n], &mut d_params[at..][..n]);
            for j in 0..n {
                d_s[j] = d[j].mul_add(p[j], d_s[j]);
                d_p[j] = d[j].mul_add(s[j], d_p[j]);
            }
        }
    }
}

impl Cell for Lstm {
    fn sizes(&self) -> Sizes {
        let (n, gates) = (self.units, self.cell_block());
        Sizes {
            input: (gates + 2) * n,
            state: 2 * n,
            output: n,
            params: if self.peepholes { (gates + 1) * n } else { 0 },
            kept: KEPT * n,
            first: [n, (gates + 2) * n],
            second: None,
        }
    }

    fn plain(&self, x: &Tensor, state: &Tensor, all: &Operands) -> TensorResult<(Tensor, Tensor)> {
        let n = self.units;
        let (h, s) = (state.narrow(-1, 0, n)?, state.narrow(-1, n, n)?);
        let a = x.add(&product_of_heads(&h, &all.weights[0])?)?;
        let block = |i: usize| a.narrow(-1, i * n, n);
        let gate = |i: usize, s: &Tensor| -> TensorResult<Tensor> {
            let mut a = block(i)?;
            if let (Some(p), Some(at)) = (&all.params, self.peephole(i)) {
                a = a.add(&s.mul(&p.narrow(-1, at, n)?)?)?;
            }
            a.sigmoid()
        };
        let one_minus = |x: &Tensor| x.affine(-1.0, 1.0);
        let f = self.forget_gate().map(|i| gate(i, &s)).transpose()?;
        let i = match (self.input_gate(), &f) {
            (Some(i), _) => gate(i, &s)?,
            (None, Some(f)) => one_minus(f)?,
            (None, None) => s.ones_like(),
        };
        let g = self.input_squash.plain(&block(self.cell_block())?)?;
        let kept = match &f {
            Some(f) => f.mul(&s)?,
            None => s,
        };
        let s = i.mul(&g)?.add(&kept)?;
        let o = gate(self.cell_block() + 1, &s)?;
        let h = o.mul(&self.output_squash.plain(&s)?)?;
        let state = Tensor::cat(&[&h, &s], -1)?;
        Ok((h, state))
    }

    #[inline(always)]
    fn first<R: Real>(&self, row: Forward<R>) {
        let n = self.units;
        let before = &row.before[n..];
        let (i, rest) = row.kept.split_at_mut(n);
        let (f, rest) = rest.split_at_mut(n);
        let (g, rest) = rest.split_at_mut(n);
        let (o, read) = rest.split_at_mut(n);
        let from = (row.x, row.u);
        match self.forget_gate() {
            Some(block) => self.gate(block, from, row.params, before, f),
            None => f.fill(R::ONE),
        }
        match self.input_gate() {
            Some(block) => self.gate(block, from, row.params, before, i),
            None => i.iter_mut().zip(&*f).for_each(|(i, f)| *i = R::ONE - *f),
        }
        let block = self.cell_block() * n;
        squash(
            self.input_squash,
            &row.x[block..][..n],
            &row.u[block..][..n],
            g,
        );
        let (h, s) = row.after.split_at_mut(n);
        for j in 0..n {
            s[j] = i[j].mul_add(g[j], f[j] * before[j]);
        }
        self.gate(self.cell_block() + 1, from, row.params, s, o);
        read.copy_from_slice(s);
        self.output_squash.apply(read);
        for j in 0..n {
            h[j] = o[j] * read[j];
        }
        row.o.copy_from_slice(h);
    }

    #[inline(always)]
    fn first_back<R: Real>(&self, row: Backward<R>) {
        let n = self.units;
        let (i, rest) = row.kept.split_at(n);
        let (f, rest) = rest.split_at(n);
        let (g, rest) = rest.split_at(n);
        let (o, read) = rest.split_at(n);
        let (s_before, s) = (&row.before[n..], &row.after[n..]);
        let d_params = row.d_params;
        // The gradient of s_t, then what of it reaches s.
        let d_s = &mut row.d_before[n..];
        d_s.copy_from_slice(&row.d_after[n..]);
        let (cell, out) = (self.cell_block() * n, (self.cell_block() + 1) * n);
        let (d_front, d_out) = row.d_u.split_at_mut(out);
        for j in 0..n {
            d_out[j] = row.d_o[j] + row.d_after[j];
        }
        // Of h through squash(s): the block of g serves as scratch.
        let (d_gates, d_g) = d_front.split_at_mut(cell);
        for j in 0..n {
            d_g[j] = d_out[j] * o[j];
            d_out[j] *= read[j];
        }
        self.output_squash.back(read, d_g);
        for j in 0..n {
            d_s[j] += d_g[j];
        }
        self.gate_back(
            self.cell_block() + 1,
            o,
            (row.params, d_params),
            (s, d_s),
            d_out,
        );
        // Through s_t = i g + f s: gradients of the gates, then those of s.
        if let Some(block) = self.input_gate() {
            let d_i = &mut d_gates[block * n..][..n];
            for j in 0..n {
                d_i[j] = d_s[j] * g[j];
            }
        }
        if let Some(block) = self.forget_gate() {
            let coupled = self.gates == Gates::Coupled;
            let d_f = &mut d_gates[block * n..][..n];
            for j in 0..n {
                let other = if coupled { g[j] } else { R::ZERO };
                d_f[j] = d_s[j] * (s_before[j] - other);
            }
        }
        for j in 0..n {
            d_g[j] = d_s[j] * i[j];
            d_s[j] *= f[j];
        }
        self.input_squash.back(g, d_g);
        for (block, y) in [(self.input_gate(), i), (self.forget_gate(), f)] {
            if let Some(block) = block {
                let d = &mut d_gates[block * n..][..n];
                self.gate_back(block, y, (row.params, d_params), (s_before, d_s), d);
            }
        }
        row.d_x.copy_from_slice(row.d_u);
    }
}
