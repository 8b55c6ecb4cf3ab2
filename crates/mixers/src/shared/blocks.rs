//! The few dense operations that the chunks of linear mixers are made of, on rows of 16 lanes.
//!
//! Every matrix of a chunk lives in scratch whose rows are padded with zeros to a multiple of [`LANES`]
//! columns and whose row count is a multiple of [`LANES`] too. There are no remainder loops: padding is
//! computed and is zero. 16 lanes of f32 are one AVX-512 register, two AVX2 registers, four NEON ones; the
//! register tile is 4 rows by 16 lanes, which fits all three. Each result is one chain of fused
//! multiply-adds over the inner index in order, so its bits do not depend on how the work is divided.

use std::ops::{Deref, DerefMut};

use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

/// Columns of a register tile; also the sub-chunk length inside which decays are multiplied out.
pub(super) const LANES: usize = 16;

/// 16 neighbouring elements of a row.
pub(super) type Lane<R> = [R; LANES];

const TILE: usize = 4;

/// Rounds up to a multiple of [`LANES`].
pub(super) fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// Rows of lanes in a pooled, 64-byte aligned buffer.
pub(super) struct Lanes<R: Real>(Buffer<R>);

impl<R: Real> Deref for Lanes<R> {
    type Target = [Lane<R>];
    #[inline(always)]
    fn deref(&self) -> &[Lane<R>] {
        self.0.as_chunks().0
    }
}

impl<R: Real> DerefMut for Lanes<R> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [Lane<R>] {
        self.0.as_chunks_mut().0
    }
}

/// `n` lanes of unspecified content.
pub(super) fn lanes<R: Real>(n: usize) -> Lanes<R> {
    Lanes(Buffer::unwritten(n * LANES))
}

/// The left factor of a product: a matrix stored in rows of lanes, or its transpose.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, R> {
    data: &'a [R],
    stride: usize,
    transposed: bool,
}

impl<'a, R: Real> Left<'a, R> {
    /// The matrix stored in `rows`, with `groups` lanes in a row.
    pub fn rows(rows: &'a [Lane<R>], groups: usize) -> Self {
        Left {
            data: rows.as_flattened(),
            stride: groups * LANES,
            transposed: false,
        }
    }

