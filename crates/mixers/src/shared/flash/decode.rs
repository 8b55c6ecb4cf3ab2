//! Forward for a few queries (a decoding step): the cache is read once, front to back.
//!
//! With so few queries a panel would be mostly empty, so here the vector registers run along the head
//! dimension: s_s = q . k_s key by key, then o += p_s v_s four keys at a time, with the same online
//! softmax over tiles of 64 keys.

use std::ops::Range;

use rayon::prelude::*;
use weft_tensor::Real;
use weft_tensor::cpu::simd::vectorize;

use super::block::dot;
use super::forward::Input;
use super::{TILE, larger, row};

/// Up to so many queries of one key head are attended here.
pub(super) const MAX_LANES: usize = 8;

/// Below so many multiplications, handing work to other threads costs more than it saves.
const WORTH_SHARING: usize = 1 << 18;

/// Attend the queries of each (b, key head), in order of `tasks`: their output rows and lse.
pub(super) fn run<R: Real>(input: &Input<R>, tasks: Vec<(&mut Vec<&mut [R]>, &mut [R])>) {
    let dims = input.dims;
    let work = dims.batch * dims.keys * dims.queries * dims.heads * (dims.dim + dims.value_dim);
    let attend = |(head, (out, lse)): (usize, (&mut Vec<&mut [R]>, &mut [R]))| {
        vectorize(
            #[inline(always)]
            || attend(input, head, out, lse),
        )
    };
    if work < WORTH_SHARING {
        tasks.into_iter().enumerate().for_each(attend);
    } else {
        tasks.into_par_iter().enumerate().for_each(attend);
    }
}

#[inline(always)]
fn attend<R: Real>(input: &Input<R>, head: usize, out: &mut [&mut [R]], lse: &mut [R]) {
    let Input {
        dims,
        mask,
        scale,
        q,
        k,
        v,
    } = *input;
    let (b, g) = (head / dims.kv_heads, head % dims.kv_heads);
    let mut max = [R::NEG_INFINITY; MAX_LANES];
    let mut sum = [R::ZERO; MAX_LANES];
    for out in out.iter_mut() {
        out.fill(R::ZERO);
    }
    for from in (0..dims.keys).step_by(TILE) {
        let tile = from..dims.keys.min(from + TILE);
        for (lane, out) in out.iter_mut().enumerate() {
            let position = mask.query_start[b].saturating_add((lane / dims.group()) as i64);
            let mut slots = [0; TILE];
            let seen = visible(input, b, tile.clone(), position, &mut slots);
            let slots = &slots[..seen];
            if slots.is_empty() {
                continue;
            }
            let query = row(q, dims.query_row(b, g, lane), dims.dim);
            let mut weights = [R::NEG_INFINITY; TILE];
            for (weight, &s) in weights.iter_mut().zip(slots) {
                *weight = dot(query, row(k, dims.key_row(b, g, s), dims.dim)) * scale;
            }
            let shift = weights.iter().fold(max[lane], |a, b| larger(a, *b));
            let decay = (max[lane] - shift).exp();
            for weight in &mut weights {
                *weight = (*weight - shift).exp();
            }
            max[lane] = shift;
            sum[lane] = sum[lane] * decay + weights.iter().copied().sum();
            for x in out.iter_mut() {
                *x *= decay;
            }
            let values = |s: usize| row(v, dims.key_row(b, g, s), dims.value_dim);
            let (fours, rest) = slots.as_chunks::<4>();
            let (weights, rest_weights) = weights[..seen].as_chunks::<4>();
            for (s, w) in fours.iter().zip(weights) {
                add_four(out, *w, s.map(values));
            }
            for (&s, &w) in rest.iter().zip(rest_weights) {
                for (out, x) in out.iter_mut().zip(values(s)) {
                    *out = w.mul_add(*x, *out);
                }
            }
        }
    }
    for (lane, (out, lse)) in out.iter_mut().zip(lse).enumerate() {
        let inverse = if sum[lane] == R::ZERO {
            R::ZERO
        } else {
            R::ONE / sum[lane]
        };
        for x in out.iter_mut() {
            *x *= inverse;
        }
        *lse = max[lane] + sum[lane].ln();
    }
}

/// The keys of a tile that a query sees; returns how many there are.
#[inline(always)]
fn visible<R: Real>(
    input: &Input<R>,
    b: usize,
    tile: Range<usize>,
    position: i64,
    slots: &mut [usize; TILE],
) -> usize {
    let mut seen = 0;
    for s in tile {
        slots[seen] = s;
        seen += usize::from(
            input
                .mask
                .visible(position, input.mask.key(b, s, input.dims.keys)),
        );
    }
    seen
}

/// out += w0 v0 + w1 v1 + w2 v2 + w3 v3.
#[inline(always)]
fn add_four<R: Real>(out: &mut [R], w: [R; 4], v: [&[R]; 4]) {
    let n = out.len();
    let [v0, v1, v2, v3] = v.map(
        #[inline(always)]
        |v| &v[..n],
    );
    for i in 0..n {
        let x = w[0].mul_add(v0[i], out[i]);
        let x = w[1].mul_add(v1[i], x);
        let x = w[2].mul_add(v2[i], x);
        out[i] = w[3].mul_add(v3[i], x);
    }
}
