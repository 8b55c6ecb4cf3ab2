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

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a, R> {
    /// The same lane in every row.
    Lane(&'a Lane<R>),
    /// What the result holds.
    Result,
}

/// c[row, lane] = start + sum_k a[row, k] b[k, lane], for the rows of `c`; `b` has as many rows as `a` has
/// columns. Both counts are multiples of [`BLOCK`].
#[inline(always)]
pub fn rows_times_panel<R: Real>(
    (a, steps): (&[Block<R>], Steps),
    b: &[Lane<R>],
    start: Start<R>,
    c: &mut [Lane<R>],
) {
    let (b, _) = b.as_chunks::<BLOCK>();
    let (c, _) = c.as_chunks_mut::<BLOCK>();
    for (block, c) in c.iter_mut().enumerate() {
        let mut acc = match start {
            Start::Lane(lane) => [*lane; BLOCK],
            Start::Result => *c,
        };
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

    /// c[row, lane] = start[lane] + sum_k self[row, k] panel[k, lane] for the given rows (whole blocks).
    #[inline(always)]
    pub fn times_panel(
        &self,
        rows: std::ops::Range<usize>,
        panel: &[Lane<R>],
        start: &Lane<R>,
        c: &mut [Lane<R>],
    ) {
        let steps = Steps {
            rows: 1,
            columns: self.capacity,
        };
        let blocks = &self.blocks[rows.start..];
        rows_times_panel((blocks, steps), panel, Start::Lane(start), &mut c[rows]);
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

/// panel[d, lane] = element d of that lane's row, times `scale`; lanes without a row become zero, as do the
/// rows of the panel beyond the dimension. In squares of 4 by 4, which the compiler turns into shuffles.
#[inline(always)]
pub fn transpose_into<'a, R: Real>(
    rows: impl Iterator<Item = &'a [R]>,
    scale: R,
    panel: &mut [Lane<R>],
) {
    let mut sources: [&[R]; LANES] = [&[]; LANES];
    for (source, row) in sources.iter_mut().zip(rows) {
        *source = row;
    }
    for (j, out) in panel.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        for (q, sources) in sources.as_chunks::<4>().0.iter().enumerate() {
            let square: [[R; 4]; 4] = std::array::from_fn(
                #[inline(always)]
                |i| four(sources[i], j),
            );
            for d in 0..4 {
                for i in 0..4 {
                    out[d][4 * q + i] = square[i][d] * scale;
                }
            }
        }
    }
}

/// Elements 4 j .. 4 j + 4 of a row; 0 behind its end.
#[inline(always)]
fn four<R: Real>(row: &[R], j: usize) -> [R; 4] {
    let (whole, rest) = row.as_chunks::<4>();
    if let Some(four) = whole.get(j) {
        return *four;
    }
    let mut four = [R::ZERO; 4];
    if j == whole.len() {
        four[..rest.len()].copy_from_slice(rest);
    }
    four
}

/// The way back: element d of each lane's row = panel[d, lane] * factor[lane].
#[inline(always)]
pub fn transpose_from<R: Real>(panel: &[Lane<R>], factor: &Lane<R>, rows: &mut [&mut [R]]) {
    for (q, rows) in rows.chunks_mut(4).enumerate() {
        for (j, panel) in panel.as_chunks::<4>().0.iter().enumerate() {
            let mut square = [[R::ZERO; 4]; 4];
            for d in 0..4 {
                for i in 0..4 {
                    square[i][d] = panel[d][4 * q + i] * factor[4 * q + i];
                }
            }
            for (row, four) in rows.iter_mut().zip(&square) {
                let (whole, rest) = row.as_chunks_mut::<4>();
                let last = j == whole.len();
                if let Some(out) = whole.get_mut(j) {
                    *out = *four;
                } else if last {
                    rest.copy_from_slice(&four[..rest.len()]);
                }
            }
        }
    }
}

/// a . b, summed in 16 lanes and then pairwise.
#[inline(always)]
pub fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut acc: Lane<R> = splat(R::ZERO);
    for (a, b) in whole_a.iter().zip(whole_b) {
        for lane in 0..LANES {
            acc[lane] = a[lane].mul_add(b[lane], acc[lane]);
        }
    }
    let rest = rest_a.iter().zip(rest_b);
    rest.fold(
        fold(acc),
        #[inline(always)]
        |sum, (a, b)| a.mul_add(*b, sum),
    )
}

/// The sum of a lane, pairwise.
#[inline(always)]
pub fn fold<R: Real>(lane: Lane<R>) -> R {
    let mut eight = [R::ZERO; 8];
    for i in 0..8 {
        eight[i] = lane[i] + lane[i + 8];
    }
    let mut four = [R::ZERO; 4];
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}
