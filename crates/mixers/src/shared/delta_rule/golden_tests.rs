//! Golden vectors of the operations: `gated-deltanet-2` and `delta-family`.

use weft_tensor::{DType, Tensor, grad};

use super::blocks::{LANES, Lane, Left, solve_lower};
use super::keys::{Keys, Pairs};
use super::*;
use crate::error::Result;
use crate::golden::{Case, assert_close, cases};

/// What the reference implementations of a kind of case feed to the rule.
type Gates = fn(&Case) -> Result<(Option<Tensor>, Tensor, Tensor)>;

/// The kinds of operation that the rule covers.
const KINDS: [(&str, Gates); 4] = [
    ("op", separate_gates),
    ("op:deltanet", beta_only),
    ("op:gdn", tied_gates),
    ("op:kda", tied_gates),
];

fn separate_gates(case: &Case) -> Result<(Option<Tensor>, Tensor, Tensor)> {
    Ok((
        Some(case.tensor("g")?.clone()),
        case.tensor("b")?.clone(),
        case.tensor("w")?.clone(),
    ))
}

fn tied_gates(case: &Case) -> Result<(Option<Tensor>, Tensor, Tensor)> {
    let beta = case.tensor("beta")?;
    Ok((Some(case.tensor("g")?.clone()), beta.clone(), beta.clone()))
}

fn beta_only(case: &Case) -> Result<(Option<Tensor>, Tensor, Tensor)> {
    let beta = case.tensor("beta")?;
    Ok((None, beta.clone(), beta.clone()))
}

fn packed(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let flat = |x: &Tensor| x.flatten(2, 3);
    Ok(Tensor::cat(&[&flat(q)?, &flat(k)?, &flat(v)?], -1)?)
}

fn zero_state(case: &Case, v: &Tensor, k: &Tensor) -> Result<Tensor> {
    if let Some(state) = case.optional("S0") {
        return Ok(state.clone());
    }
    let shape = [v.dim(0)?, v.dim(2)?, k.dim(3)?, v.dim(3)?];
    Ok(Tensor::zeros(&shape, v.dtype(), &v.device()))
}

/// The inputs of a case as leaves, by the names that the file uses; both gates may be one leaf.
struct Leaves {
    names: Vec<&'static str>,
    tensors: Vec<Tensor>,
    operands: Operands,
}

fn leaves(case: &Case, gates: Gates, dtype: DType) -> Result<Leaves> {
    let leaf = |x: &Tensor| -> Result<Tensor> { Ok(x.to_dtype(dtype)?.detach().requires_grad()?) };
    let (q, k, v) = (
        leaf(case.tensor("q")?)?,
        leaf(case.tensor("k")?)?,
        leaf(case.tensor("v")?)?,
    );
    let state = leaf(&zero_state(case, &v, &k)?)?;
    let (decay, erase, write) = gates(case)?;
    let tied = case.optional("beta").is_some();
    let decay = decay.as_ref().map(leaf).transpose()?;
    let erase = leaf(&erase)?;
    let write = if tied { erase.clone() } else { leaf(&write)? };
    let mut named = vec![("q", &q), ("k", &k), ("v", &v)];
    named.extend(decay.iter().map(|g| ("g", g)));
    named.extend(if tied {
        vec![("beta", &erase)]
    } else {
        vec![("b", &erase), ("w", &write)]
    });
    named.extend(case.optional("S0").map(|_| ("S0", &state)));
    let (names, tensors) = named.into_iter().map(|(n, t)| (n, t.clone())).unzip();
    let operands = Operands {
        qkv: packed(&q, &k, &v)?,
        decay,
        erase,
        write,
        state,
    };
    Ok(Leaves {
        names,
        tensors,
        operands,
    })
}

/// Values and gradients of one way to compute a case.
fn check(
    case: &Case,
    gates: Gates,
    dtype: DType,
    tolerance: [f64; 2],
    how: &str,
    rule: impl Fn(&Operands) -> weft_tensor::Result<(Tensor, Tensor)>,
) -> Result<()> {
    let l = leaves(case, gates, dtype)?;
    let label = |name: &str| format!("{} {how} {dtype}: {name}", case.label);
    let (o, state) = rule(&l.operands)?;
    assert_close(&label("o"), &o, case.tensor("o")?, tolerance[0]);
    assert_close(
        &label("final_state"),
        &state,
        case.tensor("final_state")?,
        tolerance[0],
    );
    let weighted = |x: &Tensor, w: &str| -> Result<Tensor> {
        Ok(x.mul(&case.tensor(w)?.to_dtype(dtype)?)?.sum_all()?)
    };
    let loss = weighted(&o, "w_o")?.add(&weighted(&state, "w_S")?)?;
    let grads = grad(&[&loss], None, &l.tensors.iter().collect::<Vec<_>>(), false)?;
    for (name, g) in l.names.iter().zip(grads) {
        let want = case.tensor(&format!("grad.{name}"))?;
        assert_close(
            &label(&format!("grad.{name}")),
            &g.unwrap(),
            want,
            tolerance[1],
        );
    }
    Ok(())
}

