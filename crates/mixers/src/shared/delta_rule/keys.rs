//! The key side of a chunk: everything that does not involve values or the state.
//!
//! With G the inclusive cumulative sum of g inside the chunk and e = b . k, rows r, s of the chunk:
//!
//! ```text
//! T_rs = sum_c e_rc k_sc exp(G_rc - G_sc)   r > s      [C, C]
//! P_rs = sum_c q_rc k_sc exp(G_rc - G_sc)   r >= s     [C, C]
//! Eg_r = e_r . exp(G_r)     Qg_r = q_r . exp(G_r)      [C, K]
//! Kt_s = k_s . exp(G_C - G_s)                          [C, K], stored transposed [K, C]
//! gamma = exp(G_C)                                     [K]
//! ```
//!
//! A decay per head factors out of the sums: T and P are plain products times the C x C ratios. A decay per
//! channel does not. There, sub-chunks of 16 rows are taken in turn; keys of earlier sub-chunks are kept
//! decayed to the start of the current one, whose rows carry their decay since that start, so the pair is a
//! product of two factors <= 1; pairs inside a sub-chunk are multiplied out one by one. After the last
//! sub-chunk the kept keys are Kt.

use weft_tensor::{Real, cpu::simd::vectorize};

use super::blocks::{
    LANES, Lane, Lanes, Left, Mode, decay_to_end, lanes, load, multiply_lanes, product, sum,
    transpose,
};
use super::{Inputs, L2_EPS, Layout, Span, Unit};

/// The rows of one chunk of one unit, padded with zeros (decay factors with ones).
pub(super) struct Keys<R: Real> {
    /// Normalised queries times K^-1/2, normalised keys, gated keys e [C, K].
    pub q: Lanes<R>,
    pub k: Lanes<R>,
    pub e: Lanes<R>,
    /// Decay factors exp(g) of each channel [C, K], or of the head [C].
    pub decay: Lanes<R>,
    pub head_decay: Vec<R>,
    /// 1 / norm of the raw rows [C].
    pub q_rnorm: Vec<R>,
    pub k_rnorm: Vec<R>,
}

impl<R: Real> Keys<R> {
    pub fn new(l: &Layout) -> Self {
        let rows = || lanes(l.rows() * l.key_lanes);
        let scalars = || vec![R::ONE; l.rows()];
        Keys {
            q: rows(),
            k: rows(),
            e: rows(),
            decay: rows(),
            head_decay: scalars(),
            q_rnorm: scalars(),
            k_rnorm: scalars(),
        }
    }

    /// Reads the chunk `span` of unit `u`.
    pub fn load(&mut self, l: &Layout, x: &Inputs<R>, u: Unit, span: Span) {
        vectorize(
            #[inline(always)]
            || self.load_rows(l, x, u, span),
        )
    }

    #[inline(always)]
    fn load_rows(&mut self, l: &Layout, x: &Inputs<R>, u: Unit, span: Span) {
        let (dims, kl) = (&l.dims, l.key_lanes);
        let (q, k) = (&mut self.q[..span.rows * kl], &mut self.k[..span.rows * kl]);
        let (e, decay) = (
            &mut self.e[..span.rows * kl],
            &mut self.decay[..span.rows * kl],
        );
        for r in 0..span.tokens {
            let (position, row) = (l.position(u, span.start + r), r * kl..(r + 1) * kl);
            load(x.query(dims, position, u.head), &mut q[row.clone()]);
            load(x.key(dims, position, u.head), &mut k[row.clone()]);
            match x.erase.row(position, u.head_of(&x.erase, dims)) {
                [b] => e[row.clone()].fill([*b; LANES]),
                b => load(b, &mut e[row.clone()]),
            }
            match x
                .decay
                .as_ref()
                .map(|gate| gate.row(position, u.head_of(gate, dims)))
            {
                None => self.head_decay[r] = R::ONE,
                Some([g]) => self.head_decay[r] = g.exp(),
                Some(g) => load(g, &mut decay[row]),
            }
        }
        // Rows beyond the tokens: keys of 0, decays of 1.
        for rows in [&mut *q, k, e, decay] {
            rows[span.tokens * kl..].fill([R::ZERO; LANES]);
        }
        self.head_decay[span.tokens..].fill(R::ONE);
        let scale = R::ONE / R::from_f64(dims.key_dim as f64).sqrt();
        normalise_rows(q, kl, scale, &mut self.q_rnorm);
        normalise_rows(k, kl, R::ONE, &mut self.k_rnorm);
        multiply_lanes(k, e);
        if l.channel_decay {
            for g in decay.as_flattened_mut() {
                *g = g.exp();
            }
        }
    }
}

