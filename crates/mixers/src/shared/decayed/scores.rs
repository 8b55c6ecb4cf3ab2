//! The key side of a chunk: everything that does not involve values or the state.
//!
//! With G the inclusive cumulative sum of g inside the chunk, rows r, s:
//!
//! ```text
//! P_rs = sum_c q_rc k_sc exp(G_rc - G_sc)   r >= s     [C, C]
//! Qg_r = q_r . exp(G_r)     Kg_s = k_s . exp(G_C - G_s)    [C, K]
//! gamma = exp(G_C)                                         [K]
//! ```
//!
//! A decay per head factors out of the sum: P is the plain product times the C x C ratios. A decay per channel does
//! not. There, sub-chunks of 16 rows are taken in turn; keys of earlier sub-chunks are kept decayed to the start of
//! the current one, whose rows carry their decay since that start, so the pair is a product of two factors <= 1;
//! pairs inside a sub-chunk are multiplied out one by one. After the last sub-chunk the kept keys are Kg.

use weft_tensor::{Real, cpu::simd::vectorize};

use super::super::blocks::{
    LANES, Lane, Lanes, Left, Mode, decay_to_end, lanes, load, product, sum, transpose,
};
use super::{Inputs, Layout, Span};

/// The rows of one chunk of a key head, padded with zeros (decay factors with ones).
pub(super) struct Keys<R: Real> {
    /// Queries times the scale, keys [C, K].
    pub q: Lanes<R>,
    pub k: Lanes<R>,
    /// Decay factors exp(g) of each channel [C, K], or of the value head at hand [C].
    pub decay: Lanes<R>,
    pub head_decay: Vec<R>,
}

impl<R: Real> Keys<R> {
    pub fn new(l: &Layout) -> Self {
        let rows = || lanes(l.rows() * l.key_lanes);
        Keys {
            q: rows(),
            k: rows(),
            decay: rows(),
            head_decay: vec![R::ONE; l.rows()],
        }
    }

    /// Reads the queries of key head `head`.
    pub fn load_q(&mut self, l: &Layout, x: &Inputs<R>, span: Span, head: usize) {
        load_rows(l, x.q, span, head, R::ZERO, &mut self.q);
        vectorize(
            #[inline(always)]
            || {
                for lane in &mut self.q[..span.rows * l.key_lanes] {
                    for l in 0..LANES {
                        lane[l] *= x.scale;
                    }
                }
            },
        );
    }

    /// Reads the keys of key head `head`.
    pub fn load_k(&mut self, l: &Layout, x: &Inputs<R>, span: Span, head: usize) {
        load_rows(l, x.k, span, head, R::ZERO, &mut self.k);
    }

    /// Reads the decay factors that value head `value_head` goes by, out of all of them.
    pub fn load_decay(&mut self, l: &Layout, factors: &[R], span: Span, value_head: usize) {
        if l.by_channel {
            let head = value_head / l.dims.repeat();
            load_rows(l, factors, span, head, R::ONE, &mut self.decay);
            return;
        }
        let (factors, heads) = (
            &factors[span.first * l.dims.value_heads..],
            l.dims.value_heads,
        );
        for (r, a) in self.head_decay.iter_mut().enumerate() {
            *a = if r < span.tokens {
                factors[r * heads + value_head]
            } else {
                R::ONE
            };
        }
    }
}

/// Rows of one head of data [B, T, H, K], `rest` beyond the tokens and channels.
fn load_rows<R: Real>(
    l: &Layout,
    data: &[R],
    span: Span,
    head: usize,
    rest: R,
    rows: &mut [Lane<R>],
) {
    let (n, kl) = (l.dims.key_dim, l.key_lanes);
    let rows = &mut rows[..span.rows * kl];
    vectorize(
        #[inline(always)]
        || {
            for (r, row) in rows.chunks_exact_mut(kl).enumerate() {
                if r < span.tokens {
                    load(
                        &data[((span.first + r) * l.dims.heads + head) * n..][..n],
                        row,
                    );
                    row.as_flattened_mut()[n..].fill(rest);
                } else {
                    row.fill([rest; LANES]);
                }
            }
        },
    );
}

