//! Backward of the key side: from the gradients of T, P, Eg, Qg, Kt and gamma to those of q, k, the erase gate
//! and the decays.
//!
//! Let de_r, dq_r, dk_r be the gradients of e_r, q_r and of k_r as a key. Each product of `keys` gives back
//! through the same two factors <= 1. The decays need no product of their own: a pair carries exp(G_r - G_s),
//! so what it gives to G_r it takes from G_s, and
//!
//! ```text
//! dG_r = e_r . de_r + q_r . dq_r - k_r . dk_r
//! dG_C += gamma . dgamma + sum_s Kt_s . dKt_s
//! dg   = reversed cumulative sum of dG       (summed over channels if the decay is per head)
//! db_r = k_r . de_r,   dk_r += b_r . de_r
//! ```
//!
//! then the backward of the L2 norms, dx = (dy - y (y . dy)) / norm.

use weft_tensor::{Real, cpu::simd::vectorize};

use super::backward::PanelGradients;
use super::blocks::{
    LANES, Lane, Lanes, Left, Mode, add_column_products, decay_to_end, lane, lanes, multiply,
    multiply_lanes, product, scale_columns, scale_rows, store, sum, transpose,
};
use super::keys::{Keys, Pairs, Ratios};
use super::{Inputs, Layout, Span, Unit};

/// Gradients of one chunk's key side, and the scratch to compute them.
pub(super) struct KeyGradients<R: Real> {
    /// [C, K]: of Eg, Qg and Kt (here not transposed), then of e, q and k.
    e: Lanes<R>,
    q: Lanes<R>,
    k: Lanes<R>,
    /// [C, C], of T and P.
    t: Lanes<R>,
    p: Lanes<R>,
    /// Of gamma: one lane for each channel, still to be summed.
    gamma: Lanes<R>,
    /// Gradient of G behind the current row [K].
    run: Lanes<R>,
    /// Keys decayed to the current sub-chunk [C, K].
    kept: Lanes<R>,
    across: Lanes<R>,
    ratios: Ratios<R>,
}

/// The rows of a chunk that receive the gradients (added).
pub(super) struct KeyRows<'a, R> {
    pub q: Vec<&'a mut [R]>,
    pub k: Vec<&'a mut [R]>,
    pub decay: Vec<&'a mut [R]>,
    pub erase: Vec<&'a mut [R]>,
}

impl<R: Real> KeyGradients<R> {
    pub fn new(l: &Layout) -> Self {
        let rows = || lanes(l.rows() * l.key_lanes);
        let square = || lanes(l.rows() * l.row_lanes);
        KeyGradients {
            e: rows(),
            q: rows(),
            k: rows(),
            t: square(),
            p: square(),
            gamma: lanes(l.channels()),
            run: lanes(l.key_lanes),
            kept: rows(),
            across: lanes(LANES * l.key_lanes.max(l.row_lanes)),
            ratios: Ratios::new(l.row_lanes),
        }
    }

    pub fn reset(&mut self) {
        for data in [
            &mut self.e,
            &mut self.q,
            &mut self.k,
            &mut self.t,
            &mut self.p,
            &mut self.gamma,
        ] {
            data.fill([R::ZERO; LANES]);
        }
    }

