//! The recurrence and the layer against the authors' code: values and all gradients, with both rules of clipping.

use serde_json::json;
use weft_tensor::{DType, Tensor, grad};

use super::ENTRY;
use super::op::{Clip, Operands, m2rnn, m2rnn_step, recurrence};
use crate::golden::{Case, assert_close, cases};
use crate::laws::test_device;
use crate::mixer::Call;
use crate::params::{Params, Scope};
use crate::registry::Options;

fn operation(case: &Case) {
    let tol = case.number("tol").unwrap();
    let names = ["q", "k", "v", "f", "W", "h0"];
    let leaf = |name: &str| match case.optional(name) {
        Some(x) => x.requires_grad().unwrap(),
        None => {
            let size = |key| case.number(key).unwrap() as usize;
            let heads = ["Nq", "Nk", "Nv", "Nf", "Nw"]
                .map(size)
                .into_iter()
                .max()
                .unwrap();
            let shape = [size("B"), heads, size("K"), size("V")];
            Tensor::zeros(&shape, DType::F64, &test_device())
                .requires_grad()
                .unwrap()
        }
    };
    let leaves = names.map(leaf);
    let [q, k, v, f, w, state] = leaves.clone();
    let x = Operands {
        q,
        k,
        v,
        f,
        w,
        state,
        linear: false,
    };
    let clip = case.info["clip"].as_f64();
    let rules: Vec<(Clip, &str)> = match clip {
        None => vec![(Clip::None, "grad")],
        Some(c) => vec![(Clip::Total(c), "grad"), (Clip::Carry(c), "grad_carry")],
    };
    type Run = fn(&Operands, Clip) -> weft_tensor::Result<(Tensor, Tensor)>;
    for (form, run) in [("scan", m2rnn as Run), ("plain", recurrence)] {
        for (clip, prefix) in &rules {
            let label = |what: &str| format!("{} {form} {clip:?}: {what}", case.label);
            let (o, state) = run(&x, *clip).unwrap();
            assert_close(&label("o"), &o, case.tensor("o").unwrap(), tol);
            assert_close(
                &label("h_final"),
                &state,
                case.tensor("h_final").unwrap(),
                tol,
            );
            let part =
                |x: &Tensor, w: &str| x.mul(case.tensor(w).unwrap()).unwrap().sum_all().unwrap();
            let loss = part(&o, "w_o").add(&part(&state, "w_h")).unwrap();
            let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
            for (name, g) in names.iter().zip(grads) {
                let Some(want) = case.optional(&format!("{prefix}.{name}")) else {
                    assert_eq!(
                        (*name, case.optional("h0").is_none()),
                        ("h0", true),
                        "{}",
                        label(name)
                    );
                    continue;
                };
                assert_close(&label(&format!("{prefix}.{name}")), &g.unwrap(), want, tol);
            }
        }
    }
    let mut state = x.state.clone();
    for t in 0..x.q.dim(1).unwrap() {
        let at = |x: &Tensor| x.narrow(1, t, 1).unwrap();
        let token = Operands {
            q: at(&x.q),
            k: at(&x.k),
            v: at(&x.v),
            f: at(&x.f),
            w: x.w.clone(),
            state,
            linear: false,
        };
        let (o, after) = weft_tensor::no_grad(|| m2rnn_step(token)).unwrap();
        let want = case.tensor("o").unwrap().narrow(1, t, 1).unwrap();
        assert_close(&format!("{}: step {t}", case.label), &o, &want, tol);
        state = after;
    }
}

fn whole_layer(case: &Case) {
    let size = |key: &str| case.number(key).unwrap() as usize;
    let settings = json!({
        "num_heads": size("N"), "num_q_heads": size("Nq"), "num_k_heads": size("Nk"),
        "head_dim": size("K"), "head_v_dim": size("V"), "conv_size": size("kernel_size"),
        "residual": case.info["residual"], "norm_eps": case.info["rms_eps"],
        "gradient_clipping": case.info["clip"], "clip_rule": "total",
    });
    let values = case.with_prefix("param.");
    let device = test_device();
    for dtype in [DType::F64, DType::F32] {
        let source =
            |name: &str, _: &[usize]| Ok(values[name].to_dtype(dtype)?.to_device(&device)?);
        let mut params = Params::new();
        let mut scope = Scope::from_source(&mut params, &source, &device);
        let mixer =
            (ENTRY.build)(&Options::new(size("hidden"), settings.clone()), &mut scope).unwrap();
        assert_eq!(
            params.len(),
            values.len(),
            "{}: parameters that the layer does not have",
            case.label
        );
        let at = |name: &str| {
            case.tensor(name)
                .unwrap()
                .to_dtype(dtype)
                .unwrap()
                .to_device(&device)
                .unwrap()
        };
        let x = at("x").requires_grad().unwrap();
        let mut state = mixer.init_state(size("B"), dtype).unwrap();
        let y = mixer.forward(&x, &mut state, &Call::default()).unwrap();
        let label = |what: &str| format!("{} {dtype}: {what}", case.label);
        // The file holds an f32 run: "2e-5 relative to max abs", and sums over all tokens lose a digit more.
        let tol = 2e-5;
        assert_close(&label("y"), &y, &at("y"), tol);
        assert_close(
            &label("h_final"),
            state.get("state").unwrap(),
            &at("h_final"),
            tol,
        );
        let loss = y.mul(&at("w_o")).unwrap().sum_all().unwrap();
        let mut leaves = vec![x];
        leaves.extend(params.iter().map(|p| p.get()));
        let mut names = vec!["grad.x".to_string()];
        names.extend(params.iter().map(|p| format!("grad.param.{}", p.name())));
        let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
        for (name, g) in names.iter().zip(grads) {
            assert_close(&label(name), &g.unwrap(), &at(name), 5.0 * tol);
        }
    }
}

#[test]
fn golden_m2rnn() {
    let (mut operations, mut layers) = (0, 0);
    for case in cases("m2rnn").unwrap() {
        match case.kind() {
            "op" => {
                operation(&case);
                operations += 1;
            }
            "layer" => {
                whole_layer(&case);
                layers += 1;
            }
            kind => panic!("{}: unknown kind {kind:?}", case.label),
        }
    }
    assert!(
        operations > 0 && layers > 0,
        "{operations} operations, {layers} layers"
    );
}