/// Where decays count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Rows carry their decay since the start of the chunk, their own included: Qg.
    Start,
    /// Rows carry the decay of the rows behind them: Kg.
    End,
}

/// Qg from `x` = q, or Kg from `x` = k; and gamma.
pub(super) fn decay_rows<R: Real>(
    l: &Layout,
    keys: &Keys<R>,
    rows: usize,
    side: Side,
    x: &[Lane<R>],
    out: &mut [Lane<R>],
    gamma: &mut [Lane<R>],
) {
    let kl = l.key_lanes;
    vectorize(
        #[inline(always)]
        || {
            gamma.fill([R::ONE; LANES]);
            for n in 0..rows {
                let r = if side == Side::Start { n } else { rows - 1 - n };
                for j in 0..kl {
                    let (i, before) = (r * kl + j, gamma[j]);
                    let a = match l.by_channel {
                        true => keys.decay[i],
                        false => [keys.head_decay[r]; LANES],
                    };
                    for l in 0..LANES {
                        gamma[j][l] *= a[l];
                    }
                    let run = if side == Side::Start {
                        gamma[j]
                    } else {
                        before
                    };
                    for l in 0..LANES {
                        out[i][l] = x[i][l] * run[l];
                    }
                }
            }
        },
    );
}

/// The products of a chunk's queries and keys.
pub(super) struct Scores<R: Real> {
    /// P [C, C]; what stands above the diagonal of 16 x 16 squares is not written.
    pub p: Lanes<R>,
    /// A decay per head: the plain products and the ratios exp(G_r - G_s), 0 above the diagonal.
    pub plain: Lanes<R>,
    pub ratios: Lanes<R>,
    /// A decay per channel [C, K]: the decay of a row since the start of its sub-chunk, and q times it.
    pub prefix: Lanes<R>,
    pub q_near: Lanes<R>,
    /// Keys, decayed to the sub-chunk at hand if channels decay [K, C].
    turned: Lanes<R>,
    block: Lanes<R>,
}

impl<R: Real> Scores<R> {
    pub fn new(l: &Layout) -> Self {
        let square = |needed| lanes(if needed { l.rows() * l.row_lanes } else { 0 });
        let rows = || {
            lanes(if l.by_channel {
                l.rows() * l.key_lanes
            } else {
                0
            })
        };
        Scores {
            p: square(true),
            plain: square(!l.by_channel),
            ratios: square(!l.by_channel),
            prefix: rows(),
            q_near: rows(),
            turned: lanes(l.channels() * l.row_lanes),
            block: lanes(LANES * l.key_lanes),
        }
    }

    /// For the loaded queries and keys of a key head (and its decays, if they are its own).
    pub fn of_key_head(&mut self, l: &Layout, keys: &Keys<R>, rows: usize) {
        if l.by_channel {
            return self.by_channel(l, keys, rows);
        }
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        transpose((rows, kl), (&keys.k, kl), (&mut self.turned, rl));
        for first in (0..rows).step_by(LANES) {
            let shape = (LANES, first / LANES + 1, l.channels());
            let q = Left::rows(&keys.q[first * kl..], kl);
            let out = (&mut self.plain[first * rl..], rl);
            product(shape, q, (&self.turned, rl), out, Mode::Set);
        }
    }

    /// For the loaded decays of a value head, after [`Scores::of_key_head`].
    pub fn of_value_head(&mut self, l: &Layout, keys: &Keys<R>, rows: usize) {
        if l.by_channel {
            return;
        }
        let rl = l.row_lanes;
        vectorize(
            #[inline(always)]
            || {
                for r in 0..rows {
                    let a = keys.head_decay[r];
                    for j in 0..=r / LANES {
                        let i = r * rl + j;
                        // The row above, decayed by one more token.
                        let mut ratio = [R::ZERO; LANES];
                        if r > j * LANES {
                            ratio = self.ratios[i - rl];
                        }
                        for l in 0..LANES {
                            ratio[l] *= a;
                        }
                        if j == r / LANES {
                            ratio[r % LANES] = R::ONE;
                        }
                        self.ratios[i] = ratio;
                        for l in 0..LANES {
                            self.p[i][l] = self.plain[i][l] * ratio[l];
                        }
                    }
                }
            },
        );
    }