    /// Adds what 16 value columns contribute to dEg, dQg, dKt, dT, dP (unmasked) and dgamma.
    pub fn add_panel(&mut self, l: &Layout, rows: usize, x: &PanelGradients<R>) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        let (d_x, d_o, values) = (
            Left::rows(x.d_x, 1),
            Left::rows(x.d_o, 1),
            Left::rows(x.values, 1),
        );
        transpose((rows, 1), (x.values, 1), (&mut self.across, rl));
        for i in (0..rows).step_by(LANES) {
            let shape = (LANES, i / LANES + 1, LANES);
            product(
                shape,
                d_x.from(i, 0),
                (&self.across, rl),
                (&mut self.t[i * rl..], rl),
                Mode::Sub,
            );
            product(
                shape,
                d_o.from(i, 0),
                (&self.across, rl),
                (&mut self.p[i * rl..], rl),
                Mode::Add,
            );
        }
        let shape = (rows, kl, LANES);
        transpose((l.channels(), 1), (x.state, 1), (&mut self.across, kl));
        product(shape, d_x, (&self.across, kl), (&mut self.e, kl), Mode::Sub);
        product(shape, d_o, (&self.across, kl), (&mut self.q, kl), Mode::Add);
        transpose((l.channels(), 1), (x.d_state, 1), (&mut self.across, kl));
        product(
            shape,
            values,
            (&self.across, kl),
            (&mut self.k, kl),
            Mode::Add,
        );
        let gamma = &mut self.gamma;
        vectorize(
            #[inline(always)]
            || {
                for ((g, s), d) in gamma.iter_mut().zip(x.state).zip(x.d_state) {
                    for l in 0..LANES {
                        g[l] = s[l].mul_add(d[l], g[l]);
                    }
                }
            },
        );
    }

    /// Once all panels are in: adds the gradients of q, k, decays and erase gate to `out`.
    pub fn finish(
        &mut self,
        l: &Layout,
        x: &Inputs<R>,
        unit: Unit,
        span: Span,
        keys: &Keys<R>,
        pairs: &Pairs<R>,
        out: &mut KeyRows<R>,
    ) {
        let (run, gamma) = (self.run.as_flattened_mut(), pairs.gamma.as_flattened());
        for ((run, gamma), d) in run.iter_mut().zip(gamma).zip(self.gamma.iter()) {
            *run = *gamma * sum(*d);
        }
        if l.channel_decay {
            self.per_channel(l, span.rows, keys, pairs);
        } else {
            self.per_head(l, span.rows, keys, pairs);
        }
        vectorize(
            #[inline(always)]
            || self.write_rows(l, x, unit, span, keys, out),
        )
    }

    fn per_channel(&mut self, l: &Layout, rows: usize, keys: &Keys<R>, pairs: &Pairs<R>) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        let mut before = lanes(kl);
        before.fill([R::ONE; LANES]);
        for first in (0..rows).step_by(LANES) {
            let block = first * kl..(first + LANES) * kl;
            let prefix = &pairs.prefix[block.clone()];
            for (d, pair) in [(&mut self.e, &self.t), (&mut self.q, &self.p)] {
                let d = &mut d[block.clone()];
                scale_columns(&before, d);
                let pair = Left::rows(pair, rl).from(first, 0);
                product(
                    (LANES, kl, first),
                    pair,
                    (&self.kept, kl),
                    (d, kl),
                    Mode::Add,
                );
                multiply(prefix, d);
            }
            let through = &prefix[(LANES - 1) * kl..];
            scale_columns(through, &mut self.kept[..first * kl]);
            let kept = &mut self.kept[block.clone()];
            kept.copy_from_slice(&keys.k[block.clone()]);
            decay_to_end(kl, &keys.decay[block], kept);
            multiply(through, &mut before);
        }
        add_column_products(&self.kept[..rows * kl], &self.k, &mut self.run);
        for first in (0..rows).step_by(LANES).rev() {
            let block = first * kl..(first + LANES) * kl;
            let through = &pairs.prefix[block.clone()][(LANES - 1) * kl..];
            decay_to_end(kl, &keys.decay[block.clone()], &mut self.k[block.clone()]);
            let older = &mut self.k[..first * kl];
            scale_columns(through, older);
            for (pair, row) in [(&self.t, &pairs.es), (&self.p, &pairs.qs)] {
                let pair = Left::rows(pair, rl).from(first, 0).t();
                product(
                    (first, kl, LANES),
                    pair,
                    (&row[block.clone()], kl),
                    (older, kl),
                    Mode::Add,
                );
            }
            self.pairs_inside(kl, rl, keys, first);
        }
    }

    /// Between rows of one sub-chunk: for each row, the decay since an earlier key grows from key to key.
    fn pairs_inside(&mut self, kl: usize, rl: usize, keys: &Keys<R>, first: usize) {
        let block = first * kl..(first + LANES) * kl;
        let [e, q, k, decay] = [&keys.e, &keys.q, &keys.k, &keys.decay].map(|x| &x[block.clone()]);
        let (d_e, d_q) = (&mut self.e[block.clone()], &mut self.q[block.clone()]);
        let (d_k, t, p) = (&mut self.k[block], &self.t[..], &self.p[..]);
        vectorize(
            #[inline(always)]
            || {
                for r in 0..LANES {
                    let pair = (first + r) * rl + first / LANES;
                    let (t, p) = (t[pair], p[pair]);
                    for j in 0..kl {
                        let i = r * kl + j;
                        let (e, q) = (e[i], q[i]);
                        let (mut sum_e, mut sum_q) = (d_e[i], d_q[i]);
                        for l in 0..LANES {
                            sum_q[l] = p[r].mul_add(k[i][l], sum_q[l]);
                            d_k[i][l] = p[r].mul_add(q[l], d_k[i][l]);
                        }
                        let mut run = decay[i];
                        for s in (0..r).rev() {
                            let i = s * kl + j;
                            let (key, a, d_k) = (&k[i], &decay[i], &mut d_k[i]);
                            let (mut kept, mut d) = (run, q);
                            for l in 0..LANES {
                                kept[l] *= key[l];
                            }
                            for l in 0..LANES {
                                sum_e[l] = t[s].mul_add(kept[l], sum_e[l]);
                            }
                            for l in 0..LANES {
                                sum_q[l] = p[s].mul_add(kept[l], sum_q[l]);
                            }
                            for l in 0..LANES {
                                d[l] = t[s].mul_add(e[l], p[s] * d[l]);
                            }
                            for l in 0..LANES {
                                d_k[l] = d[l].mul_add(run[l], d_k[l]);
                            }
                            for l in 0..LANES {
                                run[l] *= a[l];
                            }
                        }
                        d_e[i] = sum_e;
                        d_q[i] = sum_q;
                    }
                }
            },
        )
    }

    fn per_head(&mut self, l: &Layout, rows: usize, keys: &Keys<R>, pairs: &Pairs<R>) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        let KeyGradients {
            e,
            q,
            k,
            t,
            p,
            ratios,
            ..
        } = self;
        vectorize(
            #[inline(always)]
            || {
                ratios.reset();
                for r in 0..rows {
                    ratios.advance(&keys.head_decay, r);
                    multiply_lanes(&ratios.strict, &mut t[r * rl..][..rl]);
                    multiply_lanes(&ratios.inclusive, &mut p[r * rl..][..rl]);
                }
            },
        );
        // The last row of the ratios is exp(G_C - G_s).
        scale_rows(ratios.inclusive.as_flattened(), kl, &mut k[..rows * kl]);
        add_column_products(&keys.k[..rows * kl], k, &mut self.run);
        for first in (0..rows).step_by(LANES) {
            let block = first * kl..(first + LANES) * kl;
            for (d, pair) in [(&mut *e, &*t), (&mut *q, &*p)] {
                let d = &mut d[block.clone()];
                scale_rows(&pairs.head_prefix[first..], kl, d);
                let pair = Left::rows(pair, rl).from(first, 0);
                product(
                    (LANES, kl, first + LANES),
                    pair,
                    (&keys.k, kl),
                    (d, kl),
                    Mode::Add,
                );
            }
            let shape = (LANES, kl, rows - first);
            for (pair, row) in [(&*t, &keys.e), (&*p, &keys.q)] {
                let pair = Left::rows(pair, rl).from(first, first).t();
                let d = (&mut k[block.clone()], kl);
                product(shape, pair, (&row[first * kl..], kl), d, Mode::Add);
            }
        }
    }

    /// The sums over channels and rows, and the L2 norms: from the last row to the first.
    #[inline(always)]
    fn write_rows(
        &mut self,
        l: &Layout,
        x: &Inputs<R>,
        unit: Unit,
        span: Span,
        keys: &Keys<R>,
        out: &mut KeyRows<R>,
    ) {
        let (dims, kl) = (&l.dims, l.key_lanes);
        let scale = R::ONE / R::from_f64(dims.key_dim as f64).sqrt();
        let KeyGradients {
            e: d_e,
            q: d_q,
            k: d_k,
            run,
            ..
        } = self;
        for r in (0..span.tokens).rev() {
            let row = r * kl..(r + 1) * kl;
            let (e, q, k) = (
                &keys.e[row.clone()],
                &keys.q[row.clone()],
                &keys.k[row.clone()],
            );
            let (d_e, d_q) = (&d_e[row.clone()], &d_q[row.clone()]);
            let d_k = &mut d_k[row];
            for j in 0..kl {
                let mut sum = run[j];
                for l in 0..LANES {
                    sum[l] = e[j][l].mul_add(d_e[j][l], sum[l]);
                }
                for l in 0..LANES {
                    sum[l] = q[j][l].mul_add(d_q[j][l], sum[l]);
                }
                for l in 0..LANES {
                    sum[l] = (-k[j][l]).mul_add(d_k[j][l], sum[l]);
                }
                run[j] = sum;
            }
            if let Some(d_g) = out.decay.get_mut(r) {
                add_row(run, d_g);
            }
            let position = unit.batch * dims.tokens + span.start + r;
            let b = x.erase.row(position, unit.head_of(&x.erase, dims));
            let d_b = &mut *out.erase[r];
            if let [b] = b {
                d_b[0] += dot(k, d_e);
                for j in 0..kl {
                    for l in 0..LANES {
                        d_k[j][l] = b.mul_add(d_e[j][l], d_k[j][l]);
                    }
                }
            } else {
                for (j, (b, d_b)) in b.chunks(LANES).zip(d_b.chunks_mut(LANES)).enumerate() {
                    let (b, mut sum) = (lane(b), lane(d_b));
                    for l in 0..LANES {
                        d_k[j][l] = b[l].mul_add(d_e[j][l], d_k[j][l]);
                    }
                    for l in 0..LANES {
                        sum[l] = k[j][l].mul_add(d_e[j][l], sum[l]);
                    }
                    store(&sum, d_b);
                }
            }
            normalise_backward(q, scale, keys.q_rnorm[r], d_q, out.q[r]);
            normalise_backward(k, R::ONE, keys.k_rnorm[r], d_k, out.k[r]);
        }
    }
}

