//! Backward of the key side: from the gradients of P, Qg, Kg and gamma to those of q, k and the decays.
//!
//! Each product of `scores` gives back through the same two factors <= 1. The decays need no product of their own: a
//! pair carries exp(G_r - G_s), so what it gives to G_r it takes from G_s, and with dq_r, dk_r the gradients of rows
//!
//! ```text
//! dG_r = q_r . dq_r - k_r . dk_r
//! dG_C += gamma . dgamma + sum_s Kg_s . dKg_s
//! dg   = reversed cumulative sum of dG          (summed over channels if the decay is per head)
//! ```

use weft_tensor::{Real, cpu::simd::vectorize};

use super::super::blocks::{
    LANES, Lane, Lanes, Left, Mode, add_column_products, decay_to_end, lane, lanes, multiply,
    product, scale_columns, store, sum,
};
use super::backward::{Rows, add_row_products};
use super::scores::{Keys, Scores};
use super::{Layout, Span};

/// Gradients of one block's key side, and the scratch to compute them.
pub(super) struct KeyGradients<R: Real> {
    /// dP [C, C] (not masked); dQg and dKg, then dq and dk [C, K].
    pub p: Lanes<R>,
    pub q: Lanes<R>,
    pub k: Lanes<R>,
    /// dgamma [K].
    gamma: Vec<R>,
    /// A decay per head: sums over its value heads of dP . ratios, dq and dk.
    p_total: Lanes<R>,
    q_total: Lanes<R>,
    k_total: Lanes<R>,
    /// dG of each row [C].
    cumulated: Vec<R>,
    /// A decay per channel: dG behind the current row [K]; keys decayed to the current sub-chunk [C, K].
    run: Lanes<R>,
    kept: Lanes<R>,
}

impl<R: Real> KeyGradients<R> {
    pub fn new(l: &Layout) -> Self {
        let rows = |needed| lanes(if needed { l.rows() * l.key_lanes } else { 0 });
        let square = |needed| lanes(if needed { l.rows() * l.row_lanes } else { 0 });
        KeyGradients {
            p: square(true),
            q: rows(true),
            k: rows(true),
            gamma: vec![R::ZERO; l.channels()],
            p_total: square(!l.by_channel),
            q_total: rows(!l.by_channel),
            k_total: rows(!l.by_channel),
            cumulated: vec![R::ZERO; l.rows()],
            run: lanes(l.key_lanes),
            kept: rows(l.by_channel),
        }
    }

    /// All sums to 0.
    pub fn reset(&mut self) {
        self.reset_value_head();
        for data in [&mut self.p_total, &mut self.q_total, &mut self.k_total] {
            data.fill([R::ZERO; LANES]);
        }
    }

    fn reset_value_head(&mut self) {
        for data in [&mut self.p, &mut self.q, &mut self.k] {
            data.fill([R::ZERO; LANES]);
        }
        self.gamma.fill(R::ZERO);
    }

    /// dgamma += rowsum(S . dS') of a panel of columns.
    pub fn add_gamma(&mut self, before: &[Lane<R>], behind: &[Lane<R>]) {
        add_row_products(before, behind, &mut self.gamma);
    }

    /// A decay per head: takes what its value head `n` gave into the sums, and writes the gradient of its decay.
    pub fn of_value_head(
        &mut self,
        l: &Layout,
        span: Span,
        keys: &Keys<R>,
        scores: &Scores<R>,
        [qg, kg]: [&[Lane<R>]; 2],
        gamma: &[Lane<R>],
        n: usize,
        decay: Option<&mut [&mut [R]]>,
    ) {
        let (kl, rl, rows) = (l.key_lanes, l.row_lanes, span.rows);
        if let Some(decay) = decay {
            vectorize(
                #[inline(always)]
                || self.head_decay(l, span, scores, [qg, kg], gamma[0][0], n, decay),
            );
        }
        vectorize(
            #[inline(always)]
            || {
                for r in 0..rows {
                    for i in r * rl..=r * rl + r / LANES {
                        let (total, p, ratio) =
                            (&mut self.p_total[i], &self.p[i], &scores.ratios[i]);
                        for l in 0..LANES {
                            total[l] = p[l].mul_add(ratio[l], total[l]);
                        }
                    }
                }
                let mut run = R::ONE;
                for r in 0..rows {
                    run *= keys.head_decay[r];
                    add_scaled(run, &self.q[r * kl..][..kl], &mut self.q_total[r * kl..]);
                }
                run = R::ONE;
                for r in (0..rows).rev() {
                    add_scaled(run, &self.k[r * kl..][..kl], &mut self.k_total[r * kl..]);
                    run *= keys.head_decay[r];
                }
            },
        );
        self.reset_value_head();
    }

