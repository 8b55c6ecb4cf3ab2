//! Products of a few rows with one matrix, again and again: the matrix is packed once into panels of 16 columns,
//! so that a product reads it in order and keeps its sums in registers. A product that is made once reads the
//! matrix as it is.

use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

/// Columns of a panel: an AVX-512 register of f32.
pub const LANES: usize = 16;

/// 16 neighbouring elements.
pub type Lane<R> = [R; LANES];

/// Rounds up to whole lanes.
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// The right factor [k, n] of a product.
pub enum Right<'a, R: Real> {
    /// Panels [n / 16, k, 16], the last one filled up with zeros.
    Panels(Buffer<R>, [usize; 2]),
    /// The rows of its transpose [n, k].
    Columns(&'a [R], [usize; 2]),
}

/// Rows that a product must be made with for packing to pay.
const PACK: usize = 8;

impl<'a, R: Real> Right<'a, R> {
    /// w^T for w [n, k], to be multiplied with `rows` rows in all.
    pub fn transposed(w: &'a [R], [n, k]: [usize; 2], rows: usize) -> Self {
        if rows < PACK {
            return Right::Columns(w, [k, n]);
        }
        Right::pack([k, n], |s, j| w[j * k + s])
    }

    /// w [k, n].
    pub fn as_is(w: &[R], [k, n]: [usize; 2]) -> Self {
        Right::pack([k, n], |s, j| w[s * n + j])
    }

    fn pack([k, n]: [usize; 2], at: impl Fn(usize, usize) -> R) -> Self {
        let mut panels = Buffer::filled(padded(n) * k, R::ZERO);
        for j in 0..n {
            let panel = &mut panels[j / LANES * k * LANES..];
            for s in 0..k {
                panel[s * LANES + j % LANES] = at(s, j);
            }
        }
        Right::Panels(panels, [k, n])
    }

    /// y[rows, n] = x[rows, k] times this. Rows of x are `xs` elements apart; those of y are padded to whole lanes.
    pub fn times(&self, rows: usize, x: (&[R], usize), y: &mut [R]) {
        vectorize(
            #[inline(always)]
            || match self {
                Right::Panels(panels, size) => {
                    panel_product(rows, x, (panels.as_chunks().0, *size), y.as_chunks_mut().0);
                }
                Right::Columns(w, [k, n]) => {
                    for (r, y) in y.chunks_exact_mut(padded(*n)).take(rows).enumerate() {
                        let x = &x.0[r * x.1..][..*k];
                        for (y, w) in y[..*n].iter_mut().zip(w.chunks_exact(*k)) {
                            *y = dot(x, w);
                        }
                    }
                }
            },
        )
    }
}

#[inline(always)]
fn panel_product<R: Real>(
    rows: usize,
    (x, xs): (&[R], usize),
    (panels, [k, n]): (&[Lane<R>], [usize; 2]),
    y: &mut [Lane<R>],
) {
    let count = n.div_ceil(LANES);
    let zero = [R::ZERO; LANES];
    let row = |r: usize| &x[r * xs..][..k];
    let panel = |p: usize| &panels[p * k..][..k];
    let (whole, four) = (rows / 4 * 4, count / 4 * 4);
    for p in 0..count {
        for r in (0..whole).step_by(4) {
            let x = [row(r), row(r + 1), row(r + 2), row(r + 3)];
            let [a, b, c, d] = four_rows(x, (panel(p), 1), [zero; 4]);
            y[r * count + p] = a;
            y[(r + 1) * count + p] = b;
            y[(r + 2) * count + p] = c;
            y[(r + 3) * count + p] = d;
        }
    }
    for r in whole..rows {
        for p in (0..four).step_by(4) {
            let w = [panel(p), panel(p + 1), panel(p + 2), panel(p + 3)];
            let [a, b, c, d] = four_panels(row(r), w);
            let y = &mut y[r * count + p..][..4];
            y[0] = a;
            y[1] = b;
            y[2] = c;
            y[3] = d;
        }
        for p in four..count {
            y[r * count + p] = one_row(row(r), (panel(p), 1), zero);
        }
    }
}

// The sums below are named and never indexed by a variable: an array of them that is, even once behind the loop, is
// kept in memory and the loop falls apart into scalars (measured: twenty times slower).

/// The sums plus x_r w for four rows x_r [k] and a lane of w at every `step`-th place.
#[inline(always)]
pub fn four_rows<R: Real>(
    [x0, x1, x2, x3]: [&[R]; 4],
    (w, step): (&[Lane<R>], usize),
    sums: [Lane<R>; 4],
) -> [Lane<R>; 4] {
    let [mut a, mut b, mut c, mut d] = sums;
    let k = x0.len();
    let (x1, x2, x3) = (&x1[..k], &x2[..k], &x3[..k]);
    for j in 0..k {
        let (w, p, q, r, s) = (&w[j * step], x0[j], x1[j], x2[j], x3[j]);
        for l in 0..LANES {
            a[l] = p.mul_add(w[l], a[l]);
            b[l] = q.mul_add(w[l], b[l]);
            c[l] = r.mul_add(w[l], c[l]);
            d[l] = s.mul_add(w[l], d[l]);
        }
    }
    [a, b, c, d]
}

/// The same for one row.
#[inline(always)]
pub fn one_row<R: Real>(x: &[R], (w, step): (&[Lane<R>], usize), sum: Lane<R>) -> Lane<R> {
    let mut a = sum;
    for (j, x) in x.iter().enumerate() {
        let w = &w[j * step];
        for l in 0..LANES {
            a[l] = x.mul_add(w[l], a[l]);
        }
    }
    a
}

/// x w for one row and four panels w [k].
#[inline(always)]
fn four_panels<R: Real>(x: &[R], [w0, w1, w2, w3]: [&[Lane<R>]; 4]) -> [Lane<R>; 4] {
    let [mut a, mut b, mut c, mut d] = [[R::ZERO; LANES]; 4];
    let k = x.len();
    let (w0, w1, w2, w3) = (&w0[..k], &w1[..k], &w2[..k], &w3[..k]);
    for j in 0..k {
        let (x, p, q, r, s) = (x[j], &w0[j], &w1[j], &w2[j], &w3[j]);
        for l in 0..LANES {
            a[l] = x.mul_add(p[l], a[l]);
            b[l] = x.mul_add(q[l], b[l]);
            c[l] = x.mul_add(r[l], c[l]);
            d[l] = x.mul_add(s[l], d[l]);
        }
    }
    [a, b, c, d]
}

/// Sum of a b, in 32 sums side by side.
#[inline(always)]
pub fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let [mut p, mut q] = [[R::ZERO; LANES]; 2];
    let (xs, ys) = (a.chunks_exact(2 * LANES), b.chunks_exact(2 * LANES));
    let rest: R = xs
        .remainder()
        .iter()
        .zip(ys.remainder())
        .map(|(x, y)| *x * *y)
        .sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            p[i] = x[i].mul_add(y[i], p[i]);
            q[i] = x[i + LANES].mul_add(y[i + LANES], q[i]);
        }
    }
    for i in 0..LANES {
        p[i] += q[i];
    }
    sum_lane(&p) + rest
}

/// The sum of a lane, by halves.
#[inline(always)]
pub fn sum_lane<R: Real>(x: &Lane<R>) -> R {
    let mut a = [R::ZERO; 8];
    for i in 0..8 {
        a[i] = x[i] + x[i + 8];
    }
    for i in 0..4 {
        a[i] += a[i + 4];
    }
    (a[0] + a[2]) + (a[1] + a[3])
}
