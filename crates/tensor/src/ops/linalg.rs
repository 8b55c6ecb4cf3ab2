//! Triangular systems.

use crate::autograd::record_with_output;
use crate::error::{Result, shape_error};
use crate::layout::broadcast;
use crate::storage::Storage;
use crate::tensor::{Tensor, need_float, same_dtype};

impl Tensor {
    /// Solve L y = b for a lower (or `upper`) triangular L: [.., n, n], [.., n, m] -> [.., n, m]. With `unit`
    /// the diagonal counts as 1. The other triangle is not read and gets no gradient.
    pub fn tri_solve(&self, b: &Tensor, upper: bool, unit: bool) -> Result<Tensor> {
        need_float("tri_solve", self)?;
        same_dtype("tri_solve", self, b)?;
        let (sl, sb) = (self.shape(), b.shape());
        let square = sl.len() >= 2 && sb.len() >= 2 && sl[sl.len() - 1] == sl[sl.len() - 2];
        if !square || sb[sb.len() - 2] != sl[sl.len() - 1] {
            return shape_error(
                "tri_solve",
                format!("{sl:?} and {sb:?}: expected [.., n, n] and [.., n, m]"),
            );
        }
        let (n, m) = (sl[sl.len() - 1], sb[sb.len() - 1]);
        let batch = broadcast("tri_solve", &sl[..sl.len() - 2], &sb[..sb.len() - 2])?;
        let l = self
            .broadcast_to(&[batch.as_slice(), &[n, n]].concat())?
            .contiguous()?;
        let rhs = b
            .broadcast_to(&[batch.as_slice(), &[n, m]].concat())?
            .contiguous()?;
        let dims = [batch.iter().product(), n, m];
        let y = Storage::tri_solve(l.operand(), rhs.operand(), dims, upper, unit)?;
        let y = Tensor::new(y, rhs.shape());
        let kept = l.clone();
        Ok(record_with_output(
            "tri_solve",
            [&l, &rhs],
            y,
            move |g, ctx| {
                let y = ctx.output(0)?;
                let gb = kept.transpose(-1, -2)?.tri_solve(g, !upper, unit)?;
                let gl = ctx.needs(0).then(|| {
                    let full = gb.matmul(&y.transpose(-1, -2)?)?.neg()?;
                    let inside = i64::from(unit);
                    if upper {
                        full.triu(inside)
                    } else {
                        full.tril(-inside)
                    }
                });
                Ok([gl.transpose()?, Some(gb)])
            },
        ))
    }
}