    fn by_channel(&mut self, l: &Layout, keys: &Keys<R>, rows: usize) {
        let (kl, rl) = (l.key_lanes, l.row_lanes);
        for block in 0..rows / LANES {
            let first = block * LANES;
            self.near_rows(kl, keys, first);
            let q = Left::rows(&self.q_near[first * kl..], kl);
            let out = (&mut self.p[first * rl..], rl);
            product(
                (LANES, block, l.channels()),
                q,
                (&self.turned, rl),
                out,
                Mode::Set,
            );
            self.inside(kl, rl, keys, block);
            self.turn_keys(kl, rl, keys, block);
        }
    }

    /// `prefix` and `q_near` of the sub-chunk from row `first`.
    fn near_rows(&mut self, kl: usize, keys: &Keys<R>, first: usize) {
        vectorize(
            #[inline(always)]
            || {
                for j in 0..kl {
                    let mut run = [R::ONE; LANES];
                    for r in first..first + LANES {
                        let i = r * kl + j;
                        for l in 0..LANES {
                            run[l] *= keys.decay[i][l];
                        }
                        self.prefix[i] = run;
                        for l in 0..LANES {
                            self.q_near[i][l] = keys.q[i][l] * run[l];
                        }
                    }
                }
            },
        );
    }

    /// P between rows of one sub-chunk.
    fn inside(&mut self, kl: usize, rl: usize, keys: &Keys<R>, block: usize) {
        let rows = block * LANES * kl..(block + 1) * LANES * kl;
        let [q, k, decay] = [&keys.q, &keys.k, &keys.decay].map(|x| &x[rows.clone()]);
        let out = &mut self.p[block * LANES * rl..];
        vectorize(
            #[inline(always)]
            || {
                let mut p = [[R::ZERO; LANES]; LANES];
                let mut j = 0;
                while j + 4 <= kl {
                    walk::<R, 4>(j, kl, [q, k, decay], &mut p);
                    j += 4;
                }
                while j < kl {
                    walk::<R, 1>(j, kl, [q, k, decay], &mut p);
                    j += 1;
                }
                for r in 0..LANES {
                    out[r * rl + block] = p[r];
                }
            },
        );
    }

    /// Decays the turned keys through sub-chunk `block` and adds that sub-chunk's own, decayed to its end.
    fn turn_keys(&mut self, kl: usize, rl: usize, keys: &Keys<R>, block: usize) {
        let first = block * LANES;
        let through = self.prefix[(first + LANES - 1) * kl..][..kl].as_flattened();
        vectorize(
            #[inline(always)]
            || {
                for (row, decay) in self.turned.chunks_exact_mut(rl).zip(through) {
                    for lane in &mut row[..block] {
                        for l in 0..LANES {
                            lane[l] *= *decay;
                        }
                    }
                }
            },
        );
        let rows = first * kl..(first + LANES) * kl;
        self.block.copy_from_slice(&keys.k[rows.clone()]);
        decay_to_end(kl, &keys.decay[rows], &mut self.block);
        transpose(
            (LANES, kl),
            (&self.block, kl),
            (&mut self.turned[block..], rl),
        );
    }
}

/// Adds what N lanes of channels contribute to P inside a sub-chunk: each key walks from its row to the last and
/// decays on the way.
#[inline(always)]
fn walk<R: Real, const N: usize>(
    j: usize,
    kl: usize,
    [q, k, decay]: [&[Lane<R>]; 3],
    p: &mut [Lane<R>; LANES],
) {
    for s in 0..LANES {
        let mut key = [[R::ZERO; LANES]; N];
        key.copy_from_slice(&k[s * kl + j..][..N]);
        for r in s..LANES {
            let row = r * kl + j..r * kl + j + N;
            let (q, a) = (&q[row.clone()], &decay[row]);
            let mut total = [R::ZERO; LANES];
            for n in 0..N {
                if r > s {
                    for l in 0..LANES {
                        key[n][l] *= a[n][l];
                    }
                }
                for l in 0..LANES {
                    total[l] = q[n][l].mul_add(key[n][l], total[l]);
                }
            }
            p[r][s] += sum(total);
        }
    }
}
