//! One token, in place on the state.
//!
//! With a = exp g and u = w . v - r, the new state is diag(a) S + k u^T, and what is read from it is
//! o = S^T (a . q) + (k . q) u. So one pass over the state reads r = S^T (a . b . k) and S^T (a . q) together,
//! and a second one decays and writes. Both go over strips of columns that stay in the first-level cache
//! between the passes: main memory sees each element once in and once out.

use rayon::prelude::*;
use weft_tensor::{Real, cpu::simd::vectorize};

use super::blocks::{LANES, Lane, Lanes, lanes, load, padded};
use super::keys::normalise;
use super::{Dims, Inputs, Unit};

/// Columns of the state in a strip: with 128 key channels a strip is 32 KiB of f32.
const STRIP: usize = 64;

/// State elements below which starting threads costs more than the work.
const PARALLEL: usize = 1 << 16;

/// Advances `state` [B, HV, K, V] by one token (`dims.tokens` is 1) and writes `o` [B, HV, V].
/// `x.state` is not read.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn step<R: Real>(dims: Dims, x: &Inputs<R>, state: &mut [R], o: &mut [R]) {
    x.check(&dims);
    assert_eq!(dims.tokens, 1, "delta_rule: one token to a step");
    assert_eq!(
        state.len(),
        dims.state_len(),
        "delta_rule: state of {dims:?}"
    );
    assert_eq!(o.len(), dims.output_len(), "delta_rule: o of {dims:?}");
    let size = dims.key_dim * dims.value_dim;
    let head = |row: &mut Lanes<R>, (i, (state, o)): (usize, (&mut [R], &mut [R]))| {
        let (batch, value_head) = (i / dims.value_heads, i % dims.value_heads);
        let unit = Unit {
            batch,
            head: value_head / dims.repeat(),
            value_head,
        };
        vectorize(
            #[inline(always)]
            || step_head(&dims, x, unit, row, state, o),
        )
    };
    let scratch = || lanes(4 * padded(dims.key_dim) / LANES);
    if state.len() < PARALLEL {
        let mut row = scratch();
        let heads = state
            .chunks_exact_mut(size)
            .zip(o.chunks_exact_mut(dims.value_dim));
        heads.enumerate().for_each(|item| head(&mut row, item));
    } else {
        let heads = state
            .par_chunks_exact_mut(size)
            .zip(o.par_chunks_exact_mut(dims.value_dim));
        heads.enumerate().for_each_init(scratch, head);
    }
}

#[inline(always)]
fn step_head<R: Real>(
    dims: &Dims,
    x: &Inputs<R>,
    u: Unit,
    row: &mut [Lane<R>],
    state: &mut [R],
    o: &mut [R],
) {
    let n = dims.key_dim;
    let kl = padded(n) / LANES;
    let (q, row) = row.split_at_mut(kl);
    let (k, row) = row.split_at_mut(kl);
    let (e, decay) = row.split_at_mut(kl);
    load(x.query(dims, u.batch, u.head), q);
    load(x.key(dims, u.batch, u.head), k);
    normalise(R::ONE / R::from_f64(n as f64).sqrt(), q);
    normalise(R::ONE, k);
    let (q, k) = (q.as_flattened_mut(), k.as_flattened());
    let (e, decay) = (e.as_flattened_mut(), decay.as_flattened_mut());
    match x.decay.as_ref().map(|g| g.row(u.batch, u.head_of(g, dims))) {
        None => decay.fill(R::ONE),
        Some([g]) => decay.fill(g.exp()),
        Some(g) => decay.iter_mut().zip(g).for_each(|(a, g)| *a = g.exp()),
    }
    let b = x.erase.row(u.batch, u.head_of(&x.erase, dims));
    let kq: R = k.iter().zip(&*q).map(|(k, q)| *k * *q).sum();
    for c in 0..n {
        e[c] = k[c] * decay[c] * if let [b] = b { *b } else { b[c] };
        q[c] *= decay[c];
    }
    let v = x.values(dims, u.batch, u.value_head, 0..dims.value_dim);
    for (strip, (o, v)) in o.chunks_mut(STRIP).zip(v.chunks(STRIP)).enumerate() {
        let (first, width) = (strip * STRIP, o.len());
        let mut read = [R::ZERO; STRIP];
        let read = &mut read[..width];
        o.fill(R::ZERO);
        for c in 0..n {
            let s = &state[c * dims.value_dim + first..][..width];
            for ((s, r), o) in s.iter().zip(&mut *read).zip(&mut *o) {
                *r = e[c].mul_add(*s, *r);
                *o = q[c].mul_add(*s, *o);
            }
        }
        let w = x.write.columns(u.batch, u.value_head, first..first + width);
        for (i, ((r, o), v)) in read.iter_mut().zip(&mut *o).zip(v).enumerate() {
            *r = *v * if let [w] = w { *w } else { w[i] } - *r;
            *o = kq.mul_add(*r, *o);
        }
        for c in 0..n {
            let s = &mut state[c * dims.value_dim + first..][..width];
            for (s, u) in s.iter_mut().zip(&*read) {
                *s = k[c].mul_add(*u, *s * decay[c]);
            }
        }
    }
}
