//! RMSNorm on the GPU, alone or of a sum that it also gives back. Operands are contiguous. A row that fits the registers
//! of a warp or a block is read once (`norm_rows.cu`); longer or unaligned ones are walked twice (`norm.cu`).

use super::context::Context;
use super::modules::{Argument, Grid};
use super::reduce::sum_parts;
use super::source::{Type, Variant};
use super::storage::{CudaStorage, View, common, computing, need, need_float};
use super::table;
use crate::cpu::BinaryOp;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Layout;

const OP: &str = "rms_norm";
/// Threads of a block.
const THREADS: u32 = 256;
/// Pieces of 16 bytes that a thread keeps at most.
const MOST_PACKS: u32 = 4;
/// Blocks of the way back for each multiprocessor.
const BLOCKS: usize = 2;
/// Rows that one block of the way back adds up, where rows are walked twice; and most blocks of that.
const ROWS: usize = 8;
const MOST_PARTS: usize = 512;
/// Shared memory that a block has without asking for more.
const SHARED: usize = 48 << 10;

/// Threads of a row and pieces of each, for rows of d at these addresses that fit their registers.
fn in_registers(dtype: DType, d: usize, addresses: &[u64]) -> Option<[u32; 2]> {
    let v = Type::from(dtype).vector() as usize;
    let packs = |width: u32| d.div_ceil(width as usize * v);
    let fits = |&width: &u32| packs(width) <= MOST_PACKS as usize;
    let width = [32, THREADS].into_iter().find(fits)?;
    (d > 0 && vector(dtype, d, addresses)).then_some([width, packs(width) as u32])
}

/// RMSNorm of x [rows, d] with weight [d].
pub fn forward(
    (x, lx): View,
    (w, lw): View,
    [rows, d]: [usize; 2],
    eps: f64,
) -> Result<CudaStorage> {
    need_float(OP, x)?;
    need(OP, w, x.dtype)?;
    let c = common(OP, &[x, w])?;
    let y = CudaStorage::new(OP, c, x.dtype, rows * d)?;
    if y.count == 0 {
        return Ok(y);
    }
    let (to, from, weight) = (y.start(OP)?, x.at(OP, lx)?, w.at(OP, lw)?);
    let split = in_registers(x.dtype, d, &[from, weight]);
    if let Some(split) = split {
        in_one_pass(c, x.dtype, split, [to, 0, from, 0, weight], [rows, d], eps)?;
        return Ok(y);
    }
    let vector = u32::from(vector(x.dtype, d, &[from, weight]));
    let (name, per_block) = if d <= 1024 {
        ("rms_norm32", 8)
    } else {
        ("rms_norm256", 1)
    };
    let grid = Grid::blocks((rows as u64).div_ceil(per_block), THREADS);
    let v = Variant::new(&table::NORM, x.dtype);
    let (rows, d) = (rows as u64, d as u64);
    let arguments: [&dyn Argument; 7] = [&to, &from, &weight, &rows, &d, &eps, &vector];
    c.launch(OP, v, name, grid, &arguments)?;
    Ok(y)
}

/// x + delta, and its RMSNorm.
pub fn add_forward(
    (x, lx): View,
    (delta, ld): View,
    (w, lw): View,
    dims: [usize; 2],
    eps: f64,
) -> Result<[CudaStorage; 2]> {
    need_float(OP, x)?;
    need(OP, delta, x.dtype)?;
    need(OP, w, x.dtype)?;
    let c = common(OP, &[x, delta, w])?;
    let operands = [x.at(OP, lx)?, delta.at(OP, ld)?, w.at(OP, lw)?];
    let Some(split) = in_registers(x.dtype, dims[1], &operands) else {
        let sum = super::elementwise::binary(BinaryOp::Add, (x, lx), (delta, ld))?;
        let whole = Layout::contiguous(&lx.shape);
        let y = forward((&sum, &whole), (w, lw), dims, eps)?;
        return Ok([sum, y]);
    };
    let make = || CudaStorage::new(OP, c, x.dtype, dims[0] * dims[1]);
    let (sum, y) = (make()?, make()?);
    let [from, delta, weight] = operands;
    let addresses = [y.start(OP)?, sum.start(OP)?, from, delta, weight];
    in_one_pass(c, x.dtype, split, addresses, dims, eps)?;
    Ok([sum, y])
}

