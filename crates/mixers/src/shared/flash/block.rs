//! Register-blocked products and the packing that feeds them.
//!
//! A *panel* holds [`LANES`] columns of a matrix side by side, one row after the other, so that a row of
//! it is one or two vector registers. The left factor of a product is packed as [columns/8][row][8]: its
//! rows cut into blocks of eight elements, padded with zeros. That one layout serves both products below,
//! leaves no remainders in their loops, and has no power-of-two strides between rows.
//!
//! The loops over lanes are outside the loops over the eight rows on purpose: only so does the compiler
//! keep the 8 x 16 accumulators in vector registers (measured: 114 of 114 GFLOP/s, against 3 in the other
//! order).

use weft_tensor::Real;

/// Columns of a panel.
pub const LANES: usize = 16;
/// Rows of a register block, and elements of a packed block.
pub const BLOCK: usize = 8;

/// One row of a panel.
pub type Lane<R> = [R; LANES];
/// Eight neighbouring elements of a packed row.
pub type Block<R> = [R; BLOCK];

/// A lane of equal values.
#[inline(always)]
pub fn splat<R: Real>(value: R) -> Lane<R> {
    [value; LANES]
}

/// Where the eight elements (row, 8 j ..) of a packed matrix are: `row * rows + j * columns`.
#[derive(Clone, Copy)]
pub struct Steps {
    /// Distance between rows, in blocks.
    pub rows: usize,
    /// Distance between neighbouring blocks of a row.
    pub columns: usize,
}

/// c[row, lane] (+)= sum_k a[row, k] b[k, lane], for the rows of `c`; `b` has as many rows as `a` has
/// columns. Both counts are multiples of [`BLOCK`]. `ADD` keeps what `c` holds.
#[inline(always)]
pub fn rows_times_panel<R: Real, const ADD: bool>(
    (a, steps): (&[Block<R>], Steps),
    b: &[Lane<R>],
    c: &mut [Lane<R>],
) {
    let (b, _) = b.as_chunks::<BLOCK>();
    let (c, _) = c.as_chunks_mut::<BLOCK>();
    for (block, c) in c.iter_mut().enumerate() {
        let mut acc = if ADD { *c } else { [splat(R::ZERO); BLOCK] };
        for (j, b) in b.iter().enumerate() {
            let at = block * BLOCK * steps.rows + j * steps.columns;
            let a: [&Block<R>; BLOCK] = std::array::from_fn(
                #[inline(always)]
                |i| &a[at + i * steps.rows],
            );
            for k in 0..BLOCK {
                for lane in 0..LANES {
                    for i in 0..BLOCK {
                        acc[i][lane] = a[i][k].mul_add(b[k][lane], acc[i][lane]);
                    }
                }
            }
        }
        *c = acc;
    }
}

/// c[i, lane] = c[i, lane] * decay[lane] + sum_k a[k][i] b[k, lane]: one block of columns of `a`,
/// transposed, times a panel.
#[inline(always)]
pub fn block_times_panel<R: Real>(
    a: &[Block<R>],
    b: &[Lane<R>],
    decay: &Lane<R>,
    c: &mut [Lane<R>; BLOCK],
) {
    let mut acc = *c;
    for lane in 0..LANES {
        for row in &mut acc {
            row[lane] *= decay[lane];
        }
    }
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            for i in 0..BLOCK {
                acc[i][lane] = a[i].mul_add(b[lane], acc[i][lane]);
            }
        }
    }
    *c = acc;
}

/// [`block_times_panel`] in which a term with b = 0 adds nothing even where a is NaN or infinite: the
/// slow way for tiles that hold such values under the mask.
#[inline(always)]
fn block_times_panel_exact<R: Real>(
    a: &[Block<R>],
    b: &[Lane<R>],
    decay: &Lane<R>,
    c: &mut [Lane<R>; BLOCK],
) {
    for (i, row) in c.iter_mut().enumerate() {
        for lane in 0..LANES {
            let sum = a.iter().zip(b).filter(|(_, b)| b[lane] != R::ZERO);
            let sum = sum.fold(R::ZERO, |sum, (a, b)| sum + a[i] * b[lane]);
            row[lane] = row[lane] * decay[lane] + sum;
        }
    }
}