#[inline(always)]
fn normalise_rows<R: Real>(rows: &mut [Lane<R>], kl: usize, scale: R, rnorms: &mut [R]) {
    for (row, rnorm) in rows.chunks_exact_mut(kl).zip(rnorms) {
        *rnorm = normalise(scale, row);
    }
}

/// row *= scale / sqrt(sum row^2 + eps); returns 1 / sqrt(..).
#[inline(always)]
pub(super) fn normalise<R: Real>(scale: R, row: &mut [Lane<R>]) -> R {
    let mut squares = [R::ZERO; LANES];
    for x in &*row {
        for l in 0..LANES {
            squares[l] = x[l].mul_add(x[l], squares[l]);
        }
    }
    let rnorm = R::ONE / (sum(squares) + R::from_f64(L2_EPS)).sqrt();
    for x in row {
        for l in 0..LANES {
            x[l] *= rnorm * scale;
        }
    }
    rnorm
}

/// The products of a chunk's keys; see the head of this file.
pub(super) struct Pairs<R: Real> {
    /// [C, C], rows of `row_lanes`.
    pub t: Lanes<R>,
    pub p: Lanes<R>,
    /// [C, K], rows of `key_lanes`.
    pub eg: Lanes<R>,
    pub qg: Lanes<R>,
    /// [K, C], rows of `row_lanes`.
    pub kt: Lanes<R>,
    /// [K].
    pub gamma: Lanes<R>,
    /// Decay of each row since the start of its sub-chunk (since the start of the chunk if it is per head,
    /// then [C] in `head_prefix`), and e and q times it.
    pub prefix: Lanes<R>,
    pub head_prefix: Vec<R>,
    pub es: Lanes<R>,
    pub qs: Lanes<R>,
    ratios: Ratios<R>,
    block: Lanes<R>,
}

impl<R: Real> Pairs<R> {
    pub fn new(l: &Layout) -> Self {
        let rows = || lanes(l.rows() * l.key_lanes);
        let square = || lanes(l.rows() * l.row_lanes);
        Pairs {
            t: square(),
            p: square(),
            eg: rows(),
            qg: rows(),
            kt: lanes(l.channels() * l.row_lanes),
            gamma: lanes(l.key_lanes),
            prefix: rows(),
            head_prefix: vec![R::ONE; l.rows()],
            es: rows(),
            qs: rows(),
            ratios: Ratios::new(l.row_lanes),
            block: lanes(LANES * l.key_lanes),
        }
    }

    /// Computes everything for the `rows` loaded rows of `keys`.
    pub fn build(&mut self, l: &Layout, keys: &Keys<R>, rows: usize) {
        if l.channel_decay {
            self.build_per_channel(l, keys, rows);
        } else {
            self.build_per_head(l, keys, rows);
        }
    }

