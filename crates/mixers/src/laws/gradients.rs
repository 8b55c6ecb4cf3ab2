//! Gradients of inputs, parameters and initial state: the fast form's against the reference's (by automatic
//! differentiation), and the reference's against finite differences.

use weft_tensor::{DType, Rng, Tensor, grad, no_grad};

use super::subject::{Outcome, Subject, broken};
use crate::error::Result;
use crate::golden::relative_error;
use crate::mixer::{Call, Form};
use crate::state::State;

/// Leaves by name: x, every parameter, every float tensor of the initial state.
struct Leaves {
    x: Tensor,
    state: State,
    names: Vec<String>,
    tensors: Vec<Tensor>,
}

fn leaves(s: &Subject, tokens: usize) -> Result<Leaves> {
    let x = s.input(20, 2, tokens).requires_grad()?;
    let mut state = s.warm_state(2, 11)?;
    let (mut names, mut tensors) = (vec!["x".to_string()], vec![x.clone()]);
    for p in s.params.iter() {
        names.push(p.name().into());
        tensors.push(p.get());
    }
    let floats: Vec<(String, Tensor)> = state
        .tensors()
        .filter(|(_, t)| t.dtype().is_float() && t.count() > 0)
        .map(|(n, t)| (n.to_string(), t.clone()))
        .collect();
    for (name, t) in floats {
        let leaf = t.requires_grad()?;
        state.put(&name, leaf.clone())?;
        names.push(format!("state {name}"));
        tensors.push(leaf);
    }
    Ok(Leaves {
        x,
        state,
        names,
        tensors,
    })
}

/// sum(w1 * y1) + sum(w2 * y2), y1 and y2 two pieces of the sequence: the gradient also crosses the state
/// between them.
fn loss(s: &Subject, x: &Tensor, state: &State, call: &Call) -> Result<Tensor> {
    let t = x.dim(1)?;
    let cut = t.div_ceil(2);
    let mut state = state.clone();
    let mut total = Tensor::zeros(&[], s.dtype, &s.device);
    for (from, to) in [(0, cut), (cut, t)] {
        if from == to {
            continue;
        }
        let y = s
            .mixer
            .forward(&x.narrow(1, from, to - from)?, &mut state, call)?;
        let w = Rng::stream(21, from as u64).normal(y.shape(), 0.0, 1.0, DType::F64, &s.device)?;
        total = total.add(&y.mul(&w.to_dtype(s.dtype)?)?.sum_all()?)?;
    }
    Ok(total)
}

fn gradients(s: &Subject, l: &Leaves, call: &Call) -> Result<Vec<Tensor>> {
    let refs: Vec<&Tensor> = l.tensors.iter().collect();
    let grads = grad(&[&loss(s, &l.x, &l.state, call)?], None, &refs, false)?;
    Ok(grads
        .into_iter()
        .zip(&l.tensors)
        .map(|(g, t)| g.unwrap_or_else(|| t.zeros_like()))
        .collect())
}

/// The default form, and every other form that can be trained, against the reference.
pub fn equal_reference(s: &Subject) -> Outcome {
    for tokens in [1, 17, 64, 150] {
        let l = leaves(s, tokens)?;
        let want = gradients(s, &l, &Call::with_form(Form::Reference))?;
        let got = gradients(s, &l, &Call::default())?;
        for ((name, g), w) in l.names.iter().zip(&got).zip(&want) {
            let e = relative_error(g, w)?;
            // A sum over all tokens of a gradient that nearly cancels keeps fewer digits in f32 than the
            // terms have: allow ten times the tolerance of a value there.
            let allowed = if s.dtype == DType::F64 { 1e-9 } else { 2e-4 };
            if e > allowed {
                return broken(format!(
                    "gradient of {name} at T = {tokens}: relative error {e:.2e}"
                ));
            }
        }
    }
    Ok(())
}

/// Along random directions of everything at once, in f64.
pub fn reference_equals_differences(s: &Subject) -> Outcome {
    if s.dtype != DType::F64 {
        return Ok(());
    }
    let l = leaves(s, 9)?;
    let call = Call::with_form(Form::Reference);
    let grads = gradients(s, &l, &call)?;
    for seed in 0..3 {
        let draw = |(i, t): (usize, &Tensor)| {
            Rng::stream(30 + seed, i as u64).normal(t.shape(), 0.0, 1.0, DType::F64, &s.device)
        };
        let directions = l
            .tensors
            .iter()
            .enumerate()
            .map(draw)
            .collect::<Result<Vec<_>, _>>()?;
        let mut slope = 0.0;
        for (g, d) in grads.iter().zip(&directions) {
            slope += g.mul(d)?.sum_all()?.item_f64()?;
        }
        let h = 1e-6;
        let at = |step: f64| -> Result<f64> {
            let moved = |i: usize| l.tensors[i].detach().add(&directions[i].mul_scalar(step)?);
            let mut state = l.state.detach();
            for (i, name) in l.names.iter().enumerate() {
                if let Some(n) = name.strip_prefix("state ") {
                    state.put(n, moved(i)?)?;
                } else if let Some(p) = s.params.get(name) {
                    p.set(&moved(i)?)?;
                }
            }
            let value = no_grad(|| loss(s, &moved(0)?, &state, &call))?.item_f64()?;
            for (i, name) in l.names.iter().enumerate() {
                if let Some(p) = s.params.get(name) {
                    p.set(&l.tensors[i])?;
                }
            }
            Ok(value)
        };
        let difference = (at(h)? - at(-h)?) / (2.0 * h);
        // Central differences with h = 1e-6 leave about 1e-9 of rounding, relative to the loss.
        let size = difference.abs().max(slope.abs()).max(1.0);
        let error = (difference - slope).abs();
        if error.is_nan() || error > 1e-6 * size {
            return broken(format!(
                "slope {slope} against finite difference {difference}"
            ));
        }
    }
    Ok(())
}
