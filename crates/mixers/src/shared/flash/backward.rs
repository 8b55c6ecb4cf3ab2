//! Backward: the weights are computed again from lse, tile by tile.
//!
//! With delta_t = do_t . o_t - dlse_t, lane = query:
//!
//! ```text
//!     p    = exp(K q^T - lse)          dp = V do^T          ds = p (dp - delta)        [64, 16]
//!     dv  += p do                      dk += ds q           dq^T += K^T ds
//! ```
//!
//! One task per (b, key head) walks over spans of 128 query lanes and, in each, over the key tiles; dk and
//! dv of a tile are summed over the span in scratch memory before they are added to the results.

use rayon::prelude::*;
use weft_tensor::Real;
use weft_tensor::cpu::simd::vectorize;

use super::block::{
    BLOCK, LANES, Lane, Packed, Start, Steps, dot, rows_times_panel, splat, transpose_from,
    transpose_into,
};
use super::mask::{Cover, LanePositions, hide};
use super::{Dims, Mask, TILE, row, rows_by_head};

/// Panels of a span.
const SPAN: usize = 8;

/// What the backward pass reads besides q, k and v; shapes in the module's table.
#[derive(Clone, Copy)]
pub struct Gradients<'a, R> {
    /// The output of the forward pass.
    pub out: &'a [R],
    /// Its log-sum-exp.
    pub lse: &'a [R],
    /// Gradient of the output.
    pub dout: &'a [R],
    /// Gradient of the log-sum-exp, if something depends on it.
    pub dlse: Option<&'a [R]>,
}

/// dq, dk and dv of attention, overwritten.
///
/// # Panics
/// If a slice does not have the size that `dims` says.
pub fn backward<R: Real>(
    dims: &Dims,
    mask: &Mask,
    scale: R,
    (q, k, v): (&[R], &[R], &[R]),
    grads: Gradients<R>,
    (dq, dk, dv): (&mut [R], &mut [R], &mut [R]),
) {
    let [q_shape, k_shape, v_shape, o_shape] = dims.shapes();
    let lse_shape = [dims.batch, dims.heads, dims.queries, 1];
    let arrays = [
        ("q", q.len(), q_shape),
        ("k", k.len(), k_shape),
        ("v", v.len(), v_shape),
        ("out", grads.out.len(), o_shape),
        ("dout", grads.dout.len(), o_shape),
        ("lse", grads.lse.len(), lse_shape),
        ("dlse", grads.dlse.unwrap_or(grads.lse).len(), lse_shape),
        ("dq", dq.len(), q_shape),
        ("dk", dk.len(), k_shape),
        ("dv", dv.len(), v_shape),
    ];
    dims.check(mask, &arrays);
    dk.fill(R::ZERO);
    dv.fill(R::ZERO);
    if q.is_empty() || k.is_empty() || v.is_empty() {
        dq.fill(R::ZERO);
        return;
    }
    let Dims {
        batch,
        kv_heads,
        dim,
        value_dim,
        ..
    } = *dims;
    let input = Input {
        dims,
        mask,
        scale,
        q,
        k,
        v,
        grads,
    };
    let dq = rows_by_head(dq, batch, kv_heads, dims.group(), dim);
    let dk = rows_by_head(dk, batch, kv_heads, 1, dim);
    let dv = rows_by_head(dv, batch, kv_heads, 1, value_dim);
    dq.into_par_iter()
        .zip(dk)
        .zip(dv)
        .enumerate()
        .for_each_init(
            || Scratch::new(dims),
            |scratch, (head, ((mut dq, mut dk), mut dv))| {
                vectorize(
                    #[inline(always)]
                    || differentiate(&input, scratch, head, (&mut dq, &mut dk, &mut dv)),
                )
            },
        );
}

struct Input<'a, R> {
    dims: &'a Dims,
    mask: &'a Mask<'a>,
    scale: R,
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    grads: Gradients<'a, R>,
}

/// What one panel of queries brings and collects. `columns` means [dim padded, 16 queries]; `rows` means
/// [dim/16, 16 queries, 16], the same panel as the right factor of a sum over queries.
struct Panel<R> {
    q_columns: Vec<Lane<R>>,
    q_rows: Vec<Lane<R>>,
    dout_columns: Vec<Lane<R>>,
    dout_rows: Vec<Lane<R>>,
    dq: Vec<Lane<R>>,
    /// -lse and -delta: what the scores and dp start from.
    minus_lse: Lane<R>,
    minus_delta: Lane<R>,
}

