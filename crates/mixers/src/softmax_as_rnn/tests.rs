//! Every variant against the authors' module, the Kronecker recurrence against softmax, and the variants that the laws
//! cannot hold.

use serde_json::json;
use weft_tensor::{DType, Device, Rng, Tensor, grad, no_grad};

use super::variants::{self, Norm, VARIANTS};
use super::{ENTRY, NAME, kronecker};
use crate::error::Error;
use crate::golden::{Case, assert_close, cases, relative_error};
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Params, Scope};
use crate::registry::Options;

const SLUG: &str = "softmax-as-rnn";

fn normal(seed: u64, shape: &[usize], std: f64) -> Tensor {
    Rng::new(seed)
        .normal(shape, 0.0, std, DType::F64, &Device::Cpu)
        .unwrap()
}

/// Names in the file that differ from those of the table.
fn table_name(name: &str) -> &str {
    name.strip_suffix("_paper").unwrap_or(name)
}

/// The layer of a variant with the file's parameters; `whole`: with its output projection, else the identity.
fn layer(case: &Case, variant: &str, whole: bool) -> (Box<dyn Mixer>, Params) {
    let size = |key: &str| case.number(key).unwrap() as usize;
    let (h, d) = (size("H"), size("d"));
    let width = case.tensor("x").unwrap().dim(-1).unwrap();
    let settings = json!({
        "variant": variant, "num_heads": h, "head_dim": d, "rope_theta": case.info["rope_theta"],
    });
    let source = |name: &str, _: &[usize]| {
        if name == "o_proj.weight" && !whole {
            return Ok(Tensor::eye(h * d, DType::F64, &Device::Cpu)?);
        }
        let own = format!("param/{variant}/{name}");
        let shared = format!("param/{name}");
        match case.optional(&own).or_else(|| case.optional(&shared)) {
            Some(x) => Ok(x.clone()),
            None => Err(Error::config(
                &case.label,
                format!("has no parameter {own}"),
            )),
        }
    };
    let mut params = Params::new();
    let mut scope = Scope::from_source(&mut params, &source, &Device::Cpu);
    (
        (ENTRY.build)(&Options::new(width, settings), &mut scope).unwrap(),
        params,
    )
}

fn forward(mixer: &dyn Mixer, x: &Tensor, form: Form) -> Tensor {
    let mut state = mixer.init_state(x.dim(0).unwrap(), x.dtype()).unwrap();
    mixer
        .forward(x, &mut state, &Call::with_form(form))
        .unwrap()
}

fn attention_variants(case: &Case) -> usize {
    let tol = case.number("tol").unwrap();
    let mut run = 0;
    for (file, heads) in case.with_prefix("heads/") {
        let variant = table_name(file);
        let [b, h, t, d] = heads.dims().unwrap();
        let heads = heads
            .permute(&[0, 2, 1, 3])
            .unwrap()
            .reshape(&[b, t, h * d])
            .unwrap();
        for form in [Form::Reference, Form::Chunk] {
            let label = |what: &str| format!("{} {file} {form}: {what}", case.label);
            let x = case.tensor("x").unwrap();
            // The identity stands for the output projection only where the widths agree.
            if h * d == x.dim(-1).unwrap() {
                let (mixer, _) = layer(case, variant, false);
                assert_close(&label("heads"), &forward(&*mixer, x, form), &heads, tol);
            }
            let Some(y) = case.optional(&format!("y/{file}")) else {
                continue;
            };
            let x = x.requires_grad().unwrap();
            let (mixer, _) = layer(case, variant, true);
            let got = forward(&*mixer, &x, form);
            assert_close(&label("y"), &got, y, tol);
            let loss = got
                .mul(case.tensor("w_o").unwrap())
                .unwrap()
                .sum_all()
                .unwrap();
            let g = grad(&[&loss], None, &[&x], false)
                .unwrap()
                .remove(0)
                .unwrap();
            let want = case.tensor(&format!("grad.x/{file}")).unwrap();
            assert_close(&label("grad.x"), &g, want, tol);
        }
        run += 1;
    }
    run
}

fn kronecker_recurrence(case: &Case) {
    let tol = case.number("tol").unwrap();
    let at = |name: &str| case.tensor(name).unwrap();
    let order = case.number("max_order").unwrap() as usize;
    let terms = kronecker(at("q"), at("k"), at("v"), order).unwrap();
    let label = |what: &str| format!("{}: {what}", case.label);
    assert_close(
        &label("numerators"),
        &terms.numerators,
        at("numerator_by_order"),
        tol,
    );
    let mut error = f64::INFINITY;
    for p in 0..=order {
        let name = format!("taylor_softmax/{p}");
        let got = terms.softmax(p).unwrap();
        assert_close(&label(&name), &got, at(&name), tol);
        // Of even orders the error falls, once they are beyond e max|s|.
        if p % 2 == 0 && p > 2 {
            let now = relative_error(&got, at("softmax")).unwrap();
            assert!(
                now < error,
                "{}: error {now} at order {p}, {error} before",
                case.label
            );
            error = now;
        }
    }
    let length = |x: &Tensor| {
        x.square()
            .unwrap()
            .sum(&[-1], true)
            .unwrap()
            .sqrt()
            .unwrap()
    };
    let num = terms.numerator(order).unwrap();
    let unit = num.div(&length(&num)).unwrap();
    assert_close(&label("l2norm_taylor"), &unit, at("l2norm_taylor"), tol);
    // The norm cancels any factor of a row: that of softmax is that of its numerator.
    let softmax = at("softmax");
    let unit = softmax.div(&length(softmax)).unwrap();
    assert_close(
        &label("l2norm_of_exp_numerator"),
        &unit,
        at("l2norm_of_exp_numerator"),
        tol,
    );
}