/// out += row, or its sum if `out` is one number.
#[inline(always)]
fn add_row<R: Real>(row: &[Lane<R>], out: &mut [R]) {
    if let [out] = out {
        let mut total = [R::ZERO; LANES];
        for lane in row {
            for l in 0..LANES {
                total[l] += lane[l];
            }
        }
        *out += sum(total);
    } else {
        for (out, x) in out.chunks_mut(LANES).zip(row) {
            let mut sum = lane(out);
            for l in 0..LANES {
                sum[l] += x[l];
            }
            store(&sum, out);
        }
    }
}

#[inline(always)]
fn dot<R: Real>(a: &[Lane<R>], b: &[Lane<R>]) -> R {
    let mut total = [R::ZERO; LANES];
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            total[l] = a[l].mul_add(b[l], total[l]);
        }
    }
    sum(total)
}

/// out += gradient of x, given that of y = scale x rnorm, rnorm = 1 / sqrt(sum x^2 + eps).
#[inline(always)]
fn normalise_backward<R: Real>(y: &[Lane<R>], scale: R, rnorm: R, d_y: &[Lane<R>], out: &mut [R]) {
    let along = -dot(y, d_y) / scale;
    for (j, out) in out.chunks_mut(LANES).enumerate() {
        let (mut d, mut sum) = (d_y[j], lane(out));
        for l in 0..LANES {
            d[l] = y[j][l].mul_add(along, d[l] * scale);
        }
        for l in 0..LANES {
            sum[l] = d[l].mul_add(rnorm, sum[l]);
        }
        store(&sum, out);
    }
}