struct Scratch<R> {
    panels: Vec<Panel<R>>,
    p: Vec<Lane<R>>,
    ds: Vec<Lane<R>>,
    k: Packed<R>,
    v: Packed<R>,
    dk: TileGradient<R>,
    dv: TileGradient<R>,
}

impl<R: Real> Scratch<R> {
    fn new(dims: &Dims) -> Scratch<R> {
        let columns = |dim: usize| vec![splat(R::ZERO); dim.next_multiple_of(BLOCK)];
        let rows = |dim: usize| vec![splat(R::ZERO); dim.div_ceil(LANES) * LANES];
        let panel = |_| Panel {
            q_columns: columns(dims.dim),
            q_rows: rows(dims.dim),
            dout_columns: columns(dims.value_dim),
            dout_rows: rows(dims.value_dim),
            dq: columns(dims.dim),
            minus_lse: splat(R::ZERO),
            minus_delta: splat(R::ZERO),
        };
        Scratch {
            panels: (0..dims.lanes().div_ceil(LANES).min(SPAN))
                .map(panel)
                .collect(),
            p: vec![splat(R::ZERO); TILE],
            ds: vec![splat(R::ZERO); TILE],
            k: Packed::new(TILE, dims.dim),
            v: Packed::new(TILE, dims.value_dim),
            dk: TileGradient::new(dims.dim),
            dv: TileGradient::new(dims.value_dim),
        }
    }
}

/// dk or dv of one tile of keys [dim/16, 64, 16].
struct TileGradient<R> {
    sums: Vec<Lane<R>>,
}

impl<R: Real> TileGradient<R> {
    fn new(dim: usize) -> TileGradient<R> {
        TileGradient {
            sums: vec![splat(R::ZERO); dim.div_ceil(LANES) * TILE],
        }
    }

    /// Add weights [keys, 16 queries] times the queries' rows.
    #[inline(always)]
    fn add(&mut self, keys: std::ops::Range<usize>, weights: &[Lane<R>], rows: &[Lane<R>]) {
        let (weights, _) = weights[keys.clone()].as_flattened().as_chunks::<BLOCK>();
        let steps = Steps {
            rows: LANES / BLOCK,
            columns: 1,
        };
        let sums = self.sums.chunks_exact_mut(TILE);
        for (sums, rows) in sums.zip(rows.chunks_exact(LANES)) {
            rows_times_panel(
                (weights, steps),
                rows,
                Start::Result,
                &mut sums[keys.clone()],
            );
        }
    }

    /// Add the sums to the rows of the result, and start again from zero.
    #[inline(always)]
    fn flush(&mut self, rows: &mut [&mut [R]]) {
        for (i, row) in rows.iter_mut().enumerate() {
            let sums = self.sums[i..].iter().step_by(TILE);
            for (piece, sum) in row.chunks_mut(LANES).zip(sums) {
                match piece.as_mut_array::<LANES>() {
                    Some(piece) => (0..LANES).for_each(|lane| piece[lane] += sum[lane]),
                    None => piece.iter_mut().zip(sum).for_each(|(x, sum)| *x += *sum),
                }
            }
        }
        self.sums.fill(splat(R::ZERO));
    }
}

/// rows[j, lane, i] = element 16 j + i of the lane's row, times `scale`; 0 where there is none.
#[inline(always)]
fn copy_into<'a, R: Real>(source: impl Iterator<Item = &'a [R]>, scale: R, rows: &mut [Lane<R>]) {
    rows.fill(splat(R::ZERO));
    for (lane, source) in source.enumerate() {
        for (j, piece) in source.chunks(LANES).enumerate() {
            let out = &mut rows[j * LANES + lane];
            match piece.as_array::<LANES>() {
                Some(piece) => {
                    *out = piece.map(
                        #[inline(always)]
                        |x| x * scale,
                    )
                }
                None => (out.iter_mut().zip(piece)).for_each(
                    #[inline(always)]
                    |(out, x)| *out = *x * scale,
                ),
            }
        }
    }
}

/// Rows of a result, one for each lane or key.
type Rows<'a, 'r, R> = &'a mut [&'r mut [R]];

