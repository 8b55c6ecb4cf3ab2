//! Golden vectors of the operations: `lightning-attention`, `hybrid-systematic` and `delta-family`.

use weft_tensor::{DType, Tensor, grad};

use super::*;
use crate::error::Result;
use crate::golden::{Case, assert_close, cases};

/// Leaves by the names that the file uses, and the operands made of them.
type Build = fn(&Leaves) -> Result<Operands>;

/// What a kind of case is to the engine.
struct Kind {
    /// What starts the kind's name.
    name: &'static str,
    inputs: &'static [&'static str],
    state: &'static str,
    build: Build,
    /// From the engine's outputs to the case's.
    output: fn(&Leaves, Tensor) -> Result<Tensor>,
    /// Names of outputs and weights.
    outputs: [&'static str; 2],
    /// Whether the state is stored [.., V, K].
    turned: bool,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "op:retention",
        inputs: &["q", "k", "v"],
        state: "S0",
        build: |l| {
            let [b, t, h, n] = l.get("q")?.dims()?;
            let gammas: Vec<f64> = (0..h)
                .map(|i| (-(-5.0 - i as f64).exp2()).ln_1p())
                .collect();
            let g = Tensor::from_vec(gammas, &[h], &l.get("q")?.device())?;
            let g = g.broadcast_to(&[b, t, h])?;
            l.operands("q", "k", "v", g, (n as f64).powf(-0.5))
        },
        output: |_, o| Ok(o),
        outputs: ["o", "w_o"],
        turned: false,
    },
    Kind {
        name: "op:gla",
        inputs: &["q", "k", "v", "gk"],
        state: "S0",
        build: |l| {
            let n = l.get("q")?.dim(-1)? as f64;
            l.operands("q", "k", "v", l.get("gk")?.clone(), n.powf(-0.5))
        },
        output: |_, o| Ok(o),
        outputs: ["o", "w_o"],
        turned: false,
    },
    Kind {
        name: "op:hgrn2",
        inputs: &["q", "v", "gk"],
        state: "S0",
        build: |l| {
            let g = l.get("gk")?;
            let scale = (g.dim(-1)? as f64).powf(-0.5);
            let k = g.exp()?.affine(-1.0, 1.0)?;
            Ok(Operands {
                k,
                ..l.operands("q", "q", "v", g.clone(), scale)?
            })
        },
        output: |_, o| Ok(o),
        outputs: ["o", "w_o"],
        turned: false,
    },
    Kind {
        name: "op:mamba2_ssd",
        inputs: &["x", "dt", "dt_bias", "A", "B", "C", "D"],
        state: "S0",
        build: |l| {
            let dt = l.get("dt")?.add(l.get("dt_bias")?)?.softplus()?;
            let v = l.get("x")?.mul(&dt.unsqueeze(-1)?)?;
            let x = l.operands("C", "B", "x", dt.mul(l.get("A")?)?, 1.0)?;
            Ok(Operands {
                v,
                state: x.state.transpose(-1, -2)?,
                ..x
            })
        },
        output: |l, o| Ok(o.add(&l.get("x")?.mul(&l.get("D")?.unsqueeze(-1)?)?)?),
        outputs: ["y", "w_o"],
        turned: true,
    },
    // The core of Lightning Attention: the file has the heads in front of the tokens.
    Kind {
        name: "",
        inputs: &["q", "k", "v"],
        state: "init_state",
        build: |l| {
            let [b, h, t, _] = l.get("q")?.dims()?;
            let g = l.constant("slope")?.neg()?.broadcast_to(&[b, t, h])?;
            let x = l.operands("q", "k", "v", g, 1.0)?;
            Ok(Operands {
                q: x.q.transpose(1, 2)?,
                k: x.k.transpose(1, 2)?,
                v: x.v.transpose(1, 2)?,
                ..x
            })
        },
        output: |_, o| Ok(o.transpose(1, 2)?),
        outputs: ["o", "w"],
        turned: false,
    },
];

struct Leaves<'a> {
    case: &'a Case,
    dtype: DType,
    all: Vec<(&'static str, Tensor)>,
}

impl Leaves<'_> {
    fn get(&self, name: &str) -> Result<&Tensor> {
        match self.all.iter().find(|(n, _)| *n == name) {
            Some((_, x)) => Ok(x),
            None => self.case.tensor(name),
        }
    }

    fn constant(&self, name: &str) -> Result<Tensor> {
        Ok(self.case.tensor(name)?.to_dtype(self.dtype)?)
    }

    fn operands(&self, q: &str, k: &str, v: &str, decay: Tensor, scale: f64) -> Result<Operands> {
        let (_, state) = &self.all[self.all.len() - 1];
        Ok(Operands {
            q: self.get(q)?.clone(),
            k: self.get(k)?.clone(),
            v: self.get(v)?.clone(),
            decay: decay.to_dtype(self.dtype)?,
            scale,
            state: state.clone(),
        })
    }
}

