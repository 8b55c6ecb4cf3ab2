//! One token, in place on the state: each row of it is decayed, written and read in one pass.

use rayon::prelude::*;
use weft_tensor::{Real, cpu::simd::vectorize};

use super::{Decay, Dims, Inputs};

/// State elements below which starting threads costs more than the work.
const PARALLEL: usize = 1 << 16;

/// Advances `state` [B, HV, K, V] by one token (`dims.tokens` is 1) and writes `o` [B, HV, V].
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn step<R: Real>(dims: Dims, x: &Inputs<R>, state: &mut [R], o: &mut [R]) {
    x.check(&dims);
    assert_eq!(dims.tokens, 1, "decayed: one token to a step");
    assert_eq!(state.len(), dims.state_len(), "decayed: state of {dims:?}");
    assert_eq!(o.len(), dims.values_len(), "decayed: o of {dims:?}");
    let (size, width) = (dims.key_dim * dims.value_dim, dims.value_dim);
    let head = |(unit, (state, o)): (usize, (&mut [R], &mut [R]))| {
        vectorize(
            #[inline(always)]
            || step_head(&dims, x, unit, state, o),
        )
    };
    if state.len() < PARALLEL {
        let heads = state.chunks_exact_mut(size).zip(o.chunks_exact_mut(width));
        heads.enumerate().for_each(head);
    } else {
        let heads = state
            .par_chunks_exact_mut(size)
            .zip(o.par_chunks_exact_mut(width));
        heads.enumerate().for_each(head);
    }
}

#[inline(always)]
fn step_head<R: Real>(dims: &Dims, x: &Inputs<R>, unit: usize, state: &mut [R], o: &mut [R]) {
    let n = dims.key_dim;
    let keys = unit / dims.repeat() * n..(unit / dims.repeat() + 1) * n;
    let (q, k) = (&x.q[keys.clone()], &x.k[keys.clone()]);
    let v = &x.v[unit * dims.value_dim..][..dims.value_dim];
    let decay = match x.decay {
        Decay::Heads(g) => &g[unit..=unit],
        Decay::Channels(g) => &g[keys],
    };
    let shared = decay[0].exp();
    o.fill(R::ZERO);
    for (c, row) in state.chunks_exact_mut(dims.value_dim).enumerate() {
        let a = if let [_] = decay {
            shared
        } else {
            decay[c].exp()
        };
        let (k, q) = (k[c], q[c] * x.scale);
        for ((s, o), v) in row.iter_mut().zip(&mut *o).zip(v) {
            *s = k.mul_add(*v, *s * a);
            *o = q.mul_add(*s, *o);
        }
    }
}
