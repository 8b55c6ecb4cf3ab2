//! How far back a state can be changed: the spectral norms of the Jacobians ds_T / ds_t (Pascanu et al. 2013). For
//! a simple network they are products of diag(act') U, which shrink or grow with the singular values of U.

use weft_tensor::{Tensor, grad};

use crate::error::Result;
use crate::mixer::{Call, Mixer};
use crate::state::State;

/// Norms for t = T, T - 1, .., 1 (the first is that of the identity), s being the tensor `name` of the state of a
/// single sequence x [1, T, D]. Computed in the dtype of x: T forward calls, one way back for each element of s.
pub fn jacobian_norms(
    mixer: &dyn Mixer,
    x: &Tensor,
    state: &State,
    name: &str,
) -> Result<Vec<f64>> {
    let [_, tokens, _] = x.dims()?;
    let mut state = state.detach();
    let mut states = Vec::with_capacity(tokens);
    for t in 0..tokens {
        mixer.forward(&x.narrow(1, t, 1)?, &mut state, &Call::default())?;
        let s = state.get(name)?.clone();
        // A leaf of the graph even if nothing before it is one.
        let s = if s.is_tracked() {
            s
        } else {
            s.requires_grad()?
        };
        state.put(name, s.clone())?;
        states.push(s);
    }
    let Some(last) = states.last() else {
        return Ok(vec![]);
    };
    let size = last.count();
    let mut rows: Vec<Vec<f64>> = vec![vec![]; tokens];
    let targets: Vec<&Tensor> = states.iter().collect();
    for i in 0..size {
        let element = last.reshape(&[size])?.narrow(0, i, 1)?.sum_all()?;
        for (t, g) in grad(&[&element], None, &targets, false)?
            .into_iter()
            .enumerate()
        {
            match g {
                Some(g) => rows[t].extend(g.to_f64_vec()?),
                None => rows[t].resize((i + 1) * size, 0.0),
            }
        }
    }
    Ok(rows.iter().rev().map(|j| spectral_norm(j, size)).collect())
}

/// The largest singular value of a matrix [n, n], by Jacobi rotations that make its rows orthogonal.
fn spectral_norm(matrix: &[f64], n: usize) -> f64 {
    let mut rows: Vec<Vec<f64>> = matrix.chunks(n).map(<[f64]>::to_vec).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Convergence is quadratic: a dozen sweeps are more than f64 can use.
    for _ in 0..12 {
        for i in 0..n {
            for j in i + 1..n {
                let (a, b, c) = (
                    dot(&rows[i], &rows[i]),
                    dot(&rows[j], &rows[j]),
                    dot(&rows[i], &rows[j]),
                );
                if c == 0.0 {
                    continue;
                }
                let angle = 0.5 * (2.0 * c).atan2(a - b);
                let (sin, cos) = angle.sin_cos();
                for k in 0..n {
                    let (x, y) = (rows[i][k], rows[j][k]);
                    (rows[i][k], rows[j][k]) = (cos * x + sin * y, cos * y - sin * x);
                }
            }
        }
    }
    rows.iter().map(|r| dot(r, r).sqrt()).fold(0.0, f64::max)
}
