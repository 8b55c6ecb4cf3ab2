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

use super::blocks::{LANES, Lanes, Left, Mode, decay_to_end, lanes, product, sum, transpose};
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
        let (dims, width) = (&l.dims, l.channels());
        let scale = R::ONE / R::from_f64(dims.key_dim as f64).sqrt();
        for r in 0..span.rows {
            let row = r * width..(r + 1) * width;
            let q = &mut self.q.as_flattened_mut()[row.clone()];
            let k = &mut self.k.as_flattened_mut()[row.clone()];
            let e = &mut self.e.as_flattened_mut()[row.clone()];
            let decay = &mut self.decay.as_flattened_mut()[row];
            decay.fill(R::ONE);
            self.head_decay[r] = R::ONE;
            if r >= span.tokens {
                q.fill(R::ZERO);
                k.fill(R::ZERO);
                e.fill(R::ZERO);
                continue;
            }
            let position = l.position(u, span.start + r);
            self.q_rnorm[r] = normalise(x.query(dims, position, u.head), scale, q);
            self.k_rnorm[r] = normalise(x.key(dims, position, u.head), R::ONE, k);
            let b = x.erase.row(position, u.head_of(&x.erase, dims));
            if let [b] = b {
                for (e, k) in e.iter_mut().zip(k) {
                    *e = *b * *k;
                }
            } else {
                e[b.len()..].fill(R::ZERO);
                for ((e, k), b) in e.iter_mut().zip(k).zip(b) {
                    *e = *b * *k;
                }
            }
            if let Some(gate) = &x.decay {
                match gate.row(position, u.head_of(gate, dims)) {
                    [g] => self.head_decay[r] = g.exp(),
                    g => {
                        for (a, g) in decay.iter_mut().zip(g) {
                            *a = g.exp();
                        }
                    }
                }
            }
        }
    }
}

/// y = scale x / sqrt(sum x^2 + eps), zeros beyond x; y is whole lanes. Returns 1 / sqrt(..).
#[inline(always)]
pub(super) fn normalise<R: Real>(x: &[R], scale: R, y: &mut [R]) -> R {
    y[..x.len()].copy_from_slice(x);
    y[x.len()..].fill(R::ZERO);
    let (chunks, _) = y.as_chunks::<LANES>();
    let mut squares = [R::ZERO; LANES];
    for c in chunks {
        for l in 0..LANES {
            squares[l] = c[l].mul_add(c[l], squares[l]);
        }
    }
    let rnorm = R::ONE / (sum(squares) + R::from_f64(L2_EPS)).sqrt();
    for y in y {
        *y *= rnorm * scale;
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
                        for l in 0..LANES {
                            es[i][l] = e[i][l] * run[l];
                            eg[i][l] = es[i][l] * before[l];
                        }
                        for l in 0..LANES {
                            qs[i][l] = q[i][l] * run[l];
                            qg[i][l] = qs[i][l] * before[l];
                        }
                    }
                    for l in 0..LANES {
                        gamma[j][l] = before[l] * run[l];
                    }
                }
            },
        )
    }

    /// T and P between rows of one sub-chunk: the key walks from its row to the end and decays on the way.
    fn pairs_inside(&mut self, kl: usize, rl: usize, keys: &Keys<R>, block: usize) {
        let first = block * LANES;
        vectorize(
            #[inline(always)]
            || {
                let (mut t, mut p) = ([[R::ZERO; LANES]; LANES], [[R::ZERO; LANES]; LANES]);
                let key = &mut self.block[..kl];
                for s in 0..LANES {
                    key.copy_from_slice(&keys.k[(first + s) * kl..][..kl]);
                    for r in s..LANES {
                        let row = (first + r) * kl..(first + r + 1) * kl;
                        let (mut te, mut tq) = ([R::ZERO; LANES], [R::ZERO; LANES]);
                        let (e, q, a) =
                            (&keys.e[row.clone()], &keys.q[row.clone()], &keys.decay[row]);
                        for j in 0..kl {
                            for l in 0..LANES {
                                let decay = if r > s { a[j][l] } else { R::ONE };
                                key[j][l] *= decay;
                                te[l] = e[j][l].mul_add(key[j][l], te[l]);
                                tq[l] = q[j][l].mul_add(key[j][l], tq[l]);
                            }
                        }
                        t[r][s] = if r > s { sum(te) } else { R::ZERO };
                        p[r][s] = sum(tq);
                    }
                }
                for r in 0..LANES {
                    self.t[(first + r) * rl + block] = t[r];
                    self.p[(first + r) * rl + block] = p[r];
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
