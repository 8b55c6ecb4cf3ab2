//! Forward for a few queries (a decoding step): the cache is read once, front to back.
//!
//! With so few queries a panel would be mostly empty, so here the vector registers run along the head
//! dimension: s_s = q . k_s and o += p_s v_s, four keys at a time, with the same online softmax over tiles
//! of 64 keys. A task takes 256 consecutive keys with all their heads, as they lie in memory, and leaves
//! unnormalised outputs beside their maxima and sums; these are merged in order.

use std::ops::Range;

use rayon::prelude::*;
use weft_tensor::Real;
use weft_tensor::cpu::simd::vectorize;

use super::block::{LANES, Lane, dot, fold, splat};
use super::forward::Input;
use super::{TILE, larger, row};

/// Up to so many queries of one key head are attended here.
pub(super) const MAX_LANES: usize = 8;

/// Keys of a task. Fixed, so that results depend neither on the threads nor on a cache's spare slots.
const CHUNK: usize = 4 * TILE;

/// Below so many multiplications, handing work to other threads costs more than it saves.
const WORTH_SHARING: usize = 1 << 18;

/// What one query has seen so far: the maximum of its scores and the sum of its weights relative to it.
#[derive(Clone, Copy)]
struct Softmax<R> {
    max: R,
    sum: R,
}

/// Attend all queries: `out` has the output rows of each (b, key head), `lse` its lanes.
pub(super) fn run<R: Real>(input: &Input<R>, out: &mut [Vec<&mut [R]>], lse: &mut [R]) {
    let dims = input.dims;
    let (rows, chunks) = (
        dims.kv_heads * dims.lanes(),
        dims.keys.div_ceil(CHUNK).max(1),
    );
    let none = Softmax {
        max: R::NEG_INFINITY,
        sum: R::ZERO,
    };
    let mut parts = vec![none; dims.batch * chunks * rows];
    let mut sums = vec![R::ZERO; parts.len() * dims.value_dim];
    let attend = |(i, (parts, sums)): (usize, (&mut [Softmax<R>], &mut [R]))| {
        let from = i % chunks * CHUNK;
        let keys = from..dims.keys.min(from + CHUNK);
        vectorize(
            #[inline(always)]
            || attend(input, i / chunks, keys, parts, sums),
        )
    };
    let width = rows * dims.value_dim;
    let work = dims.batch * dims.queries * dims.keys * dims.heads * (dims.dim + dims.value_dim);
    if work < WORTH_SHARING {
        let tasks = parts.chunks_mut(rows).zip(sums.chunks_mut(width));
        tasks.enumerate().for_each(attend);
    } else {
        let tasks = parts.par_chunks_mut(rows).zip(sums.par_chunks_mut(width));
        tasks.enumerate().for_each(attend);
    }
    let rows_out = out.iter_mut().flatten().zip(lse).enumerate();
    for (i, (out, lse)) in rows_out {
        let pieces = (0..chunks).map(|c| (i / rows * chunks + c) * rows + i % rows);
        let max = pieces
            .clone()
            .fold(R::NEG_INFINITY, |max, at| larger(max, parts[at].max));
        let mut sum = R::ZERO;
        out.fill(R::ZERO);
        for at in pieces.filter(|&at| parts[at].sum != R::ZERO) {
            let weight = (parts[at].max - max).exp();
            sum += weight * parts[at].sum;
            for (out, x) in out.iter_mut().zip(row(&sums, at, dims.value_dim)) {
                *out += weight * *x;
            }
        }
        let inverse = if sum == R::ZERO {
            R::ZERO
        } else {
            R::ONE / sum
        };
        for x in out.iter_mut() {
            *x *= inverse;
        }
        *lse = max + sum.ln();
    }
}