#[test]
fn golden_softmax_as_rnn() {
    let (mut variants, mut recurrences) = (0, 0);
    for case in cases(SLUG).unwrap() {
        match case.kind() {
            "attention_variants" => variants += attention_variants(&case),
            "kronecker_recurrence" => {
                kronecker_recurrence(&case);
                recurrences += 1;
            }
            kind => panic!("{}: unknown kind {kind:?}", case.label),
        }
    }
    assert!(
        variants > 0 && recurrences > 0,
        "{variants} variants, {recurrences} recurrences"
    );
}

fn built(variant: &str, order: usize) -> (Box<dyn Mixer>, Params) {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 3, DType::F64, &Device::Cpu);
    let table = json!({"variant": variant, "num_heads": 2, "head_dim": 6, "order": order});
    (
        (ENTRY.build)(&Options::new(12, table), &mut scope).unwrap(),
        params,
    )
}

/// All of the table, also what is not among the samples of the laws: block form and token by token against the plain
/// form, and gradients.
#[test]
fn every_variant_streams() {
    let x = normal(1, &[2, 150, 12], 1.0).requires_grad().unwrap();
    for v in VARIANTS {
        let (mixer, params) = built(v.name, 80);
        let outcome = |form| {
            let y = forward(&*mixer, &x, form);
            let loss = y
                .mul(&normal(2, y.shape(), 1.0))
                .unwrap()
                .sum_all()
                .unwrap();
            let mut leaves = vec![x.clone()];
            leaves.extend(params.iter().map(|p| p.get()));
            let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
            (y, grads)
        };
        let (want, got) = (outcome(Form::Reference), outcome(Form::Chunk));
        assert_close(&format!("{}: blocks", v.name), &got.0, &want.0, 1e-11);
        for (i, (g, w)) in got.1.iter().zip(&want.1).enumerate() {
            // A norm cancels the gate in front of it: its gradients are 0 but for rounding.
            let cancelled = v.norm == Norm::L2 && v.out_gates == [true, false] && i > 4;
            let (Some(g), Some(w), false) = (g, w, cancelled) else {
                continue;
            };
            assert_close(&format!("{}: gradient {i}", v.name), g, w, 1e-9);
        }
        let mut state = mixer.init_state(2, DType::F64).unwrap();
        let tokens: Vec<Tensor> = (0..150)
            .map(|t| {
                no_grad(|| mixer.forward(&x.narrow(1, t, 1).unwrap(), &mut state, &Call::default()))
                    .unwrap()
            })
            .collect();
        let y = Tensor::cat(&tokens.iter().collect::<Vec<_>>(), 1).unwrap();
        assert_close(&format!("{}: token by token", v.name), &y, &want.0, 1e-11);
    }
}

#[test]
fn a_polynomial_of_high_order_is_softmax() {
    let x = normal(4, &[1, 20, 12], 1.0);
    let (softmax, taylor) = (built("softmax", 0).0, built("softmax_taylor", 80).0);
    let want = forward(&*softmax, &x, Form::Reference);
    assert_close(
        "80 terms",
        &forward(&*taylor, &x, Form::Chunk),
        &want,
        1e-12,
    );
    let low = forward(&*built("softmax_taylor", 2).0, &x, Form::Chunk);
    assert!(relative_error(&low, &want).unwrap() > 1e-4);
}

/// No gradient flows through a detached denominator: that of x differs from the undetached one, the values do not.
#[test]
fn a_detached_denominator_changes_gradients_only() {
    let x = normal(5, &[1, 20, 12], 1.0).requires_grad().unwrap();
    let outcome = |variant| {
        let y = forward(&*built(variant, 0).0, &x, Form::Chunk);
        let loss = y.square().unwrap().sum_all().unwrap();
        (
            y,
            grad(&[&loss], None, &[&x], false)
                .unwrap()
                .remove(0)
                .unwrap(),
        )
    };
    let (kept, detached) = (
        outcome("softmax_clamp_denom"),
        outcome("softmax_detach_denom"),
    );
    assert_close("values", &detached.0, &kept.0, 1e-14);
    assert!(relative_error(&detached.1, &kept.1).unwrap() > 1e-3);
}

#[test]
fn an_unknown_variant_is_refused_with_the_nearest_name() {
    let e = variants::find(NAME, "softmax_gates")
        .unwrap_err()
        .to_string();
    assert_eq!(
        e,
        "softmax_as_rnn: no variant \"softmax_gates\", did you mean \"softmax_gate\"?"
    );
}
