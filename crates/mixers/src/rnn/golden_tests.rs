//! The cells against the survey's equations computed elsewhere, in f64: values, states and all gradients, for the
//! fused scan, the plain form and token by token; the bidirectional wrapper, truncation and Jacobians.

use std::collections::BTreeMap;

use serde_json::json;
use weft_tensor::{DType, Device, Tensor, grad, no_grad};

use super::elman::Elman;
use super::gru::{Gru, Reset};
use super::jordan::Jordan;
use super::lstm::{Gates, Lstm};
use super::{Activation, Bidirectional, elman, jacobian_norms, truncated};
use crate::error::Result;
use crate::golden::{Case, assert_close, cases};
use crate::mixer::Mixer;
use crate::params::{Params, Scope};
use crate::registry::Options;
use crate::shared::recurrent::{Cell, How, Operands, recurrence, scan, step};

const SLUG: &str = "rnn-classics";

fn tolerance(case: &Case) -> f64 {
    case.number("tol").unwrap()
}

/// A cell's tensors under their names in the file, as leaves.
struct Leaves<'a> {
    case: &'a Case,
    tag: &'a str,
    leaves: BTreeMap<&'a str, Tensor>,
}

impl<'a> Leaves<'a> {
    fn new(case: &'a Case, tag: &'a str, names: &[&'a str]) -> Self {
        let leaf = |&name: &&'a str| {
            let value = case.tensor(&format!("{tag}/{name}")).unwrap();
            (name, value.requires_grad().unwrap())
        };
        Leaves {
            case,
            tag,
            leaves: names.iter().map(leaf).collect(),
        }
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.leaves[name]
    }

    fn file(&self, name: &str) -> &Tensor {
        self.case.tensor(&format!("{}/{name}", self.tag)).unwrap()
    }

    /// Tensors one below the other.
    fn rows(&self, names: &[String]) -> Tensor {
        let parts: Vec<&Tensor> = names.iter().map(|n| self.get(n)).collect();
        Tensor::cat(&parts, 0).unwrap()
    }

    /// Pre-activations [1, T, 1, X] of the blocks named by `gates`.
    fn inputs(&self, gates: &str) -> Tensor {
        let weights = self.rows(&gates.chars().map(|g| format!("W{g}x")).collect::<Vec<_>>());
        let bias = self.rows(&gates.chars().map(|g| format!("b{g}")).collect::<Vec<_>>());
        let a = self.get("x").linear(&weights, Some(&bias)).unwrap();
        let [t, width] = a.dims().unwrap();
        a.reshape(&[1, t, 1, width]).unwrap()
    }

    /// [1, out, in]
    fn recurrent(&self, gates: &str) -> Tensor {
        let names: Vec<String> = gates.chars().map(|g| format!("W{g}h")).collect();
        self.rows(&names).unsqueeze(0).unwrap()
    }

    /// Vectors one after the other, [1, P] or [1, 1, S].
    fn vector(&self, names: &[&str], rank: usize) -> Tensor {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut v = self.rows(&names).unsqueeze(0).unwrap();
        while v.rank() < rank {
            v = v.unsqueeze(0).unwrap();
        }
        v
    }

    fn check<C: Cell>(&self, cell: &C, operands: &Operands, extra: Option<(&str, usize)>) {
        let tol = tolerance(self.case);
        let how = How::default();
        type Form<C> = fn(&C, &Operands, &How) -> weft_tensor::Result<(Tensor, Tensor)>;
        let forms: [(&str, Form<C>); 2] = [("scan", scan), ("plain", recurrence)];
        let token_by_token = no_grad(|| {
            let (mut state, mut outputs) = (operands.state.clone(), vec![]);
            for t in 0..operands.x.dim(1).unwrap() {
                let x = operands.x.narrow(1, t, 1).unwrap();
                let (o, after) = step(
                    cell,
                    Operands {
                        x,
                        state,
                        ..operands.clone()
                    },
                    &how,
                )
                .unwrap();
                outputs.push(o);
                state = after;
            }
            (
                Tensor::cat(&outputs.iter().collect::<Vec<_>>(), 1).unwrap(),
                state,
            )
        });
        for (form, run) in forms {
            let label = |what: &str| format!("{} {} {form}: {what}", self.case.label, self.tag);
            let (o, state) = run(cell, operands, &how).unwrap();
            assert_close(&label("a step's outputs"), &token_by_token.0, &o, tol);
            assert_close(&label("a step's state"), &token_by_token.1, &state, tol);
            let o = o.squeeze(0).unwrap().squeeze(1).unwrap();
            assert_close(&label("o"), &o, self.file("o"), tol);
            if let Some((name, at)) = extra {
                let want = self.file(name);
                let [t, n] = want.dims().unwrap();
                let last = state.narrow(-1, at, n).unwrap().reshape(&[1, n]).unwrap();
                assert_close(&label(name), &last, &want.narrow(0, t - 1, 1).unwrap(), tol);
            }
            self.gradients(form, &o);
        }
    }