    /// The same matrix without its first `row` rows and `col` columns.
    pub fn from(self, row: usize, col: usize) -> Self {
        let (i, j) = if self.transposed {
            (col, row)
        } else {
            (row, col)
        };
        Left {
            data: &self.data[i * self.stride + j..],
            ..self
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Left {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Rows i..i + TILE, columns j..j + TILE.
    #[inline(always)]
    fn square(&self, i: usize, j: usize) -> [[R; TILE]; TILE] {
        let mut x = [[R::ZERO; TILE]; TILE];
        for r in 0..TILE {
            for s in 0..TILE {
                x[r][s] = self.data[if self.transposed {
                    (j + s) * self.stride + i + r
                } else {
                    (i + r) * self.stride + j + s
                }];
            }
        }
        x
    }
}

/// acc + sign * a[i..i + TILE, 0..k] b, where b[s] is `b[s * stride]` and `sign` is -1 if `NEGATE`.
#[inline(always)]
fn accumulate<R: Real, const NEGATE: bool>(
    a: Left<R>,
    (i, k): (usize, usize),
    (b, stride): (&[Lane<R>], usize),
    acc: [Lane<R>; TILE],
) -> [Lane<R>; TILE] {
    let mut acc = acc;
    if a.transposed {
        for s in 0..k {
            let column = &a.data[s * a.stride + i..][..TILE];
            let row = &b[s * stride];
            for t in 0..TILE {
                let x = if NEGATE { -column[t] } else { column[t] };
                for l in 0..LANES {
                    acc[t][l] = x.mul_add(row[l], acc[t][l]);
                }
            }
        }
    } else {
        let mut rows: [&[R]; TILE] = [&[]; TILE];
        for t in 0..TILE {
            rows[t] = &a.data[(i + t) * a.stride..][..k];
        }
        for s in 0..k {
            let row = &b[s * stride];
            for t in 0..TILE {
                let x = if NEGATE { -rows[t][s] } else { rows[t][s] };
                for l in 0..LANES {
                    acc[t][l] = x.mul_add(row[l], acc[t][l]);
                }
            }
        }
    }
    acc
}

/// What a product does to its target.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    Set,
    Add,
    Sub,
}

/// c[m, groups * 16] = or += or -= a[m, k] b[k, groups * 16]. b and c are rows of `b.1` and `c.1` lanes.
/// m is a multiple of 4.
pub(super) fn product<R: Real>(
    (m, groups, k): (usize, usize, usize),
    a: Left<R>,
    b: (&[Lane<R>], usize),
    c: (&mut [Lane<R>], usize),
    mode: Mode,
) {
    if m == 0 || groups == 0 {
        return;
    }
    vectorize(
        #[inline(always)]
        || match mode {
            Mode::Set => tiles::<R, false, false>((m, groups, k), a, b, c),
            Mode::Add => tiles::<R, true, false>((m, groups, k), a, b, c),
            Mode::Sub => tiles::<R, true, true>((m, groups, k), a, b, c),
        },
    )
}

#[inline(always)]
fn tiles<R: Real, const KEEP: bool, const NEGATE: bool>(
    (m, groups, k): (usize, usize, usize),
    a: Left<R>,
    (b, bs): (&[Lane<R>], usize),
    (c, cs): (&mut [Lane<R>], usize),
) {
    debug_assert_eq!(m % TILE, 0);
    for j in 0..groups {
        for i in (0..m).step_by(TILE) {
            let mut acc = [[R::ZERO; LANES]; TILE];
            if KEEP {
                for t in 0..TILE {
                    acc[t] = c[(i + t) * cs + j];
                }
            }
            let acc = accumulate::<R, NEGATE>(a, (i, k), (&b[j..], bs), acc);
            for t in 0..TILE {
                c[(i + t) * cs + j] = acc[t];
            }
        }
    }
}

/// Solves (I + T) y = x in place, T [n, n] strictly lower triangular, x [n, 16] one lane to a row.
/// (Cheaper and no less stable than to form the inverse: the chunk's state is known here, so the inverse
/// would be used once.)
pub(super) fn solve_lower<R: Real>(n: usize, t: Left<R>, x: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || {
            for i in (0..n).step_by(TILE) {
                let (done, rest) = x.split_at_mut(i);
                let mut acc = [[R::ZERO; LANES]; TILE];
                acc.copy_from_slice(&rest[..TILE]);
                let mut acc = accumulate::<R, true>(t, (i, i), (done, 1), acc);
                let square = t.square(i, i);
                for s in 0..TILE {
                    for r in s + 1..TILE {
                        for l in 0..LANES {
                            acc[r][l] = (-square[r][s]).mul_add(acc[s][l], acc[r][l]);
                        }
                    }
                }
                rest[..TILE].copy_from_slice(&acc);
            }
        },
    )
}

/// Solves (I + U) y = x in place, U [n, n] strictly upper triangular, x [n, 16]: with U = T^T the adjoint
/// of [`solve_lower`].
pub(super) fn solve_upper<R: Real>(n: usize, u: Left<R>, x: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || {
            for i in (0..n).step_by(TILE).rev() {
                let (rest, done) = x[..n].split_at_mut(i + TILE);
                let mut acc = [[R::ZERO; LANES]; TILE];
                acc.copy_from_slice(&rest[i..]);
                if !done.is_empty() {
                    let beyond = u.from(0, i + TILE);
                    acc = accumulate::<R, true>(beyond, (i, done.len()), (done, 1), acc);
                }
                let square = u.square(i, i);
                for s in (1..TILE).rev() {
                    for r in 0..s {
                        for l in 0..LANES {
                            acc[r][l] = (-square[r][s]).mul_add(acc[s][l], acc[r][l]);
                        }
                    }
                }
                rest[i..].copy_from_slice(&acc);
            }
        },
    )
}

/// Transposes a [rows, groups * 16] matrix (`src.1` lanes from row to row) into [groups * 16, rows]
/// (`dst.1` lanes from row to row). `rows` is a multiple of 16.
pub(super) fn transpose<R: Real>(
    (rows, groups): (usize, usize),
    src: (&[Lane<R>], usize),
    dst: (&mut [Lane<R>], usize),
) {
    vectorize(
        #[inline(always)]
        || {
            let (mut x, mut y) = ([R::ZERO; LANES * LANES], [R::ZERO; LANES * LANES]);
            for i in 0..rows / LANES {
                for j in 0..groups {
                    for r in 0..LANES {
                        let row = &src.0[(i * LANES + r) * src.1 + j];
                        x[r * LANES..][..LANES].copy_from_slice(row);
                    }
                    riffle(&x, &mut y);
                    riffle(&y, &mut x);
                    riffle(&x, &mut y);
                    riffle(&y, &mut x);
                    for r in 0..LANES {
                        let row = &x[r * LANES..][..LANES];
                        dst.0[(j * LANES + r) * dst.1 + i].copy_from_slice(row);
                    }
                }
            }
        },
    )
}

