//! Expressions on the CPU: a block of elements at a time goes through all operations while it is in the cache. Each
//! operation is a vector loop over the block.

use half::bf16;
use rayon::prelude::*;

use super::{Binary, Call, Op, Unary};
use crate::cpu::elementwise::Scalar;
use crate::cpu::parallel::GRAIN;
use crate::cpu::simd::vectorize;
use crate::dtype::{DType, Real};
use crate::error::Result;
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored};

/// Elements of a block: all entries of a longer expression stay in the first-level cache.
const BLOCK: usize = 256;

/// Every output.
pub fn run(call: &Call, inputs: &[&CpuStorage]) -> Result<Vec<CpuStorage>> {
    match call.wide {
        true => Ok(compute::<f64>(call, inputs)),
        false => Ok(compute::<f32>(call, inputs)),
    }
}

/// Where an operand's elements of one row lie.
#[derive(Clone, Copy)]
struct Row {
    at: usize,
    stride: usize,
}

/// Rows of one operand at a time, over the shape of all.
struct Rows {
    layout: Layout,
    /// Elements of a row: what all operands walk with one stride.
    length: usize,
}

impl Rows {
    fn row(&self, index: usize) -> Row {
        let mut rest = index * self.length;
        let mut at = self.layout.offset;
        let mut stride = 0;
        let axes = self.layout.shape.iter().zip(&self.layout.strides);
        for (i, (&n, &s)) in axes.rev().enumerate() {
            at += rest % n.max(1) * s;
            rest /= n.max(1);
            if i == 0 {
                stride = s;
            }
        }
        Row { at, stride }
    }
}

fn compute<M: Real + Stored>(call: &Call, inputs: &[&CpuStorage]) -> Vec<CpuStorage> {
    let count = call.layouts[0].count();
    let rows = rows(call.layouts);
    let length = rows.first().map_or(1, |r| r.length).max(1);
    let per_piece = (GRAIN / length).max(1) * length;
    let entries = call.tape.ops.len();
    let outputs = call.tape.outputs.len();
    let mut results: Vec<Buffer<M>> = (0..outputs).map(|_| Buffer::unwritten(count)).collect();
    let mut pieces: Vec<Vec<&mut [M]>> = (0..count.div_ceil(per_piece)).map(|_| vec![]).collect();
    for result in &mut results {
        for (piece, part) in pieces.iter_mut().zip(result.chunks_mut(per_piece)) {
            piece.push(part);
        }
    }
    pieces.par_iter_mut().enumerate().for_each(|(p, outs)| {
        let mut blocks = vec![M::ZERO; entries * BLOCK];
        let size = outs.first().map_or(0, |o| o.len());
        let mut done = 0;
        while done < size {
            let first = p * per_piece + done;
            let (row, within) = (first / length, first % length);
            let n = BLOCK.min(length - within).min(size - done);
            for (at, op) in call.tape.ops.iter().enumerate() {
                let (before, rest) = blocks.split_at_mut(at * BLOCK);
                let to = &mut rest[..n];
                let value = |i: usize| &before[i * BLOCK..][..n];
                match *op {
                    Op::Input(i) => {
                        let Row { at, stride } = rows[i].row(row);
                        load(to, inputs[i], at + within * stride, stride);
                    }
                    Op::Const(bits) => to.fill(M::from_f64(f64::from_bits(bits))),
                    Op::Unary(f, a) => unary(f, to, value(a)),
                    Op::Binary(f, a, b) => binary(f, to, value(a), value(b)),
                }
            }
            for (out, &at) in outs.iter_mut().zip(&call.tape.outputs) {
                out[done..done + n].copy_from_slice(&blocks[at * BLOCK..][..n]);
            }
            done += n;
        }
    });
    let round = |(result, &dtype): (Buffer<M>, &DType)| -> CpuStorage {
        let wide = M::wrap(result);
        let whole = Layout::contiguous(&[count]);
        match dtype == wide.dtype() {
            true => wide,
            false => crate::cpu::copy::cast(&wide, &whole, dtype),
        }
    };
    results.into_iter().zip(call.dtypes).map(round).collect()
}