fn check_op(case: &Case, gates: Gates) -> Result<()> {
    assert_eq!(case.number("qk_l2norm_eps")?, L2_EPS, "{}", case.label);
    let exact = [case.number("tolerance")?; 2];
    check(case, gates, DType::F64, exact, "reference", recurrence)?;
    for chunk in [1, 16, 32, 64] {
        let rule = |x: &Operands| delta_rule(x, chunk);
        check(
            case,
            gates,
            DType::F64,
            exact,
            &format!("chunk {chunk}"),
            rule,
        )?;
        // f32 has 7 digits; the sheet of the operation asks for 1e-4 of the largest element. Gradients by
        // automatic differentiation of f32 are no closer.
        check(
            case,
            gates,
            DType::F32,
            [2e-5, 1e-4],
            &format!("chunk {chunk}"),
            rule,
        )?;
    }
    let stream = |x: &Operands| token_by_token(x);
    let (o, state) = weft_tensor::no_grad(|| stream(&leaves(case, gates, DType::F64)?.operands))?;
    assert_close(
        &format!("{} step: o", case.label),
        &o,
        case.tensor("o")?,
        exact[0],
    );
    assert_close(
        &format!("{} step: state", case.label),
        &state,
        case.tensor("final_state")?,
        exact[0],
    );
    check_chunk(case, gates, exact[0])
}

fn token_by_token(x: &Operands) -> Result<(Tensor, Tensor)> {
    let (mut state, mut outputs) = (x.state.detach(), vec![]);
    for t in 0..x.qkv.dim(1)? {
        let at = |x: &Tensor| x.detach().narrow(1, t, 1);
        let decay = x.decay.as_ref().map(at).transpose()?;
        let one = Operands {
            qkv: at(&x.qkv)?,
            decay,
            erase: at(&x.erase)?,
            write: at(&x.write)?,
            state,
        };
        let (o, after) = delta_rule_step(one)?;
        outputs.push(o);
        state = after;
    }
    Ok((Tensor::cat(&outputs.iter().collect::<Vec<_>>(), 1)?, state))
}

/// The quantities inside a chunk: names `chunk<C>_n<index>/<quantity>`, each [B, HV, C, ..].
fn check_chunk(case: &Case, gates: Gates, tolerance: f64) -> Result<()> {
    let Some((head, _)) = case
        .with_prefix("chunk")
        .keys()
        .find_map(|k| k.split_once('/'))
        .map(|(h, t)| (h.to_owned(), t.len()))
    else {
        return Ok(());
    };
    let (length, index) = head.split_once("_n").unwrap();
    let (chunk, c): (usize, usize) = (length.parse().unwrap(), index.parse().unwrap());
    let x = leaves(case, gates, DType::F64)?.operands;
    let dims = x.dims()?;
    let inputs = x.inputs::<f64>()?;
    let l = Layout::new(dims, &inputs, chunk);
    let saved = forward(dims, &inputs, chunk, true).saved.unwrap();
    assert_eq!(
        l.span(c).tokens,
        chunk,
        "{}: written for whole chunks",
        case.label
    );
    let (mut keys, mut pairs) = (Keys::new(&l), Pairs::new(&l));
    let mut got: [Vec<f64>; 6] = Default::default();
    for index in 0..l.units() {
        keys.load(&l, &inputs, l.unit(index), l.span(c));
        pairs.build(&l, &keys, chunk);
        let inverse = |x: &[Lane<f64>], groups: usize, width: usize| {
            let mut y = vec![vec![0.0; width]; chunk];
            for j in 0..groups {
                let mut column: Vec<Lane<f64>> = (0..chunk).map(|r| x[r * groups + j]).collect();
                solve_lower(chunk, Left::rows(&pairs.t, l.row_lanes), &mut column);
                for (y, lane) in y.iter_mut().zip(column) {
                    for (y, x) in y[j * LANES..].iter_mut().zip(lane) {
                        *y = x;
                    }
                }
            }
            y.concat()
        };
        let square = |x: &[Lane<f64>], keep: fn(usize, usize) -> bool| -> Vec<f64> {
            let at = |r: usize, s: usize| {
                if keep(r, s) {
                    x[r * l.row_lanes + s / LANES][s % LANES]
                } else {
                    0.0
                }
            };
            (0..chunk)
                .flat_map(|r| (0..chunk).map(move |s| (r, s)))
                .map(|(r, s)| at(r, s))
                .collect()
        };
        let y = inverse(&pairs.eg, l.key_lanes, dims.key_dim);
        let panel = |column: usize, at: usize| (index * l.panels + column / LANES) * l.chunks + at;
        let state = |k: usize, column: usize, at: usize| {
            saved.states[panel(column, at) * l.channels() + k][column % LANES]
        };
        // The heads of a unit differ in their columns only.
        for head in 0..l.heads {
            let columns = head * dims.value_dim..(head + 1) * dims.value_dim;
            let (mut r_values, mut u) = (vec![], vec![]);
            for t in 0..chunk {
                for column in columns.clone() {
                    let r = saved.values[panel(column, c) * l.rows() + t][column % LANES];
                    let y = &y[t * dims.key_dim..][..dims.key_dim];
                    let stored: f64 = y
                        .iter()
                        .enumerate()
                        .map(|(k, y)| y * state(k, column, c))
                        .sum();
                    r_values.push(r);
                    // R = U - Y S0.
                    u.push(r + stored);
                }
            }
            let end = (0..dims.key_dim).flat_map(|k| columns.clone().map(move |v| (k, v)));
            let parts = [
                square(&pairs.t, |r, s| r > s),
                square(&pairs.p, |r, s| r >= s),
                y.clone(),
                u,
                r_values,
                end.map(|(k, v)| state(k, v, c + 1)).collect(),
            ];
            got.iter_mut()
                .zip(parts)
                .for_each(|(all, part)| all.extend(part));
        }
    }
    for (name, got) in ["T", "Aqk", "Y", "U", "R", "S_end"].iter().zip(got) {
        let name = format!("chunk{head}/{name}");
        let want = case.tensor(&name)?;
        let got = Tensor::from_vec(got, want.shape(), &want.device())?;
        assert_close(&format!("{}: {name}", case.label), &got, want, tolerance);
    }
    Ok(())
}