    /// Gradients of sum(o w_o) for every leaf.
    fn gradients(&self, form: &str, o: &Tensor) {
        let loss = o.mul(self.file("w_o")).unwrap().sum_all().unwrap();
        let leaves: Vec<&Tensor> = self.leaves.values().collect();
        let grads = grad(&[&loss], None, &leaves, false).unwrap();
        for (name, g) in self.leaves.keys().zip(grads) {
            let label = format!("{} {} {form}: grad.{name}", self.case.label, self.tag);
            let g = g.unwrap_or_else(|| panic!("{label}: none"));
            assert_close(
                &label,
                &g,
                self.file(&format!("grad.{name}")),
                tolerance(self.case),
            );
        }
    }
}

fn elman(case: &Case, tag: &str, activation: Activation) {
    let l = Leaves::new(case, tag, &["x", "Whx", "Whh", "bh", "h0"]);
    let cell = Elman {
        units: l.get("h0").count(),
        activation,
        leak: 1.0,
    };
    let operands = Operands {
        x: l.inputs("h"),
        weights: vec![l.recurrent("h")],
        params: None,
        state: l.vector(&["h0"], 3),
    };
    l.check(&cell, &operands, None);
}

fn jordan(case: &Case, tag: &str) {
    let names = ["x", "Whx", "Whc", "bh", "Wyh", "by", "mu", "y0"];
    let l = Leaves::new(case, tag, &names);
    let cell = Jordan {
        units: l.get("bh").count(),
        outputs: l.get("by").count(),
        activation: Activation::Sigmoid,
    };
    // c_1 = mu 0 + y_0
    let mu = l.get("mu").reshape(&[1]).unwrap();
    let operands = Operands {
        x: l.inputs("h"),
        weights: ["Whc", "Wyh"]
            .map(|n| l.get(n).unsqueeze(0).unwrap())
            .to_vec(),
        params: Some(
            Tensor::cat(&[l.get("by"), &mu], 0)
                .unwrap()
                .unsqueeze(0)
                .unwrap(),
        ),
        state: l.vector(&["y0"], 3),
    };
    l.check(&cell, &operands, None);
}

fn lstm(case: &Case, tag: &str, gates: Gates, peepholes: bool) {
    let blocks = if gates == Gates::Both { "ifgo" } else { "igo" };
    let mut names = vec![
        "x", "h0", "s0", "Wgx", "Wgh", "bg", "Wix", "Wih", "bi", "Wox", "Woh", "bo",
    ];
    if gates == Gates::Both {
        names.extend(["Wfx", "Wfh", "bf"]);
    }
    if peepholes {
        names.extend(["pi", "pf", "po"]);
    }
    let l = Leaves::new(case, tag, &names);
    let cell = Lstm {
        units: l.get("h0").count(),
        gates,
        peepholes,
        input_squash: Activation::Tanh,
        output_squash: Activation::Tanh,
    };
    let operands = Operands {
        x: l.inputs(blocks),
        weights: vec![l.recurrent(blocks)],
        params: peepholes.then(|| l.vector(&["pi", "pf", "po"], 2)),
        state: l.vector(&["h0", "s0"], 3),
    };
    l.check(&cell, &operands, Some(("s", cell.units)));
}

