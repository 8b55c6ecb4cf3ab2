//! Forward: online softmax over tiles of 64 keys, for spans of a few panels of 16 queries.
//!
//! Per panel and tile, lane = query:
//!
//! ```text
//!     s     = K q^T                      [64, 16]     masked entries -inf
//!     m'    = max(m, max_s s)            a = exp(m - m')
//!     p     = exp(s - m')                l = a l + sum_s p
//!     o^T   = a o^T + V^T p              [Dv, 16]
//! ```
//!
//! and at the end o = o^T / l, lse = m + ln l. K and V are packed once per tile for the whole span.

use rayon::prelude::*;
use weft_tensor::Real;
use weft_tensor::cpu::simd::vectorize;

use super::block::{BLOCK, LANES, Lane, Packed, splat, transpose_from, transpose_into};
use super::mask::{Cover, LanePositions, hide};
use super::{Dims, Mask, TILE, decode, larger, row, rows_by_head};

/// Panels that share a packed tile, at most.
const SPAN: usize = 8;

/// o and lse of attention; shapes in the module's table. `out` and `lse` are overwritten.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn forward<R: Real>(
    dims: &Dims,
    mask: &Mask,
    scale: R,
    (q, k, v): (&[R], &[R], &[R]),
    out: &mut [R],
    lse: &mut [R],
) {
    let [q_shape, k_shape, v_shape, o_shape] = dims.shapes();
    let arrays = [
        ("q", q.len(), q_shape),
        ("k", k.len(), k_shape),
        ("v", v.len(), v_shape),
        ("out", out.len(), o_shape),
        ("lse", lse.len(), [dims.batch, dims.heads, dims.queries, 1]),
    ];
    dims.check(mask, &arrays);
    let Dims {
        batch,
        kv_heads,
        value_dim,
        ..
    } = *dims;
    let lanes = dims.lanes();
    if out.is_empty() {
        return;
    }
    let input = Input {
        dims,
        mask,
        scale,
        q,
        k,
        v,
    };
    let mut buckets = rows_by_head(out, batch, kv_heads, dims.group(), value_dim);
    let mut lane_lse = vec![R::ZERO; batch * kv_heads * lanes];
    if lanes <= decode::MAX_LANES {
        decode::run(&input, &mut buckets, &mut lane_lse);
    } else {
        let tasks_wanted = 4 * rayon::current_num_threads();
        let spans = tasks_wanted.div_ceil(batch * kv_heads);
        let span = lanes.div_ceil(LANES * spans).clamp(1, SPAN) * LANES;
        let tasks: Vec<_> = buckets
            .iter_mut()
            .zip(lane_lse.chunks_exact_mut(lanes))
            .enumerate()
            .flat_map(|(head, (rows, lse))| {
                let spans = rows.chunks_mut(span).zip(lse.chunks_mut(span)).enumerate();
                spans.map(move |(i, (out, lse))| Task {
                    head,
                    first: i * span,
                    out,
                    lse,
                })
            })
            .collect();
        tasks.into_par_iter().for_each_init(
            || Scratch::new(dims, span / LANES),
            |scratch, task| {
                vectorize(
                    #[inline(always)]
                    || attend(&input, scratch, task),
                )
            },
        );
    }
    for (head, lane_lse) in lane_lse.chunks_exact(lanes).enumerate() {
        for (lane, value) in lane_lse.iter().enumerate() {
            lse[dims.lse_index(head / kv_heads, head % kv_heads, lane)] = *value;
        }
    }
}

/// What all tasks read.
pub(super) struct Input<'a, R> {
    pub(super) dims: &'a Dims,
    pub(super) mask: &'a Mask<'a>,
    pub(super) scale: R,
    pub(super) q: &'a [R],
    pub(super) k: &'a [R],
    pub(super) v: &'a [R],
}

/// Consecutive lanes of one key head in one sequence (`head` = b Hkv + g), and where their results go.
struct Task<'a, 'o, R> {
    head: usize,
    first: usize,
    out: &'a mut [&'o mut [R]],
    lse: &'a mut [R],
}

/// One panel's state of the online softmax.
struct Panel<R> {
    /// Queries, scaled and transposed [D padded, 16].
    q: Vec<Lane<R>>,
    /// Unnormalised output, transposed [Dv padded, 16].
    out: Vec<Lane<R>>,
    max: Lane<R>,
    sum: Lane<R>,
}

struct Scratch<R> {
    panels: Vec<Panel<R>>,
    scores: Vec<Lane<R>>,
    k: Packed<R>,
    v: Packed<R>,
}