/// The norm, the sum, x, what is added, weight: by address, 0 where there is none.
fn in_one_pass(
    c: &'static Context,
    dtype: DType,
    [width, packs]: [u32; 2],
    addresses: [u64; 5],
    [rows, d]: [usize; 2],
    eps: f64,
) -> Result<()> {
    let [to, sum, from, delta, weight] = addresses;
    let v = table::norm_rows(dtype, width, packs);
    let (n, d) = (rows as u64, d as u64);
    let grid = Grid::blocks(n.div_ceil(u64::from(THREADS / width)), THREADS);
    let arguments: [&dyn Argument; 8] = [&to, &sum, &from, &delta, &weight, &n, &d, &eps];
    c.launch(OP, v, "rms_norm", grid, &arguments)
}

/// Gradients of x and weight; `other` is added to that of x.
pub fn backward(
    (x, lx): View,
    (w, lw): View,
    (g, lg): View,
    other: Option<View>,
    [rows, d]: [usize; 2],
    eps: f64,
) -> Result<[CudaStorage; 2]> {
    need(OP, g, x.dtype)?;
    let c = common(OP, &[x, w, g])?;
    let dx = CudaStorage::new(OP, c, x.dtype, rows * d)?;
    let (to, from, weight) = (dx.start(OP)?, x.at(OP, lx)?, w.at(OP, lw)?);
    let gradient = g.at(OP, lg)?;
    let other = other.map_or(Ok(0), |(o, lo)| o.at(OP, lo))?;
    let addresses = [from, weight, gradient, other];
    let (n, width) = (rows as u64, d as u64);
    if let Some([threads, packs]) = in_registers(x.dtype, d, &addresses) {
        let per_block = (THREADS / threads) as usize;
        let blocks = rows
            .div_ceil(per_block)
            .min(BLOCKS * c.multiprocessors as usize);
        let parts = CudaStorage::new(OP, c, computing(x.dtype), blocks * d)?;
        let parts_at = parts.start(OP)?;
        let v = table::norm_rows(x.dtype, threads, packs);
        let grid = Grid::blocks(blocks as u64, THREADS);
        let arguments: [&dyn Argument; 9] = [
            &to, &parts_at, &from, &weight, &gradient, &other, &n, &width, &eps,
        ];
        c.launch(OP, v, "rms_norm_back", grid, &arguments)?;
        return Ok([dx, sum_parts(OP, &parts, x.dtype, [1, blocks, d])?]);
    }
    let blocks = rows.div_ceil(ROWS).min(MOST_PARTS);
    let parts = CudaStorage::new(OP, c, computing(x.dtype), blocks * d)?;
    let parts_at = parts.start(OP)?;
    let vector = u32::from(vector(x.dtype, d, &addresses));
    let bytes = d * computing(x.dtype).size();
    let shared = u32::from(bytes <= SHARED);
    let grid = Grid {
        shared: if shared == 1 { bytes as u32 } else { 0 },
        ..Grid::blocks(blocks as u64, THREADS)
    };
    let v = Variant::new(&table::NORM, x.dtype);
    let arguments: [&dyn Argument; 11] = [
        &to, &parts_at, &from, &weight, &gradient, &other, &n, &width, &eps, &vector, &shared,
    ];
    c.launch(OP, v, "rms_norm_back", grid, &arguments)?;
    Ok([dx, sum_parts(OP, &parts, x.dtype, [1, blocks, d])?])
}

/// Whether rows of d elements at these addresses can be read 16 bytes at a time.
fn vector(dtype: DType, d: usize, addresses: &[u64]) -> bool {
    let fits = d.is_multiple_of(Type::from(dtype).vector() as usize);
    fits && addresses.iter().all(|a| a.is_multiple_of(16))
}
