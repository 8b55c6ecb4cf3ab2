//! Shapes and strides: how a tensor's elements lie in its storage, and how several strided operands are
//! walked together.

use crate::error::{Result, shape_error};

/// Shape, strides and offset in elements. Strides are never negative; 0 repeats an element (broadcast).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Distance in elements between neighbours along each axis.
    pub strides: Vec<usize>,
    /// Where element (0, 0, ...) lies.
    pub offset: usize,
}

/// Row-major strides of a shape.
pub fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    strides
}

/// Turn an axis counted from the end (negative) into one counted from the start.
pub fn axis(op: &'static str, axis: isize, rank: usize) -> Result<usize> {
    let a = if axis < 0 { axis + rank as isize } else { axis };
    if a < 0 || a >= rank as isize {
        return shape_error(
            op,
            format!("axis {axis} does not exist in a tensor of {rank} axes"),
        );
    }
    Ok(a as usize)
}

/// The common shape of two operands, aligned at the last axis; sizes must be equal or 1.
pub fn broadcast(op: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    if a == b {
        return Ok(a.to_vec());
    }
    let rank = a.len().max(b.len());
    let size = |s: &[usize], i: usize| {
        if i + s.len() < rank {
            1
        } else {
            s[i + s.len() - rank]
        }
    };
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => shape_error(op, format!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

impl Layout {
    /// Row-major, offset 0.
    pub fn contiguous(shape: &[usize]) -> Layout {
        Layout {
            shape: shape.to_vec(),
            strides: contiguous_strides(shape),
            offset: 0,
        }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie row-major without gaps (the offset may be anything).
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&n, &s) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && s != expected {
                return false;
            }
            expected *= n;
        }
        true
    }

    /// The same elements seen in a larger shape, by strides of 0.
    pub fn broadcast_to(&self, op: &'static str, shape: &[usize]) -> Result<Layout> {
        let bad = || {
            shape_error(
                op,
                format!("shape {:?} does not broadcast to {shape:?}", self.shape),
            )
        };
        let Some(lead) = shape.len().checked_sub(self.shape.len()) else {
            return bad();
        };
        let mut strides = vec![0; shape.len()];
        for i in 0..self.shape.len() {
            match self.shape[i] {
                n if n == shape[lead + i] => strides[lead + i] = self.strides[i],
                1 => {}
                _ => return bad(),
            }
        }
        Ok(Layout {
            shape: shape.to_vec(),
            strides,
            offset: self.offset,
        })
    }
}

/// A walk over N strided operands of one shape: axes of size 1 dropped, neighbouring axes merged where all
/// operands allow it. The last axis is the inner loop; the others are numbered by one row index.
pub struct Walk<const N: usize> {
    /// The other axes, from the slowest: size, and the operands' strides.
    pub(crate) outer: Vec<(usize, [usize; N])>,
    base: [usize; N],
    /// Length of the inner loop.
    pub inner: usize,
    /// Strides of the operands in the inner loop.
    pub strides: [usize; N],
    /// Number of inner loops.
    pub rows: usize,
}

impl<const N: usize> Walk<N> {
    /// Plan the walk. All layouts must have the same shape.
    pub fn new(layouts: [&Layout; N]) -> Walk<N> {
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        for i in 0..layouts[0].shape.len() {
            let n = layouts[0].shape[i];
            let s = layouts.map(|l| l.strides[i]);
            if n == 1 {
                continue;
            }
            match axes.last_mut() {
                Some((m, t)) if (0..N).all(|k| t[k] == s[k] * n) => {
                    *m *= n;
                    *t = s;
                }
                _ => axes.push((n, s)),
            }
        }
        let (inner, strides) = axes.pop().unwrap_or((1, [1; N]));
        let rows = axes.iter().map(|a| a.0).product();
        Walk {
            outer: axes,
            base: layouts.map(|l| l.offset),
            inner,
            strides,
            rows,
        }
    }

    /// Offsets of the operands at the start of a row.
    #[inline]
    pub fn row(&self, mut row: usize) -> [usize; N] {
        let mut at = self.base;
        for (n, s) in self.outer.iter().rev() {
            let i = row % n;
            row /= n;
            for k in 0..N {
                at[k] += i * s[k];
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_merges_axes_and_visits_every_element() {
        let a = Layout {
            shape: vec![2, 3, 4],
            strides: vec![12, 4, 1],
            offset: 5,
        };
        let w = Walk::new([&a]);
        assert_eq!((w.inner, w.rows), (24, 1));
        let t = Layout {
            shape: vec![2, 4, 3],
            strides: vec![12, 1, 4],
            offset: 0,
        };
        let w = Walk::new([&t, &Layout::contiguous(&[2, 4, 3])]);
        let mut seen = vec![];
        for r in 0..w.rows {
            let [x, _] = w.row(r);
            seen.extend((0..w.inner).map(|i| x + i * w.strides[0]));
        }
        assert_eq!(seen.len(), 24);
        assert_eq!(seen[..4], [0, 4, 8, 1]);
        seen.sort();
        assert_eq!(seen, (0..24).collect::<Vec<_>>());
    }

    #[test]
    fn broadcasting_names_both_shapes() {
        assert_eq!(
            broadcast("add", &[2, 1, 3], &[4, 1]).unwrap(),
            vec![2, 4, 3]
        );
        let e = broadcast("add", &[2, 3], &[4, 3]).unwrap_err().to_string();
        assert!(
            e.contains("add") && e.contains("[2, 3]") && e.contains("[4, 3]"),
            "{e}"
        );
    }
}