    /// dg of one value head. With M = dP . P: dG_r = rowsum(M)_r - colsum(M)_r + Qg_r . dQg_r - Kg_r . dKg_r.
    #[inline(always)]
    fn head_decay(
        &mut self,
        l: &Layout,
        span: Span,
        scores: &Scores<R>,
        [qg, kg]: [&[Lane<R>]; 2],
        gamma: R,
        n: usize,
        out: &mut [&mut [R]],
    ) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        let d_g = &mut self.cumulated;
        let mut last = gamma * self.gamma.iter().copied().sum::<R>();
        for r in 0..span.rows {
            let row = r * kl..(r + 1) * kl;
            let keys = dot(&kg[row.clone()], &self.k[row.clone()]);
            d_g[r] = dot(&qg[row.clone()], &self.q[row]) - keys;
            last += keys;
        }
        for r in 0..span.rows {
            for j in 0..=r / LANES {
                let i = r * rl + j;
                // Zero above the diagonal, where the ratios are and dP is anything.
                let mut m = scores.p[i];
                for l in 0..LANES {
                    m[l] *= self.p[i][l];
                }
                d_g[r] += sum(m);
                for l in 0..LANES {
                    d_g[j * LANES + l] -= m[l];
                }
            }
        }
        for r in (0..span.tokens).rev() {
            last += d_g[r];
            out[r][n] = last;
        }
    }

    /// Once all value heads are in: writes the gradients of q, k and, per channel, of the decay.
    pub fn finish(
        &mut self,
        l: &Layout,
        scale: R,
        span: Span,
        keys: &Keys<R>,
        scores: &Scores<R>,
        gamma: &[Lane<R>],
        out: &mut Rows<R>,
    ) {
        if l.by_channel {
            self.by_channel(l, span.rows, keys, scores, gamma);
        } else {
            self.by_head(l, span.rows, keys);
        }
        let (d_q, d_k) = match l.by_channel {
            true => (&self.q, &self.k),
            false => (&self.q_total, &self.k_total),
        };
        let kl = l.key_lanes;
        vectorize(
            #[inline(always)]
            || {
                for r in (0..span.tokens).rev() {
                    let row = r * kl..(r + 1) * kl;
                    let (d_q, d_k) = (&d_q[row.clone()], &d_k[row.clone()]);
                    for (part, d) in out.q[r].chunks_mut(LANES).zip(d_q) {
                        let mut d = *d;
                        for l in 0..LANES {
                            d[l] *= scale;
                        }
                        store(&d, part);
                    }
                    for (part, d) in out.k[r].chunks_mut(LANES).zip(d_k) {
                        store(d, part);
                    }
                    if l.by_channel
                        && let Some(decay) = &mut out.decay
                    {
                        let (q, k) = (&keys.q[row.clone()], &keys.k[row]);
                        for (j, part) in decay[r].chunks_mut(LANES).enumerate() {
                            let mut run = self.run[j];
                            for l in 0..LANES {
                                run[l] = q[j][l].mul_add(d_q[j][l], run[l]);
                            }
                            for l in 0..LANES {
                                run[l] = (-k[j][l]).mul_add(d_k[j][l], run[l]);
                            }
                            self.run[j] = run;
                            store(&run, part);
                        }
                    }
                }
            },
        );
    }

    /// What the plain products give to q and k.
    fn by_head(&mut self, l: &Layout, rows: usize, keys: &Keys<R>) {
        let (kl, pairs) = (l.key_lanes, Left::rows(&self.p_total, l.row_lanes));
        for i in (0..rows).step_by(LANES) {
            let (q, k) = (&mut self.q_total[i * kl..], &mut self.k_total[i * kl..]);
            let shape = (LANES, kl, i + LANES);
            product(shape, pairs.from(i, 0), (&keys.k, kl), (q, kl), Mode::Add);
            let shape = (LANES, kl, rows - i);
            product(
                shape,
                pairs.from(i, i).t(),
                (&keys.q[i * kl..], kl),
                (k, kl),
                Mode::Add,
            );
        }
    }

    fn by_channel(
        &mut self,
        l: &Layout,
        rows: usize,
        keys: &Keys<R>,
        scores: &Scores<R>,
        gamma: &[Lane<R>],
    ) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        let through = |first: usize| &scores.prefix[(first + LANES - 1) * kl..][..kl];
        for ((run, gamma), d) in self
            .run
            .as_flattened_mut()
            .iter_mut()
            .zip(gamma.as_flattened())
            .zip(&self.gamma)
        {
            *run = *gamma * *d;
        }
        // dQg carries the decay since the chunk's start; from here on it counts from each sub-chunk's.
        let mut before = lanes(kl);
        before.fill([R::ONE; LANES]);
        for first in (0..rows).step_by(LANES) {
            let block = first * kl..(first + LANES) * kl;
            let d = &mut self.q[block.clone()];
            scale_columns(&before, d);
            let pairs = Left::rows(&self.p, rl).from(first, 0);
            product(
                (LANES, kl, first),
                pairs,
                (&self.kept, kl),
                (d, kl),
                Mode::Add,
            );
            multiply(&scores.prefix[block.clone()], d);
            scale_columns(through(first), &mut self.kept[..first * kl]);
            let kept = &mut self.kept[block.clone()];
            kept.copy_from_slice(&keys.k[block.clone()]);
            decay_to_end(kl, &keys.decay[block], kept);
            multiply(through(first), &mut before);
        }
        add_column_products(&self.kept[..rows * kl], &self.k, &mut self.run);
        for first in (0..rows).step_by(LANES).rev() {
            let block = first * kl..(first + LANES) * kl;
            decay_to_end(kl, &keys.decay[block.clone()], &mut self.k[block.clone()]);
            let older = &mut self.k[..first * kl];
            scale_columns(through(first), older);
            let pairs = Left::rows(&self.p, rl).from(first, 0).t();
            product(
                (first, kl, LANES),
                pairs,
                (&scores.q_near[block], kl),
                (older, kl),
                Mode::Add,
            );
            self.inside(kl, rl, keys, first);
        }
    }

    /// Between rows of one sub-chunk: for each row, the decay since an earlier key grows from key to key.
    fn inside(&mut self, kl: usize, rl: usize, keys: &Keys<R>, first: usize) {
        let block = first * kl..(first + LANES) * kl;
        let [q, k, decay] = [&keys.q, &keys.k, &keys.decay].map(|x| &x[block.clone()]);
        let (d_q, d_k, p) = (&mut self.q[block.clone()], &mut self.k[block], &self.p[..]);
        vectorize(
            #[inline(always)]
            || {
                for r in 0..LANES {
                    let p = p[(first + r) * rl + first / LANES];
                    for j in 0..kl {
                        let i = r * kl + j;
                        let (q, mut run, mut total) = (q[i], decay[i], d_q[i]);
                        for l in 0..LANES {
                            total[l] = p[r].mul_add(k[i][l], total[l]);
                            d_k[i][l] = p[r].mul_add(q[l], d_k[i][l]);
                        }
                        for s in (0..r).rev() {
                            let i = s * kl + j;
                            let (key, a, d_k) = (&k[i], &decay[i], &mut d_k[i]);
                            let mut through = run;
                            for l in 0..LANES {
                                through[l] *= p[s];
                            }
                            for l in 0..LANES {
                                total[l] = through[l].mul_add(key[l], total[l]);
                            }
                            for l in 0..LANES {
                                d_k[l] = through[l].mul_add(q[l], d_k[l]);
                            }
                            for l in 0..LANES {
                                run[l] *= a[l];
                            }
                        }
                        d_q[i] = total;
                    }
                }
            },
        );
    }
}

/// out += factor row.
#[inline(always)]
fn add_scaled<R: Real>(factor: R, row: &[Lane<R>], out: &mut [Lane<R>]) {
    for (out, x) in out.iter_mut().zip(row) {
        for l in 0..LANES {
            out[l] = factor.mul_add(x[l], out[l]);
        }
    }
}

#[inline(always)]
fn dot<R: Real>(a: &[Lane<R>], b: &[Lane<R>]) -> R {
    let mut total = lane(&[]);
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            total[l] = a[l].mul_add(b[l], total[l]);
        }
    }
    sum(total)
}