fn gru(case: &Case, tag: &str, reset: Reset) {
    let mut names = vec![
        "x", "h0", "Wrx", "Wrh", "br", "Wzx", "Wzh", "bz", "Wnx", "Wnh", "bn",
    ];
    if reset == Reset::After {
        names.push("bnh");
    }
    let l = Leaves::new(case, tag, &names);
    let cell = Gru {
        units: l.get("h0").count(),
        reset,
    };
    let (weights, params) = match reset {
        Reset::After => (vec![l.recurrent("rzn")], Some(l.vector(&["bnh"], 2))),
        Reset::Before => (vec![l.recurrent("rz"), l.recurrent("n")], None),
    };
    let operands = Operands {
        x: l.inputs("rzn"),
        weights,
        params,
        state: l.vector(&["h0"], 3),
    };
    l.check(&cell, &operands, None);
}

/// A matrix or vector filled up with zeros to the given sizes.
fn padded(x: &Tensor, sizes: &[usize]) -> Tensor {
    sizes.iter().enumerate().fold(x.clone(), |x, (axis, &n)| {
        let missing = n - x.shape()[axis];
        if missing == 0 {
            x
        } else {
            x.pad(axis as isize, 0, missing, 0.0).unwrap()
        }
    })
}

/// Inputs and outputs of a mixer are of one width: the wider of both, the other filled up with zeros.
fn source<'a>(
    case: &'a Case,
    tag: &'a str,
    names: &'a [(&'a str, &'a str)],
) -> impl Fn(&str, &[usize]) -> Result<Tensor> + 'a {
    move |name, shape| match names.iter().find(|n| n.0 == name) {
        Some((_, file)) => Ok(padded(case.tensor(&format!("{tag}/{file}"))?, shape)),
        None => Ok(Tensor::zeros(shape, DType::F64, &Device::Cpu)),
    }
}

/// Compare gradients of parameters with `want(name in the file)`, which lack the padding.
fn same_gradients(
    label: &str,
    (params, names): (&Params, &[(&str, &str)]),
    grads: &[Option<Tensor>],
    want: impl Fn(&str) -> Tensor,
    tol: f64,
) {
    for (p, g) in params.iter().zip(grads) {
        let Some((_, file)) = names.iter().find(|n| n.0 == p.name()) else {
            continue;
        };
        let want = want(file);
        let mut g = g
            .clone()
            .unwrap_or_else(|| panic!("{label}: no gradient of {file}"));
        for (axis, &n) in want.shape().iter().enumerate() {
            g = g.narrow(axis as isize, 0, n).unwrap();
        }
        assert_close(&format!("{label}: grad of {file}"), &g, &want, tol);
    }
}

fn brnn(case: &Case, tag: &str) {
    let at = |name: &str| case.tensor(&format!("{tag}/{name}")).unwrap();
    let ([_, inputs], [units, _], [_, outputs]) = (
        at("x").dims().unwrap(),
        at("Whh").dims().unwrap(),
        at("o").dims().unwrap(),
    );
    let d = inputs.max(outputs);
    let names = [
        ("forward.weight_ih", "Whx"),
        ("forward.bias", "bh"),
        ("forward.weight_hh", "Whh"),
        ("forward.out_proj.weight", "Wyh"),
        ("forward.out_proj.bias", "by"),
        ("backward.weight_ih", "Wzx"),
        ("backward.bias", "bz"),
        ("backward.weight_hh", "Wzz"),
        ("backward.out_proj.weight", "Wyz"),
    ];
    let mut params = Params::new();
    let source = source(case, tag, &names);
    let mut scope = Scope::from_source(&mut params, &source, &Device::Cpu);
    let options = Options::new(d, json!({"head_dim": units, "activation": "sigmoid"}));
    let both = Bidirectional::new(&elman::ENTRY, &options, &mut scope).unwrap();
    let x = padded(at("x"), &[at("x").dim(0).unwrap(), d])
        .unsqueeze(0)
        .unwrap()
        .requires_grad()
        .unwrap();
    let y = both.forward(&x, None).unwrap();
    let o = y
        .narrow(-1, 0, outputs)
        .unwrap()
        .softmax(-1)
        .unwrap()
        .squeeze(0)
        .unwrap();
    let tol = tolerance(case);
    let label = format!("{} {tag}", case.label);
    assert_close(&format!("{label}: o"), &o, at("o"), tol);

    let loss = o.mul(at("w_o")).unwrap().sum_all().unwrap();
    let mut leaves: Vec<Tensor> = params.iter().map(|p| p.get()).collect();
    leaves.push(x);
    let mut grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
    let d_x = grads
        .pop()
        .unwrap()
        .unwrap()
        .narrow(-1, 0, inputs)
        .unwrap()
        .squeeze(0)
        .unwrap();
    assert_close(&format!("{label}: grad.x"), &d_x, at("grad.x"), tol);
    let want = |name: &str| at(&format!("grad.{name}")).clone();
    same_gradients(&label, (&params, &names), &grads, want, tol);
}