impl<R: Real> Scratch<R> {
    fn new(dims: &Dims, panels: usize) -> Scratch<R> {
        let panel = |_| Panel {
            q: vec![splat(R::ZERO); dims.dim.next_multiple_of(BLOCK)],
            out: vec![splat(R::ZERO); dims.value_dim.next_multiple_of(BLOCK)],
            max: splat(R::NEG_INFINITY),
            sum: splat(R::ZERO),
        };
        Scratch {
            panels: (0..panels).map(panel).collect(),
            scores: vec![splat(R::ZERO); TILE],
            k: Packed::new(TILE, dims.dim),
            v: Packed::new(TILE, dims.value_dim),
        }
    }
}

#[inline(always)]
fn attend<R: Real>(input: &Input<R>, scratch: &mut Scratch<R>, task: Task<R>) {
    let Input {
        dims,
        mask,
        scale,
        q,
        k,
        v,
    } = *input;
    let (b, g) = (task.head / dims.kv_heads, task.head % dims.kv_heads);
    let (first, end) = (task.first, task.first + task.out.len());
    let positions = |lanes| LanePositions::new(mask.query_start[b], dims.group(), lanes);
    let panels = (end - first).div_ceil(LANES);
    let lanes_of = |i: usize| first + i * LANES..end.min(first + (i + 1) * LANES);

    for (i, panel) in scratch.panels[..panels].iter_mut().enumerate() {
        let rows = lanes_of(i).map(|lane| row(q, dims.query_row(b, g, lane), dims.dim));
        transpose_into(rows, scale, &mut panel.q);
        panel.out.fill(splat(R::ZERO));
        panel.max = splat(R::NEG_INFINITY);
        panel.sum = splat(R::ZERO);
    }
    let whole = positions(first..end);
    for from in (0..dims.keys).step_by(TILE) {
        let tile = from..dims.keys.min(from + TILE);
        let span = mask.span(b, tile.clone(), dims.keys);
        if mask.hides(span, &whole) {
            continue;
        }
        scratch.k.fill(
            tile.clone()
                .map(|s| row(k, dims.key_row(b, g, s), dims.dim)),
        );
        scratch.v.fill(
            tile.clone()
                .map(|s| row(v, dims.key_row(b, g, s), dims.value_dim)),
        );
        for (i, panel) in scratch.panels[..panels].iter_mut().enumerate() {
            let lanes = positions(lanes_of(i));
            let (rows, seen) = match mask.cover(b, tile.clone(), dims.keys, span, &lanes) {
                Cover::Hidden => continue,
                Cover::Full => (0..tile.len(), None),
                Cover::Partial(rows, seen) => (rows, Some(seen)),
            };
            scratch
                .k
                .times_panel(rows.clone(), &panel.q, &splat(R::ZERO), &mut scratch.scores);
            if let Some(seen) = &seen {
                hide(&mut scratch.scores[rows.clone()], &seen[rows.clone()]);
            }
            let decay = softmax_step(panel, &mut scratch.scores[rows.clone()]);
            let exact = seen.is_some() && !scratch.v.is_finite(rows.clone());
            scratch
                .v
                .transposed_times_panel(rows, &scratch.scores, &decay, &mut panel.out, exact);
        }
    }
    let results = task.out.chunks_mut(LANES).zip(task.lse.chunks_mut(LANES));
    for (panel, (out, lse)) in scratch.panels.iter().zip(results) {
        let mut inverse = splat(R::ZERO);
        for (inverse, &sum) in inverse.iter_mut().zip(&panel.sum) {
            if sum != R::ZERO {
                *inverse = R::ONE / sum;
            }
        }
        transpose_from(&panel.out, &inverse, out);
        for (lse, (max, sum)) in lse.iter_mut().zip(panel.max.iter().zip(&panel.sum)) {
            *lse = *max + sum.ln();
        }
    }
}

/// Take a tile of scores into the running maximum and sum, and turn it into weights relative to the new
/// maximum. Returns the factor by which what was summed so far shrinks.
#[inline(always)]
fn softmax_step<R: Real>(panel: &mut Panel<R>, scores: &mut [Lane<R>]) -> Lane<R> {
    let mut max = panel.max;
    for row in scores.iter() {
        for lane in 0..LANES {
            max[lane] = larger(max[lane], row[lane]);
        }
    }
    let mut decay = panel.max;
    let mut shift = max;
    for lane in 0..LANES {
        shift[lane] = if max[lane] == R::NEG_INFINITY {
            R::ZERO
        } else {
            max[lane]
        };
        decay[lane] -= shift[lane];
    }
    for x in &mut decay {
        *x = x.exp();
    }
    let mut sum = splat(R::ZERO);
    for row in scores.iter_mut() {
        for lane in 0..LANES {
            let weight = (row[lane] - shift[lane]).exp();
            row[lane] = weight;
            sum[lane] += weight;
        }
    }
    for lane in 0..LANES {
        panel.sum[lane] = panel.sum[lane] * decay[lane] + sum[lane];
    }
    panel.max = max;
    decay
}
