//! The loss of a projection to many classes, without its logits: x [rows, d] times w [n, d] transposed is made for a
//! piece of the rows at a time, in bf16, and again on the way back, where the gradient of the logits takes their place.
//! The gradient of w is summed over the pieces in f32 by the products themselves.

use super::context::Context;
use super::linalg::{Dense, product_into};
use super::reduce::Rows;
use super::storage::{CudaStorage, View, common, need};
use crate::dtype::DType;
use crate::error::Result;

const OP: &str = "cross_entropy";
/// Elements of a piece of logits: 256 MiB in bf16. Each piece costs a pass over the gradient of w.
const PIECE: usize = 1 << 27;

/// Contiguous operands by address.
struct Operands {
    c: &'static Context,
    x: u64,
    w: u64,
    targets: u64,
    rows: usize,
    d: usize,
    n: usize,
}

impl Operands {
    fn new((x, lx): View, (w, lw): View, (t, lt): View) -> Result<Operands> {
        need(OP, x, DType::BF16)?;
        need(OP, w, DType::BF16)?;
        need(OP, t, DType::I64)?;
        Ok(Operands {
            c: common(OP, &[x, w, t])?,
            x: x.at(OP, lx)?,
            w: w.at(OP, lw)?,
            targets: t.at(OP, lt)?,
            rows: lt.count(),
            d: lx.shape[1],
            n: lw.shape[0],
        })
    }

    /// For each piece of the rows: its logits, written into one buffer, and where they belong.
    fn each_piece(&self, lse: u64, mut f: impl FnMut(Rows) -> Result<()>) -> Result<()> {
        let most = (PIECE / self.n.max(1)).clamp(1, self.rows.max(1));
        let logits = CudaStorage::new(OP, self.c, DType::BF16, most * self.n)?;
        let logits = logits.start(OP)?;
        for first in (0..self.rows).step_by(most) {
            let rows = most.min(self.rows - first);
            let operands = [self.x_from(first, false), dense(self.w, true)];
            let dims = [rows, self.n, self.d];
            product_into(self.c, operands, dims, logits, DType::BF16, false)?;
            f(Rows {
                first,
                rows,
                n: self.n,
                dtype: DType::BF16,
                logits,
                lse: lse + 4 * first as u64,
                targets: self.targets + 8 * first as u64,
            })?;
        }
        Ok(())
    }

    fn x_from(&self, row: usize, transposed: bool) -> Dense {
        dense(self.x + (2 * row * self.d) as u64, transposed)
    }
}

fn dense(address: u64, transposed: bool) -> Dense {
    Dense {
        address,
        transposed,
    }
}

/// Losses [rows] and log-sum-exp [rows], in f32.
pub fn forward(x: View, w: View, t: View) -> Result<[CudaStorage; 2]> {
    let o = Operands::new(x, w, t)?;
    let loss = CudaStorage::new(OP, o.c, DType::F32, o.rows)?;
    let lse = CudaStorage::new(OP, o.c, DType::F32, o.rows)?;
    let to = loss.start(OP)?;
    o.each_piece(lse.start(OP)?, |piece| {
        piece.losses(o.c, to + 4 * piece.first as u64)
    })?;
    Ok([loss, lse])
}

/// Gradients of x in bf16 and of w in f32.
pub fn backward(
    x: View,
    w: View,
    t: View,
    lse: &CudaStorage,
    (g, lg): View,
) -> Result<[CudaStorage; 2]> {
    let o = Operands::new(x, w, t)?;
    need(OP, g, DType::F32)?;
    let dx = CudaStorage::new(OP, o.c, DType::BF16, o.rows * o.d)?;
    let dw = CudaStorage::new(OP, o.c, DType::F32, o.n * o.d)?;
    let (dx_at, dw_at, g) = (dx.start(OP)?, dw.start(OP)?, g.at(OP, lg)?);
    o.each_piece(lse.start(OP)?, |piece| {
        piece.gradients(o.c, piece.logits, g + 4 * piece.first as u64)?;
        let to = dx_at + (2 * piece.first * o.d) as u64;
        let by_rows = [dense(piece.logits, false), dense(o.w, false)];
        product_into(o.c, by_rows, [piece.rows, o.d, o.n], to, DType::BF16, false)?;
        let by_classes = [dense(piece.logits, true), o.x_from(piece.first, false)];
        let dims = [o.n, o.d, piece.rows];
        product_into(o.c, by_classes, dims, dw_at, DType::F32, piece.first > 0)
    })?;
    Ok([dx, dw])
}