#[inline(always)]
fn differentiate<R: Real>(
    input: &Input<R>,
    scratch: &mut Scratch<R>,
    head: usize,
    (dq, dk, dv): (Rows<R>, Rows<R>, Rows<R>),
) {
    let Input {
        dims, mask, k, v, ..
    } = *input;
    let (b, g) = (head / dims.kv_heads, head % dims.kv_heads);
    for (i, dq) in dq.chunks_mut(SPAN * LANES).enumerate() {
        let first = i * SPAN * LANES;
        let end = first + dq.len();
        let positions = |lanes| LanePositions::new(mask.query_start[b], dims.group(), lanes);
        let panels = (end - first).div_ceil(LANES);
        let lanes_of = |i: usize| first + i * LANES..end.min(first + (i + 1) * LANES);
        for (i, panel) in scratch.panels[..panels].iter_mut().enumerate() {
            panel.load(input, b, g, lanes_of(i));
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
            for i in 0..panels {
                let lanes = positions(lanes_of(i));
                let cover = mask.cover(b, tile.clone(), dims.keys, span, &lanes);
                scratch.tile(i, tile.len(), cover);
            }
            scratch.dk.flush(&mut dk[tile.clone()]);
            scratch.dv.flush(&mut dv[tile]);
        }
        let factor = splat(input.scale);
        for (panel, dq) in scratch.panels.iter().zip(dq.chunks_mut(LANES)) {
            transpose_from(&panel.dq, &factor, dq);
        }
    }
}

impl<R: Real> Panel<R> {
    #[inline(always)]
    fn load(&mut self, input: &Input<R>, b: usize, g: usize, lanes: std::ops::Range<usize>) {
        let Input {
            dims,
            scale,
            q,
            grads,
            ..
        } = *input;
        let of = |lane: usize| dims.query_row(b, g, lane);
        let q = lanes.clone().map(|lane| row(q, of(lane), dims.dim));
        let dout = lanes
            .clone()
            .map(|lane| row(grads.dout, of(lane), dims.value_dim));
        let out = lanes
            .clone()
            .map(|lane| row(grads.out, of(lane), dims.value_dim));
        transpose_into(q.clone(), scale, &mut self.q_columns);
        copy_into(q, scale, &mut self.q_rows);
        transpose_into(dout.clone(), R::ONE, &mut self.dout_columns);
        copy_into(dout.clone(), R::ONE, &mut self.dout_rows);
        self.dq.fill(splat(R::ZERO));
        self.minus_lse = splat(R::ZERO);
        self.minus_delta = splat(R::ZERO);
        for (i, (lane, (dout, out))) in lanes.zip(dout.zip(out)).enumerate() {
            let at = dims.lse_index(b, g, lane);
            // A query that sees nothing has lse -infinity; its scores are all hidden, so any finite number
            // makes its weights 0.
            let lse = grads.lse[at];
            self.minus_lse[i] = if lse == R::NEG_INFINITY {
                R::ZERO
            } else {
                -lse
            };
            let dlse = grads.dlse.map_or(R::ZERO, |dlse| dlse[at]);
            self.minus_delta[i] = dlse - dot(dout, out);
        }
    }
}

impl<R: Real> Scratch<R> {
    /// One panel against the packed tile of `len` keys.
    #[inline(always)]
    fn tile(&mut self, panel: usize, len: usize, cover: Cover) {
        let (keys, seen) = match cover {
            Cover::Hidden => return,
            Cover::Full => (0..len, None),
            Cover::Partial(keys, seen) => (keys, Some(seen)),
        };
        let panel = &mut self.panels[panel];
        let (q, dout) = (&panel.q_columns, &panel.dout_columns);
        self.k
            .times_panel(keys.clone(), q, &panel.minus_lse, &mut self.p);
        self.v
            .times_panel(keys.clone(), dout, &panel.minus_delta, &mut self.ds);
        let (p, ds) = (&mut self.p[keys.clone()], &mut self.ds[keys.clone()]);
        if let Some(seen) = &seen {
            hide(p, &seen[keys.clone()]);
        }
        let weights = p.as_flattened_mut().iter_mut();
        for (p, ds) in weights.zip(ds.as_flattened_mut()) {
            *p = p.exp();
            // Hidden keys may be NaN.
            *ds = if *p == R::ZERO { R::ZERO } else { *p * *ds };
        }
        self.dv.add(keys.clone(), &self.p, &panel.dout_rows);
        self.dk.add(keys.clone(), &self.ds, &panel.q_rows);
        let exact = seen.is_some() && !self.k.is_finite(keys.clone());
        let keep = splat(R::ONE);
        self.k
            .transposed_times_panel(keys, &self.ds, &keep, &mut panel.dq, exact);
    }
}