/// A perfect shuffle: rotates the 8 bits of the index left by one. Four of them swap its two halves, row
/// and column. (Two loads, two interleavings, two stores per step; an element-wise transposition is three
/// times slower.)
#[inline(always)]
fn riffle<R: Real>(x: &[R; LANES * LANES], y: &mut [R; LANES * LANES]) {
    for n in 0..LANES * LANES / 2 {
        y[2 * n] = x[n];
        y[2 * n + 1] = x[n + LANES * LANES / 2];
    }
}

/// Up to 16 elements as a lane, zeros beyond.
#[inline(always)]
pub(super) fn lane<R: Real>(x: &[R]) -> Lane<R> {
    if let Ok(whole) = x.try_into() {
        return whole;
    }
    let mut lane = [R::ZERO; LANES];
    for (to, from) in lane.iter_mut().zip(x) {
        *to = *from;
    }
    lane
}

/// The first elements of a lane into as many places.
#[inline(always)]
pub(super) fn store<R: Real>(lane: &Lane<R>, to: &mut [R]) {
    match <&mut Lane<R>>::try_from(&mut *to) {
        Ok(whole) => *whole = *lane,
        Err(_) => to.iter_mut().zip(lane).for_each(|(to, from)| *to = *from),
    }
}

/// A row as lanes, zeros beyond.
#[inline(always)]
pub(super) fn load<R: Real>(x: &[R], row: &mut [Lane<R>]) {
    for (to, from) in row.iter_mut().zip(x.chunks(LANES)) {
        *to = lane(from);
    }
}

/// Sum of the lanes, as a tree.
#[inline(always)]
pub(super) fn sum<R: Real>(x: Lane<R>) -> R {
    let a: [R; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let b: [R; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
    (b[0] + b[2]) + (b[1] + b[3])
}

/// Row r of `rows` (of `groups` lanes) times `factors[r]`.
pub(super) fn scale_rows<R: Real>(factors: &[R], groups: usize, rows: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || {
            for (row, factor) in rows.chunks_exact_mut(groups).zip(factors) {
                for lane in row {
                    for l in 0..LANES {
                        lane[l] *= *factor;
                    }
                }
            }
        },
    )
}

/// Each row of `rows` times `factors`, column by column.
pub(super) fn scale_columns<R: Real>(factors: &[Lane<R>], rows: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(factors.len()) {
                multiply_lanes(factors, row);
            }
        },
    )
}

/// x *= factors, element by element.
pub(super) fn multiply<R: Real>(factors: &[Lane<R>], x: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || multiply_lanes(factors, x),
    )
}

#[inline(always)]
pub(super) fn multiply_lanes<R: Real>(factors: &[Lane<R>], x: &mut [Lane<R>]) {
    for (x, f) in x.iter_mut().zip(factors) {
        for l in 0..LANES {
            x[l] *= f[l];
        }
    }
}

/// Row r of a sub-chunk of 16 rows times the decays of the rows behind it.
pub(super) fn decay_to_end<R: Real>(groups: usize, decay: &[Lane<R>], rows: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || {
            for j in 0..groups {
                let mut run = [R::ONE; LANES];
                for r in (0..LANES).rev() {
                    let i = r * groups + j;
                    for l in 0..LANES {
                        rows[i][l] *= run[l];
                    }
                    for l in 0..LANES {
                        run[l] *= decay[i][l];
                    }
                }
            }
        },
    )
}

/// total += sum over rows of a . b.
pub(super) fn add_column_products<R: Real>(a: &[Lane<R>], b: &[Lane<R>], total: &mut [Lane<R>]) {
    vectorize(
        #[inline(always)]
        || {
            let groups = total.len();
            for (a, b) in a.chunks_exact(groups).zip(b.chunks_exact(groups)) {
                for ((total, a), b) in total.iter_mut().zip(a).zip(b) {
                    for l in 0..LANES {
                        total[l] = a[l].mul_add(b[l], total[l]);
                    }
                }
            }
        },
    )
}