/// Sum of cross entropies of an Elman language model, with the full and with the truncated way back; Jacobians.
fn training(case: &Case) {
    let at = |name: &str| case.tensor(name).unwrap();
    let ([tokens, inputs], [units, _], [outputs]) = (
        at("train/x").dims().unwrap(),
        at("train/Whh").dims().unwrap(),
        at("train/by").dims().unwrap(),
    );
    let d = inputs.max(outputs);
    let names = [
        ("weight_ih", "Whx"),
        ("bias", "bh"),
        ("weight_hh", "Whh"),
        ("out_proj.weight", "Wyh"),
        ("out_proj.bias", "by"),
    ];
    let mut params = Params::new();
    let source = source(case, "train", &names);
    let mut scope = Scope::from_source(&mut params, &source, &Device::Cpu);
    let options = Options::new(d, json!({"head_dim": units}));
    let mixer: Box<dyn Mixer> = (elman::ENTRY.build)(&options, &mut scope).unwrap();
    let x = padded(at("train/x"), &[tokens, d]).unsqueeze(0).unwrap();
    let start = || mixer.init_state(1, DType::F64).unwrap();
    let tol = tolerance(case);
    let leaves: Vec<Tensor> = params.iter().map(|p| p.get()).collect();
    let truncation = case.number("truncate_every").unwrap() as usize;
    for (tag, window) in [("bptt", tokens), ("tbptt", truncation)] {
        let label = format!("{} {tag}", case.label);
        let y = truncated(&*mixer, &x, &mut start(), window).unwrap();
        let logits = y.narrow(-1, 0, outputs).unwrap().squeeze(0).unwrap();
        let loss = logits
            .cross_entropy(at("train/targets"))
            .unwrap()
            .sum_all()
            .unwrap();
        assert_close(
            &format!("{label}: loss"),
            &loss,
            at(&format!("{tag}/loss")),
            tol,
        );
        let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
        let want = |name: &str| at(&format!("{tag}/grad.{name}")).clone();
        same_gradients(&label, (&params, &names), &grads, want, tol);
    }
    let norms = jacobian_norms(&*mixer, &x, &start(), "state").unwrap();
    let norms = Tensor::from_vec(norms, &[tokens], &Device::Cpu).unwrap();
    let want = at("train/jacobian_norms_T_minus_t");
    assert_close(
        &format!("{}: jacobian norms", case.label),
        &norms,
        want,
        tol,
    );
}

#[test]
fn golden_rnn_classics() {
    let (mut cells, mut trainings) = (0, 0);
    for case in cases(SLUG).unwrap() {
        match case.kind() {
            "cells" => {
                elman(&case, "elman_tanh", Activation::Tanh);
                elman(&case, "elman_sigmoid", Activation::Sigmoid);
                jordan(&case, "jordan");
                lstm(&case, "lstm", Gates::Both, false);
                lstm(&case, "lstm_peephole", Gates::Both, true);
                lstm(&case, "lstm_1997_no_forget", Gates::Input, false);
                gru(&case, "gru_cho", Reset::Before);
                gru(&case, "gru_cudnn", Reset::After);
                brnn(&case, "brnn_sigmoid");
                cells += 1;
            }
            "training_and_losses" => {
                training(&case);
                trainings += 1;
            }
            kind => panic!("{}: unknown kind {kind:?}", case.label),
        }
    }
    assert!(
        cells > 0 && trainings > 0,
        "{cells} cases of cells, {trainings} of training"
    );
}
