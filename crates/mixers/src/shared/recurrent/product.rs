//! Products of a few rows with one matrix, again and again: the matrix is packed once into panels of 16 columns,
//! so that a product reads it in order and keeps its sums in registers. A product that is made once reads the
//! matrix as it is.

use weft_tensor::{Buffer, Real};

/// Columns of a panel: an AVX-512 register of f32.
pub const LANES: usize = 16;

/// 16 neighbouring elements.
pub type Lane<R> = [R; LANES];

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
        let mut panels = Buffer::filled(n.next_multiple_of(LANES) * k, R::ZERO);
        for j in 0..n {
            let panel = &mut panels[j / LANES * k * LANES..];
            for s in 0..k {
                panel[s * LANES + j % LANES] = at(s, j);
            }
        }
        Right::Panels(panels, [k, n])
    }

    /// y[rows, n] = x[rows, k] times this, or added to y. Rows of x and y are `xs` and `ys` elements apart.
    #[inline(always)]
    pub fn times<const ADD: bool>(
        &self,
        rows: usize,
        (x, xs): (&[R], usize),
        (y, ys): (&mut [R], usize),
    ) {
        match self {
            Right::Panels(panels, [k, n]) => {
                let (lanes, k, n) = (panels.as_chunks().0, *k, *n);
                let whole = rows / 4 * 4;
                for r in (0..whole).step_by(4) {
                    panels_of::<R, 4, 1, ADD>(
                        (&x[r * xs..], xs),
                        lanes,
                        [k, n],
                        (&mut y[r * ys..], ys),
                    );
                }
                for r in whole..rows {
                    panels_of::<R, 1, 4, ADD>(
                        (&x[r * xs..], xs),
                        lanes,
                        [k, n],
                        (&mut y[r * ys..], ys),
                    );
                }
            }
            Right::Columns(w, [k, n]) => {
                for r in 0..rows {
                    let x = &x[r * xs..][..*k];
                    for (y, w) in y[r * ys..][..*n].iter_mut().zip(w.chunks_exact(*k)) {
                        let sum = dot(x, w);
                        *y = if ADD { *y + sum } else { sum };
                    }
                }
            }
        }
    }
}

/// Lanes of sums in a tile. More than four would not stay in registers: the compiler unrolls no further.
const TILE: usize = 4;

/// M rows of a product, P panels at a time; M P is [`TILE`].
#[inline(always)]
fn panels_of<R: Real, const M: usize, const P: usize, const ADD: bool>(
    x: (&[R], usize),
    panels: &[Lane<R>],
    [k, n]: [usize; 2],
    (y, ys): (&mut [R], usize),
) {
    let count = n.div_ceil(LANES);
    let whole = count / P * P;
    for p in (0..whole).step_by(P) {
        tile::<R, M, P, ADD>(
            x,
            &panels[p * k..],
            [k, n - p * LANES],
            (&mut y[p * LANES..], ys),
        );
    }
    for p in whole..count {
        tile::<R, M, 1, ADD>(
            x,
            &panels[p * k..],
            [k, n - p * LANES],
            (&mut y[p * LANES..], ys),
        );
    }
}

#[inline(always)]
fn tile<R: Real, const M: usize, const P: usize, const ADD: bool>(
    (x, xs): (&[R], usize),
    panels: &[Lane<R>],
    [k, n]: [usize; 2],
    (y, ys): (&mut [R], usize),
) {
    let mut acc = [[R::ZERO; LANES]; TILE];
    let mut rows: [&[R]; M] = [&[]; M];
    for r in 0..M {
        rows[r] = &x[r * xs..][..k];
    }
    let mut w: [&[Lane<R>]; P] = [&[]; P];
    for p in 0..P {
        w[p] = &panels[p * k..][..k];
    }
    for s in 0..k {
        for i in 0..M * P {
            let (a, w) = (rows[i / P][s], &w[i % P][s]);
            for l in 0..LANES {
                acc[i][l] = a.mul_add(w[l], acc[i][l]);
            }
        }
    }
    for (i, acc) in acc[..M * P].iter().enumerate() {
        let (r, p) = (i / P, i % P);
        let width = LANES.min(n - p * LANES);
        let y = &mut y[r * ys + p * LANES..][..width];
        for (y, a) in y.iter_mut().zip(acc) {
            *y = if ADD { *y + *a } else { *a };
        }
    }
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