fn leaves<'a>(case: &'a Case, kind: &Kind, dtype: DType) -> Result<Leaves<'a>> {
    let leaf = |x: &Tensor| -> Result<Tensor> { Ok(x.to_dtype(dtype)?.detach().requires_grad()?) };
    let mut all = vec![];
    for name in kind.inputs {
        all.push((*name, leaf(case.tensor(name)?)?));
    }
    let last = case.tensor("final_state")?;
    let state = case
        .optional(kind.state)
        .cloned()
        .unwrap_or_else(|| last.zeros_like());
    all.push((kind.state, leaf(&state)?));
    Ok(Leaves { case, dtype, all })
}

type Run<'a> = &'a dyn Fn(&Operands) -> weft_tensor::Result<(Tensor, Tensor)>;

/// Values and gradients of one way to compute a case.
fn check(
    case: &Case,
    kind: &Kind,
    dtype: DType,
    tolerance: [f64; 2],
    how: &str,
    run: Run,
) -> Result<()> {
    let l = leaves(case, kind, dtype)?;
    let label = |name: &str| format!("{} {how} {dtype}: {name}", case.label);
    let (o, state) = run(&(kind.build)(&l)?)?;
    let o = (kind.output)(&l, o)?;
    let state = if kind.turned {
        state.transpose(-1, -2)?
    } else {
        state
    };
    let [output, weight] = kind.outputs;
    assert_close(&label(output), &o, case.tensor(output)?, tolerance[0]);
    assert_close(
        &label("final_state"),
        &state,
        case.tensor("final_state")?,
        tolerance[0],
    );
    let mut loss = o.mul(&l.constant(weight)?)?.sum_all()?;
    if case.optional("w_S").is_some() {
        loss = loss.add(&state.mul(&l.constant("w_S")?)?.sum_all()?)?;
    }
    let tensors: Vec<&Tensor> = l.all.iter().map(|(_, x)| x).collect();
    for ((name, _), g) in l.all.iter().zip(grad(&[&loss], None, &tensors, false)?) {
        let name = format!("grad.{name}");
        if let Some(want) = case.optional(&name) {
            assert_close(&label(&name), &g.unwrap(), want, tolerance[1]);
        } else {
            assert!(name.ends_with(kind.state), "{}", label(&name));
        }
    }
    Ok(())
}

fn check_op(case: &Case, kind: &Kind) -> Result<()> {
    let exact = [case.number("tolerance").or_else(|_| case.number("tol"))?; 2];
    check(case, kind, DType::F64, exact, "reference", &recurrence)?;
    for chunk in [1, 5, 16, 32, 64] {
        let how = format!("chunk {chunk}");
        let run = |x: &Operands| decayed(x, chunk);
        check(case, kind, DType::F64, exact, &how, &run)?;
        // f32 has 7 digits, and the sums of a gradient cancel.
        check(case, kind, DType::F32, [2e-5, 1e-4], &how, &run)?;
    }
    let l = leaves(case, kind, DType::F64)?;
    let x = (kind.build)(&l)?;
    let (o, state) = weft_tensor::no_grad(|| token_by_token(&x))?;
    let o = (kind.output)(&l, o)?;
    let state = if kind.turned {
        state.transpose(-1, -2)?
    } else {
        state
    };
    assert_close(
        &format!("{} step: o", case.label),
        &o,
        case.tensor(kind.outputs[0])?,
        exact[0],
    );
    assert_close(
        &format!("{} step: state", case.label),
        &state,
        case.tensor("final_state")?,
        exact[0],
    );
    Ok(())
}

fn token_by_token(x: &Operands) -> Result<(Tensor, Tensor)> {
    let (mut state, mut outputs) = (x.state.detach(), vec![]);
    for t in 0..x.q.dim(1)? {
        let at = |x: &Tensor| x.detach().narrow(1, t, 1);
        let one = Operands {
            q: at(&x.q)?,
            k: at(&x.k)?,
            v: at(&x.v)?,
            decay: at(&x.decay)?,
            scale: x.scale,
            state,
        };
        let (o, after) = decayed_step(one)?;
        outputs.push(o);
        state = after;
    }
    Ok((Tensor::cat(&outputs.iter().collect::<Vec<_>>(), 1)?, state))
}

/// Runs every case of a file that the engine covers; all others must be among `others`.
fn check_file(slug: &str, others: &[&str]) {
    let mut run = 0;
    for case in cases(slug).unwrap() {
        let (name, kind) = (case.label.rsplit(':').next().unwrap(), case.kind());
        match KINDS.iter().find(|k| k.name == kind) {
            Some(kind) if !others.contains(&name) => {
                check_op(&case, kind).unwrap();
                run += 1;
            }
            _ => assert!(
                others.contains(&kind) || others.contains(&name),
                "{}: unknown kind {kind:?}",
                case.label
            ),
        }
    }
    assert!(run > 0, "{slug}: no case was run");
}

#[test]
fn golden_lightning_attention_core() {
    check_file("lightning-attention", &["slopes", "tnl"]);
}

#[test]
fn golden_hybrid_systematic_ops() {
    let others = [
        "op:hgrn",
        "layer:retnet",
        "layer:gla",
        "layer:hgrn",
        "layer:hgrn2",
    ];
    check_file("hybrid-systematic", &others);
}

#[test]
fn golden_delta_family_ssd() {
    let others = [
        "op:deltanet",
        "op:gdn",
        "op:kda",
        "op:mamba3_siso",
        "op:mamba3_mimo",
    ];
    check_file("delta-family", &others);
}
