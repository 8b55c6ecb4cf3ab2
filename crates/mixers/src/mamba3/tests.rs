//! The operation against the authors' numbers; its limit is Mamba-2's recurrence.

use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::*;
use crate::golden::{Case, assert_close, cases};
use crate::shared::decayed;

/// What the recurrence of a case needs beside its operands.
const INPUTS: [&str; 13] = [
    "Q", "K", "V", "ADT", "DT", "Trap", "Q_bias", "K_bias", "Angles", "D", "Z", "MIMO_V", "MIMO_Z",
];

struct Leaves(Vec<(&'static str, Tensor)>);

impl Leaves {
    fn get(&self, name: &str) -> Result<Tensor> {
        match self.0.iter().find(|(n, _)| *n == name) {
            Some((_, x)) => Ok(x.clone()),
            None => Err(Error::config("mamba3", format!("no {name}"))),
        }
    }

    /// x [B, T, H, P] for each rank.
    fn ranks(&self, x: &str, weights: &str) -> Result<Tensor> {
        let x = self.get(x)?.unsqueeze(2)?;
        match self.get(weights) {
            Ok(w) => Ok(x.mul(&w.transpose(0, 1)?)?),
            Err(_) => Ok(x),
        }
    }
}

/// Gated outputs [B, T, H, P] (summed over ranks in the MIMO form) and the four parts of the final state.
fn run(l: &Leaves, chunk: Option<usize>) -> Result<[Tensor; 5]> {
    let turned = |x: &str| -> Result<Tensor> { Ok(l.get(x)?.transpose(1, 2)?) };
    let dt = turned("DT")?;
    let own = turned("Trap")?.sigmoid()?.mul(&dt)?;
    let angles = l.get("Angles")?;
    let [b, _, h, s] = angles.dims()?;
    let zero = Tensor::zeros(&[b, h, s], DType::F64, &Device::Cpu);
    let theta = angles::accumulate(&angles, &dt, &zero)?;
    let keys = |x: &str, bias: &str| -> Result<Tensor> {
        Ok(angles::turn(&add_bias(&l.get(x)?, &l.get(bias)?)?, &theta)?)
    };
    let (q, k, v) = (
        keys("Q", "Q_bias")?,
        keys("K", "K_bias")?,
        l.ranks("V", "MIMO_V")?,
    );
    let row = |x: &Tensor| x.select(1, 0)?.detach().mul_scalar(0.0);
    let (n, p) = (k.dim(-1)?, v.dim(-1)?);
    let x = op::Operands {
        decay: turned("ADT")?,
        before: dt.sub(&own)?,
        own,
        state: Tensor::zeros(&[b, h, n, p], dt.dtype(), &Device::Cpu),
        last: [row(&k)?, row(&v)?],
        q,
        k: k.clone(),
        v: v.clone(),
    };
    let (o, state) = match chunk {
        Some(_) => op::chunks(&x, chunk)?,
        None => op::recurrence(&x)?,
    };
    let y = gated(&o, &v, &l.get("D")?, &l.ranks("Z", "MIMO_Z")?)?;
    let y = match l.get("MIMO_O") {
        Ok(w) => y.mul(&w.transpose(0, 1)?)?.sum(&[2], false)?,
        Err(_) => y.select(2, 0)?,
    };
    let last = |x: &Tensor| x.select(1, x.dim(1)? - 1);
    let ranks = |x: &Tensor| last(x)?.transpose(1, 2);
    Ok([
        y,
        state.transpose(-1, -2)?,
        last(&theta)?,
        ranks(&k)?,
        ranks(&v)?,
    ])
}

fn check(case: &Case, dtype: DType, chunk: Option<usize>, tolerance: [f64; 2]) -> Result<()> {
    let mut leaves = vec![];
    for name in INPUTS.into_iter().chain(["MIMO_O"]) {
        if let Some(x) = case.optional(name) {
            leaves.push((name, x.to_dtype(dtype)?.requires_grad()?));
        }
    }
    let l = Leaves(leaves);
    let label = |name: &str| format!("{} {chunk:?} {dtype}: {name}", case.label);
    let outputs = run(&l, chunk)?;
    for (name, got) in ["y", "final_state", "final_angle", "final_k", "final_v"]
        .iter()
        .zip(&outputs)
    {
        let want = case.tensor(name)?;
        if *name == "final_angle" {
            // Angles are the same if they differ by whole turns.
            let same =
                |x: &Tensor| Ok::<_, Error>([x.to_dtype(dtype)?.cos()?, x.to_dtype(dtype)?.sin()?]);
            for (got, want) in same(got)?.iter().zip(&same(want)?) {
                assert_close(&label(name), got, want, tolerance[0]);
            }
        } else {
            assert_close(&label(name), got, want, tolerance[0]);
        }
    }
    let loss = outputs[0]
        .mul(&case.tensor("w_o")?.to_dtype(dtype)?)?
        .sum_all()?;
    let tensors: Vec<&Tensor> = l.0.iter().map(|(_, x)| x).collect();
    for ((name, _), g) in l.0.iter().zip(grad(&[&loss], None, &tensors, false)?) {
        let name = format!("grad.{name}");
        assert_close(
            &label(&name),
            &g.unwrap(),
            case.tensor(&name)?,
            tolerance[1],
        );
    }
    Ok(())
}

#[test]
fn golden_delta_family_mamba3() {
    let mut run = 0;
    for case in cases("delta-family").unwrap() {
        if !case.kind().starts_with("op:mamba3_") {
            continue;
        }
        let exact = [case.number("tolerance").unwrap(); 2];
        for chunk in [None, Some(1), Some(5), Some(16), Some(64)] {
            check(&case, DType::F64, chunk, exact).unwrap();
            check(&case, DType::F32, chunk, [2e-5, 1e-4]).unwrap();
        }
        run += 1;
    }
    assert!(run > 0, "no Mamba-3 operation was run");
}

/// lam = 1 and no angles: every key once, at its own token.
#[test]
fn without_trapezoid_and_angles_it_is_mamba2() {
    let (b, t, h, n, p) = (2, 33, 3, 6, 4);
    let draw = |seed, shape: &[usize]| {
        Rng::new(seed)
            .uniform(shape, 0.0, 1.0, DType::F64, &Device::Cpu)
            .unwrap()
    };
    let (q, k) = (draw(1, &[b, t, 1, h, n]), draw(2, &[b, t, 1, h, n]));
    let (v, dt) = (draw(3, &[b, t, 1, h, p]), draw(4, &[b, t, h]));
    let x = op::Operands {
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
        decay: dt.neg().unwrap(),
        own: dt.clone(),
        before: dt.zeros_like(),
        state: draw(5, &[b, h, n, p]),
        last: [draw(6, &[b, 1, h, n]), draw(7, &[b, 1, h, p])],
    };
    let flat = |x: &Tensor| x.select(2, 0).unwrap();
    let ssd = decayed::Operands {
        q: flat(&q),
        k: flat(&k),
        v: flat(&v).mul(&dt.unsqueeze(-1).unwrap()).unwrap(),
        decay: x.decay.clone(),
        scale: 1.0,
        state: x.state.clone(),
    };
    let (o, s) = op::chunks(&x, Some(16)).unwrap();
    let (want_o, want_s) = decayed::recurrence(&ssd).unwrap();
    assert_close("o", &flat(&o), &want_o, 1e-12);
    assert_close("state", &s, &want_s, 1e-12);
}