    fn build_per_channel(&mut self, l: &Layout, keys: &Keys<R>, rows: usize) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        self.gamma.fill([R::ONE; LANES]);
        for block in 0..rows / LANES {
            let first = block * LANES;
            self.scale_rows(kl, keys, first);
            for (scaled, out) in [(&self.es, &mut self.t), (&self.qs, &mut self.p)] {
                let scaled = Left::rows(&scaled[first * kl..], kl);
                let out = &mut out[first * rl..];
                product(
                    (LANES, block, l.channels()),
                    scaled,
                    (&self.kt, rl),
                    (out, rl),
                    Mode::Set,
                );
            }
            self.pairs_inside(kl, rl, keys, block);
            self.advance_keys(kl, rl, keys, block);
        }
    }

    /// prefix, es, qs, eg, qg of the sub-chunk from row `first`; gamma is the decay before it and, after, through it.
    fn scale_rows(&mut self, kl: usize, keys: &Keys<R>, first: usize) {
        let (prefix, gamma) = (&mut self.prefix[..], &mut self.gamma[..]);
        let (es, qs) = (&mut self.es[..], &mut self.qs[..]);
        let (eg, qg) = (&mut self.eg[..], &mut self.qg[..]);
        let (e, q, decay) = (&keys.e[..], &keys.q[..], &keys.decay[..]);
        vectorize(
            #[inline(always)]
            || {
                for j in 0..kl {
                    let mut run = [R::ONE; LANES];
                    let before = gamma[j];
                    for r in first..first + LANES {
                        let i = r * kl + j;
                        for l in 0..LANES {
                            run[l] *= decay[i][l];
                        }
                        prefix[i] = run;
                        (es[i], qs[i]) = (run, run);
                        for l in 0..LANES {
                            es[i][l] *= e[i][l];
                        }
                        for l in 0..LANES {
                            qs[i][l] *= q[i][l];
                        }
                        (eg[i], qg[i]) = (es[i], qs[i]);
                        for l in 0..LANES {
                            eg[i][l] *= before[l];
                        }
                        for l in 0..LANES {
                            qg[i][l] *= before[l];
                        }
                    }
                    for l in 0..LANES {
                        gamma[j][l] = before[l] * run[l];
                    }
                }
            },
        )
    }

    /// T and P between rows of one sub-chunk.
    fn pairs_inside(&mut self, kl: usize, rl: usize, keys: &Keys<R>, block: usize) {
        let (first, rows) = (block * LANES, block * LANES * kl..(block + 1) * LANES * kl);
        let [e, q, k, decay] = [&keys.e, &keys.q, &keys.k, &keys.decay].map(|x| &x[rows.clone()]);
        let (t_rows, p_rows) = (&mut self.t[..], &mut self.p[..]);
        vectorize(
            #[inline(always)]
            || {
                let (mut t, mut p) = ([[R::ZERO; LANES]; LANES], [[R::ZERO; LANES]; LANES]);
                let mut j = 0;
                while j + 4 <= kl {
                    walk::<R, 4>(j, kl, [e, q, k, decay], &mut t, &mut p);
                    j += 4;
                }
                while j < kl {
                    walk::<R, 1>(j, kl, [e, q, k, decay], &mut t, &mut p);
                    j += 1;
                }
                for r in 0..LANES {
                    t[r][r] = R::ZERO;
                    t_rows[(first + r) * rl + block] = t[r];
                    p_rows[(first + r) * rl + block] = p[r];
                }
            },
        )
    }

    /// Decays the kept keys through sub-chunk `block` and adds that sub-chunk's own, decayed to its end.
    fn advance_keys(&mut self, kl: usize, rl: usize, keys: &Keys<R>, block: usize) {
        let first = block * LANES;
        vectorize(
            #[inline(always)]
            || {
                let through = self.prefix[(first + LANES - 1) * kl..][..kl].as_flattened();
                for (row, decay) in self.kt.chunks_exact_mut(rl).zip(through) {
                    for lane in &mut row[..block] {
                        for l in 0..LANES {
                            lane[l] *= *decay;
                        }
                    }
                }
            },
        );
        let block_rows = first * kl..(first + LANES) * kl;
        self.block.copy_from_slice(&keys.k[block_rows.clone()]);
        decay_to_end(kl, &keys.decay[block_rows], &mut self.block);
        transpose((LANES, kl), (&self.block, kl), (&mut self.kt[block..], rl));
    }

    fn build_per_head(&mut self, l: &Layout, keys: &Keys<R>, rows: usize) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        transpose((rows, kl), (&keys.k, kl), (&mut self.kt, rl));
        for block in 0..rows / LANES {
            let first = block * LANES;
            for (row, out) in [(&keys.e, &mut self.t), (&keys.q, &mut self.p)] {
                let row = Left::rows(&row[first * kl..], kl);
                let out = &mut out[first * rl..];
                product(
                    (LANES, block + 1, l.channels()),
                    row,
                    (&self.kt, rl),
                    (out, rl),
                    Mode::Set,
                );
            }
        }
        vectorize(
            #[inline(always)]
            || {
                let ratios = &mut self.ratios;
                ratios.reset();
                for r in 0..rows {
                    ratios.advance(&keys.head_decay, r);
                    let row = r * rl..(r + 1) * rl;
                    for j in 0..=r / LANES {
                        let (t, p) = (&mut self.t[row.clone()][j], &mut self.p[row.clone()][j]);
                        for l in 0..LANES {
                            t[l] *= ratios.strict[j][l];
                            p[l] *= ratios.inclusive[j][l];
                        }
                    }
                }
                let mut run = R::ONE;
                for r in 0..rows {
                    run *= keys.head_decay[r];
                    self.head_prefix[r] = run;
                    for i in r * kl..(r + 1) * kl {
                        for l in 0..LANES {
                            self.eg[i][l] = keys.e[i][l] * run;
                            self.qg[i][l] = keys.q[i][l] * run;
                        }
                    }
                }
                self.gamma.fill([run; LANES]);
                // The last row of ratios holds exp(G_C - G_s).
                for row in self.kt.chunks_exact_mut(rl) {
                    for j in 0..rows / LANES {
                        for l in 0..LANES {
                            row[j][l] *= ratios.inclusive[j][l];
                        }
                    }
                }
            },
        )
    }
}