/// A tile of keys or values as the left factor: [columns/8][capacity][8].
pub struct Packed<R> {
    blocks: Vec<Block<R>>,
    capacity: usize,
}

impl<R: Real> Packed<R> {
    /// Room for `capacity` rows (a multiple of [`BLOCK`]) of `dim` elements.
    pub fn new(capacity: usize, dim: usize) -> Packed<R> {
        Packed {
            blocks: vec![[R::ZERO; BLOCK]; capacity * dim.div_ceil(BLOCK)],
            capacity,
        }
    }

    /// Take rows of `dim` elements; rows beyond them, up to a whole block, become zero.
    #[inline(always)]
    pub fn fill<'a>(&mut self, rows: impl ExactSizeIterator<Item = &'a [R]>) {
        let (capacity, len) = (self.capacity, rows.len());
        for (r, row) in rows.enumerate() {
            let (whole, rest) = row.as_chunks::<BLOCK>();
            for (j, block) in whole.iter().enumerate() {
                self.blocks[j * capacity + r] = *block;
            }
            if !rest.is_empty() {
                let mut block = [R::ZERO; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                self.blocks[whole.len() * capacity + r] = block;
            }
        }
        for column in self.blocks.chunks_exact_mut(capacity) {
            column[len..len.next_multiple_of(BLOCK)].fill([R::ZERO; BLOCK]);
        }
    }

    /// Whether all elements of the given rows are finite.
    #[inline(always)]
    pub fn is_finite(&self, rows: std::ops::Range<usize>) -> bool {
        let mut zero = [R::ZERO; BLOCK];
        for column in self.blocks.chunks_exact(self.capacity) {
            for block in &column[rows.clone()] {
                for i in 0..BLOCK {
                    zero[i] += block[i] * R::ZERO;
                }
            }
        }
        zero == [R::ZERO; BLOCK]
    }

    /// c[row, lane] = sum_k self[row, k] panel[k, lane] for the given rows (whole blocks).
    #[inline(always)]
    pub fn times_panel(&self, rows: std::ops::Range<usize>, panel: &[Lane<R>], c: &mut [Lane<R>]) {
        let steps = Steps {
            rows: 1,
            columns: self.capacity,
        };
        rows_times_panel::<R, false>((&self.blocks[rows.start..], steps), panel, &mut c[rows]);
    }

    /// c[i, lane] = c[i, lane] * decay[lane] + sum over the given rows of self[row, i] panel[row, lane].
    /// With `exact`, terms whose panel element is 0 add nothing, whatever self holds.
    #[inline(always)]
    pub fn transposed_times_panel(
        &self,
        rows: std::ops::Range<usize>,
        panel: &[Lane<R>],
        decay: &Lane<R>,
        c: &mut [Lane<R>],
        exact: bool,
    ) {
        let panel = &panel[rows.clone()];
        let (c, _) = c.as_chunks_mut::<BLOCK>();
        for (column, c) in self.blocks.chunks_exact(self.capacity).zip(c) {
            let a = &column[rows.clone()];
            if exact {
                block_times_panel_exact(a, panel, decay, c);
            } else {
                block_times_panel(a, panel, decay, c);
            }
        }
    }
}

/// panel[d, lane] = row of that lane, times `scale`; lanes without a row become zero, as do the rows of
/// the panel beyond the dimension.
#[inline(always)]
pub fn transpose_into<'a, R: Real>(
    rows: impl Iterator<Item = &'a [R]>,
    scale: R,
    panel: &mut [Lane<R>],
) {
    panel.fill(splat(R::ZERO));
    for (lane, row) in rows.enumerate() {
        for (x, out) in row.iter().zip(panel.iter_mut()) {
            out[lane] = *x * scale;
        }
    }
}