/// One gate for both sides is KDA; the decay of a head besides is Gated DeltaNet.
fn check_reductions(case: &Case) -> Result<()> {
    let (k, v, beta) = (case.tensor("k")?, case.tensor("v")?, case.tensor("beta")?);
    let wide = |x: &Tensor, width: usize| -> Result<Tensor> {
        let [b, t, h] = x.dims()?;
        Ok(x.unsqueeze(-1)?.broadcast_to(&[b, t, h, width])?)
    };
    for (name, g) in [
        ("kda", case.tensor("g")?),
        ("gdn", case.tensor("g_scalar")?),
    ] {
        let channels = if g.rank() == 3 {
            wide(g, k.dim(3)?)?
        } else {
            g.clone()
        };
        let operands = |decay: Tensor, erase: Tensor, write: Tensor| -> Result<Operands> {
            let qkv = packed(case.tensor("q")?, k, v)?;
            Ok(Operands {
                qkv,
                decay: Some(decay),
                erase,
                write,
                state: zero_state(case, v, k)?,
            })
        };
        let separate = operands(channels, wide(beta, k.dim(3)?)?, wide(beta, v.dim(3)?)?)?;
        let tied = operands(g.clone(), beta.clone(), beta.clone())?;
        for (gates, x) in [("separate gates", separate), ("one gate", tied)] {
            for (form, (o, state)) in [
                ("reference", recurrence(&x)?),
                ("chunk", delta_rule(&x, 16)?),
            ] {
                let label = format!("{} {name} by {gates}, {form}", case.label);
                let tolerance = case.number("tolerance")?;
                assert_close(&label, &o, case.tensor(&format!("o_{name}"))?, tolerance);
                assert_close(
                    &label,
                    &state,
                    case.tensor(&format!("state_{name}"))?,
                    tolerance,
                );
            }
        }
    }
    Ok(())
}

/// Runs every case of a file that is an operation of the family and lists those that are not.
fn check_file(slug: &str, others: &[&str]) {
    let mut run = 0;
    for case in cases(slug).unwrap() {
        let kind = case.kind();
        if let Some((_, gates)) = KINDS.iter().find(|(k, _)| *k == kind) {
            check_op(&case, *gates).unwrap();
            run += 1;
        } else if kind == "reductions" {
            check_reductions(&case).unwrap();
            run += 1;
        } else {
            assert!(
                others.contains(&kind),
                "{}: unknown kind {kind:?}",
                case.label
            );
            println!("{}: {kind} is not an operation of this family", case.label);
        }
    }
    assert!(run > 0, "{slug}: no case was run");
}

#[test]
fn golden_gated_deltanet_2() {
    check_file("gated-deltanet-2", &["layer"]);
}

#[test]
fn golden_delta_family() {
    check_file(
        "delta-family",
        &["op:mamba2_ssd", "op:mamba3_siso", "op:mamba3_mimo"],
    );
}