/// Adds what N lanes of channels contribute to T and P inside a sub-chunk: each key walks from its row to the
/// last and decays on the way.
#[inline(always)]
fn walk<R: Real, const N: usize>(
    j: usize,
    kl: usize,
    [e, q, k, decay]: [&[Lane<R>]; 4],
    t: &mut [Lane<R>; LANES],
    p: &mut [Lane<R>; LANES],
) {
    for s in 0..LANES {
        let mut key = [[R::ZERO; LANES]; N];
        key.copy_from_slice(&k[s * kl + j..][..N]);
        for r in s..LANES {
            let row = r * kl + j..r * kl + j + N;
            let (e, q, a) = (&e[row.clone()], &q[row.clone()], &decay[row]);
            let (mut te, mut tq) = ([R::ZERO; LANES], [R::ZERO; LANES]);
            for n in 0..N {
                if r > s {
                    for l in 0..LANES {
                        key[n][l] *= a[n][l];
                    }
                }
                for l in 0..LANES {
                    te[l] = e[n][l].mul_add(key[n][l], te[l]);
                    tq[l] = q[n][l].mul_add(key[n][l], tq[l]);
                }
            }
            t[r][s] += sum(te);
            p[r][s] += sum(tq);
        }
    }
}

/// Rows of the matrix exp(G_r - G_s) of a decay per head, s <= r (zero beyond), one after the other;
/// `strict` is zero on the diagonal.
pub(super) struct Ratios<R: Real> {
    pub strict: Lanes<R>,
    pub inclusive: Lanes<R>,
}

impl<R: Real> Ratios<R> {
    pub fn new(row_lanes: usize) -> Self {
        Ratios {
            strict: lanes(row_lanes),
            inclusive: lanes(row_lanes),
        }
    }

    /// Back before row 0.
    pub fn reset(&mut self) {
        self.inclusive.fill([R::ZERO; LANES]);
    }

    /// Moves on to row `r`, from row `r - 1` or from the start.
    #[inline(always)]
    pub fn advance(&mut self, head_decay: &[R], r: usize) {
        for (strict, inclusive) in self.strict.iter_mut().zip(self.inclusive.iter_mut()) {
            for l in 0..LANES {
                strict[l] = inclusive[l] * head_decay[r];
                inclusive[l] = strict[l];
            }
        }
        self.inclusive[r / LANES][r % LANES] = R::ONE;
    }
}