/// The operands' walks, cut into rows that all of them have.
fn rows(layouts: &[Layout]) -> Vec<Rows> {
    let contiguous = Layout::contiguous(&layouts[0].shape);
    // Axes merge where they merge beside a row-major result, for every operand.
    let mut shape = contiguous.shape.clone();
    let mut strides: Vec<Vec<usize>> = layouts.iter().map(|l| l.strides.clone()).collect();
    let mut axis = shape.len();
    while axis > 1 {
        axis -= 1;
        let n = shape[axis];
        let merge = strides
            .iter()
            .all(|s| s[axis - 1] == s[axis] * n || shape[axis - 1] == 1);
        if merge || n == 1 {
            if n == 1 {
                strides.iter_mut().for_each(|s| s[axis] = s[axis - 1]);
            }
            shape[axis - 1] *= n;
            shape.remove(axis);
            for s in &mut strides {
                s[axis - 1] = s[axis];
                s.remove(axis);
            }
        }
    }
    let length = shape.last().copied().unwrap_or(1);
    let offsets = layouts.iter().map(|l| l.offset);
    offsets
        .zip(strides)
        .map(|(offset, strides)| Rows {
            layout: Layout {
                shape: shape.clone(),
                strides,
                offset,
            },
            length,
        })
        .collect()
}

fn load<M: Real>(to: &mut [M], from: &CpuStorage, at: usize, stride: usize) {
    match from {
        CpuStorage::F64(x) => convert(to, x, at, stride, |v| M::from_f64(v)),
        CpuStorage::F32(x) => convert(to, x, at, stride, |v| M::from_f64(f64::from(v))),
        CpuStorage::BF16(x) => {
            convert(to, x, at, stride, |v: bf16| M::from_f64(f64::from(v.up())));
        }
        CpuStorage::I64(_) | CpuStorage::U8(_) => {}
    }
}

fn convert<M: Copy, T: Copy>(
    to: &mut [M],
    x: &[T],
    at: usize,
    stride: usize,
    f: impl Fn(T) -> M + Copy,
) {
    match stride {
        0 => to.fill(f(x[at])),
        1 => {
            let x = &x[at..at + to.len()];
            vectorize(
                #[inline(always)]
                || to.iter_mut().zip(x).for_each(|(y, &v)| *y = f(v)),
            );
        }
        _ => {
            for (i, y) in to.iter_mut().enumerate() {
                *y = f(x[at + i * stride]);
            }
        }
    }
}

fn each<M: Real>(to: &mut [M], x: &[M], f: impl Fn(M) -> M + Copy) {
    vectorize(
        #[inline(always)]
        || to.iter_mut().zip(x).for_each(|(y, &v)| *y = f(v)),
    );
}

fn unary<M: Real>(f: Unary, to: &mut [M], x: &[M]) {
    match f {
        Unary::Neg => each(to, x, |v| -v),
        Unary::Exp => each(to, x, M::exp),
        Unary::Ln => each(to, x, M::ln),
        Unary::Sqrt => each(to, x, M::sqrt),
        Unary::Recip => each(to, x, |v| M::ONE / v),
        Unary::Sigmoid => each(to, x, M::sigmoid),
        Unary::Tanh => each(to, x, M::tanh),
        Unary::Softplus => each(to, x, M::softplus),
        Unary::Abs => each(to, x, M::abs),
        Unary::Sign => each(to, x, |v| match v {
            v if v > M::ZERO => M::ONE,
            v if v < M::ZERO => -M::ONE,
            v => v,
        }),
        Unary::NotNegative => each(to, x, |v| if v >= M::ZERO { M::ONE } else { M::ZERO }),
    }
}

fn binary<M: Real>(f: Binary, to: &mut [M], a: &[M], b: &[M]) {
    fn zip<M: Real>(to: &mut [M], a: &[M], b: &[M], f: impl Fn(M, M) -> M + Copy) {
        vectorize(
            #[inline(always)]
            || {
                for ((y, &p), &q) in to.iter_mut().zip(a).zip(b) {
                    *y = f(p, q);
                }
            },
        );
    }
    match f {
        Binary::Add => zip(to, a, b, |p, q| p + q),
        Binary::Sub => zip(to, a, b, |p, q| p - q),
        Binary::Mul => zip(to, a, b, |p, q| p * q),
        Binary::Div => zip(to, a, b, |p, q| p / q),
        // A NaN in either one comes through.
        Binary::Max => zip(to, a, b, |p, q| match (p >= q, q > p) {
            (true, _) => p,
            (_, true) => q,
            _ => p + q,
        }),
        Binary::Min => zip(to, a, b, |p, q| match (p <= q, q < p) {
            (true, _) => p,
            (_, true) => q,
            _ => p + q,
        }),
    }
}