/// Sequence b against some of its keys; rows are (key head, lane).
#[inline(always)]
fn attend<R: Real>(
    input: &Input<R>,
    b: usize,
    keys: Range<usize>,
    parts: &mut [Softmax<R>],
    sums: &mut [R],
) {
    let Input {
        dims,
        mask,
        scale,
        q,
        k,
        v,
    } = *input;
    for from in keys.clone().step_by(TILE) {
        let tile = from..keys.end.min(from + TILE);
        for t in 0..dims.queries {
            let position = mask.query_start[b].saturating_add(t as i64);
            let mut slots = [0; TILE];
            let mut seen = 0;
            for s in tile.clone() {
                slots[seen] = s;
                seen += usize::from(mask.visible(position, mask.key(b, s, dims.keys)));
            }
            let slots = &slots[..seen];
            if slots.is_empty() {
                continue;
            }
            for g in 0..dims.kv_heads {
                let keys = |s: usize| row(k, dims.key_row(b, g, s), dims.dim);
                let values = |s: usize| row(v, dims.key_row(b, g, s), dims.value_dim);
                for lane in t * dims.group()..(t + 1) * dims.group() {
                    let query = row(q, dims.query_row(b, g, lane), dims.dim);
                    let mut weights = [splat(R::NEG_INFINITY); TILE / LANES];
                    let flat = weights.as_flattened_mut();
                    products(query, slots, keys, scale, flat);
                    let at = g * dims.lanes() + lane;
                    let decay = softmax_step(&mut parts[at], &mut weights);
                    let sums = &mut sums[at * dims.value_dim..(at + 1) * dims.value_dim];
                    for x in sums.iter_mut() {
                        *x *= decay;
                    }
                    add_weighted(sums, slots, values, weights.as_flattened());
                }
            }
        }
    }
}

/// The scores of a query and the given keys.
#[inline(always)]
fn products<'a, R: Real>(
    query: &[R],
    slots: &[usize],
    key: impl Fn(usize) -> &'a [R],
    scale: R,
    scores: &mut [R],
) {
    let (fours, rest) = slots.as_chunks::<4>();
    let (scores, rest_scores) = scores.split_at_mut(fours.len() * 4);
    for (s, out) in fours.iter().zip(scores.as_chunks_mut::<4>().0) {
        *out = dot_four(query, [key(s[0]), key(s[1]), key(s[2]), key(s[3])]);
        for x in out {
            *x *= scale;
        }
    }
    for (&s, out) in rest.iter().zip(rest_scores) {
        *out = dot(query, key(s)) * scale;
    }
}

/// As in [`super::forward`], for one query.
#[inline(always)]
fn softmax_step<R: Real>(part: &mut Softmax<R>, weights: &mut [Lane<R>; TILE / LANES]) -> R {
    let mut lanes = splat(part.max);
    for row in weights.iter() {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], row[lane]);
        }
    }
    let max = lanes.into_iter().fold(part.max, larger);
    let decay = (part.max - max).exp();
    let mut sum = splat(R::ZERO);
    for row in weights.iter_mut() {
        for lane in 0..LANES {
            let weight = (row[lane] - max).exp();
            row[lane] = weight;
            sum[lane] += weight;
        }
    }
    part.max = max;
    part.sum = part.sum * decay + fold(sum);
    decay
}

/// out += sum_s weights[s] v_s, four keys at a time.
#[inline(always)]
fn add_weighted<'a, R: Real>(
    out: &mut [R],
    slots: &[usize],
    value: impl Fn(usize) -> &'a [R],
    weights: &[R],
) {
    let n = out.len();
    let (fours, rest) = slots.as_chunks::<4>();
    let (weights, rest_weights) = weights.split_at(fours.len() * 4);
    for (s, w) in fours.iter().zip(weights.as_chunks::<4>().0) {
        let v0 = &value(s[0])[..n];
        let v1 = &value(s[1])[..n];
        let v2 = &value(s[2])[..n];
        let v3 = &value(s[3])[..n];
        for i in 0..n {
            let x = w[0].mul_add(v0[i], out[i]);
            let x = w[1].mul_add(v1[i], x);
            let x = w[2].mul_add(v2[i], x);
            out[i] = w[3].mul_add(v3[i], x);
        }
    }
    for (&s, &w) in rest.iter().zip(rest_weights) {
        for (out, x) in out.iter_mut().zip(value(s)) {
            *out = w.mul_add(*x, *out);
        }
    }
}

/// The products of one vector with four.
#[inline(always)]
fn dot_four<R: Real>(a: &[R], b: [&[R]; 4]) -> [R; 4] {
    let (whole, rest) = a.as_chunks::<LANES>();
    let whole_b: [&[Lane<R>]; 4] = b.map(
        #[inline(always)]
        |b| &b.as_chunks::<LANES>().0[..whole.len()],
    );
    let mut acc = [splat(R::ZERO); 4];
    for (j, a) in whole.iter().enumerate() {
        let b = whole_b.map(
            #[inline(always)]
            |b| &b[j],
        );
        for lane in 0..LANES {
            for i in 0..4 {
                acc[i][lane] = a[lane].mul_add(b[i][lane], acc[i][lane]);
            }
        }
    }
    let mut sums = acc.map(fold);
    let from = whole.len() * LANES;
    for (i, a) in rest.iter().enumerate() {
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = a.mul_add(b[from + i], *sum);
        }
    }
    sums
}
