//! Reductions, scans and softmax on the GPU. How an axis is cut into parts depends on the shape alone.

use super::context::Context;
use super::modules::{Argument, Grid};
use super::source::{Type, Variant};
use super::storage::{CudaStorage, View, computing, need_float};
use super::table;
use crate::cpu::{ReduceOp, ScanOp};
use crate::dtype::DType;
use crate::error::{Result, dtype_error};

/// Blocks that fill any GPU several times over.
const MANY: u64 = 1024;

fn numbers(dims: [usize; 3]) -> [u64; 3] {
    dims.map(|n| n as u64)
}

/// One launch over [outer, n, inner] into [outer, parts, inner]. `names` are the kernels for rows by 8, 32 and
/// 256 threads, for columns, and for several columns a thread; `x` is what they read.
fn pass(
    op: &'static str,
    v: Variant,
    names: [&'static str; 5],
    (to, from): (u64, u64),
    dims: [usize; 3],
    parts: u64,
    x: &CudaStorage,
) -> Result<()> {
    let [outer, n, inner] = numbers(dims);
    let c = x.context()?;
    if inner > 1 {
        let several = if x.dtype.size() == 8 { 2 } else { 4 };
        let aligned = from.is_multiple_of(several * x.dtype.size() as u64);
        let wide = !names[4].is_empty() && aligned && inner.is_multiple_of(several);
        let (name, strip) = if wide {
            (names[4], 32 * several)
        } else {
            (names[3], 32)
        };
        let grid = Grid::tiles(outer * parts * inner.div_ceil(strip));
        let arguments: [&dyn Argument; 6] = [&to, &from, &outer, &n, &inner, &parts];
        return c.launch(op, v, name, grid, &arguments);
    }
    let vector = u64::from(Type::from(x.dtype).vector());
    let aligned = u32::from(from.is_multiple_of(16) && n.is_multiple_of(vector));
    let (name, width) = match n.div_ceil(parts) {
        0..=64 => (names[0], 8),
        65..=2048 => (names[1], 32),
        _ => (names[2], 256),
    };
    let grid = Grid::blocks((outer * parts).div_ceil(256 / width), 256);
    c.launch(
        op,
        v,
        name,
        grid,
        &[&to, &from, &outer, &n, &parts, &aligned],
    )
}

const SUM: [&str; 5] = [
    "sum_rows8",
    "sum_rows32",
    "sum_rows256",
    "sum_columns",
    "sum_wide",
];
const SUM_FIRST: [&str; 5] = [
    "sum_first_rows8",
    "sum_first_rows32",
    "sum_first_rows256",
    "sum_first_columns",
    "sum_first_wide",
];
const SUM_SECOND: [&str; 5] = [
    "sum_second_rows8",
    "sum_second_rows32",
    "sum_second_rows256",
    "sum_second_columns",
    "sum_second_wide",
];
const MAX: [&str; 5] = ["max_rows8", "max_rows32", "max_rows256", "max_columns", ""];
const MIN: [&str; 5] = ["min_rows8", "min_rows32", "min_rows256", "min_columns", ""];
const ARGMAX: [&str; 5] = [
    "argmax_rows8",
    "argmax_rows32",
    "argmax_rows256",
    "argmax_columns",
    "",
];
const ARGMIN: [&str; 5] = [
    "argmin_rows8",
    "argmin_rows32",
    "argmin_rows256",
    "argmin_columns",
    "",
];

/// Sum partial results [outer, parts, inner] in the computing type to `dtype`.
pub(super) fn sum_parts(
    op: &'static str,
    parts: &CudaStorage,
    dtype: DType,
    dims: [usize; 3],
) -> Result<CudaStorage> {
    let y = CudaStorage::new(op, parts.context()?, dtype, dims[0] * dims[2])?;
    let v = table::sum(dtype);
    let at = (y.start(op)?, parts.start(op)?);
    pass(op, v, SUM_SECOND, at, dims, 1, parts)?;
    Ok(y)
}

/// Parts that give the GPU enough to do when there are few rows or columns.
fn parts_for([outer, n, inner]: [u64; 3]) -> u64 {
    let (blocks, least) = if inner > 1 {
        (outer * inner.div_ceil(128), 128)
    } else {
        (outer, 8192)
    };
    (MANY / blocks.max(1)).min(n / least).max(1)
}

/// Reduce the middle axis of a contiguous [outer, n, inner].
pub fn reduce(op: ReduceOp, (x, lx): View, dims: [usize; 3]) -> Result<CudaStorage> {
    let (name, kernels) = match op {
        ReduceOp::Sum => ("sum", SUM),
        ReduceOp::Max => ("max", MAX),
        ReduceOp::Min => ("min", MIN),
        ReduceOp::ArgMax => ("argmax", ARGMAX),
        ReduceOp::ArgMin => ("argmin", ARGMIN),
    };
    let c = x.context()?;
    let count = dims[0] * dims[2];
    let from = x.at(name, lx)?;
    if op != ReduceOp::Sum {
        let position = matches!(op, ReduceOp::ArgMax | ReduceOp::ArgMin);
        let dtype = if position { DType::I64 } else { x.dtype };
        let y = CudaStorage::new(name, c, dtype, count)?;
        if count > 0 {
            let v = table::extreme(x.dtype);
            pass(name, v, kernels, (y.start(name)?, from), dims, 1, x)?;
        }
        return Ok(y);
    }
    if x.dtype == DType::U8 {
        return dtype_error(name, DType::U8, "i64 or a float dtype");
    }
    if dims[1] == 0 || count == 0 {
        return Ok(super::elementwise::full(x.ordinal, x.dtype, count, 0.0));
    }
    let v = table::sum(x.dtype);
    let parts = parts_for(numbers(dims));
    if parts == 1 {
        let y = CudaStorage::new(name, c, x.dtype, count)?;
        pass(name, v, SUM, (y.start(name)?, from), dims, 1, x)?;
        return Ok(y);
    }
    let partial = CudaStorage::new(name, c, computing(x.dtype), count * parts as usize)?;
    pass(
        name,
        v,
        SUM_FIRST,
        (partial.start(name)?, from),
        dims,
        parts,
        x,
    )?;
    sum_parts(name, &partial, x.dtype, [dims[0], parts as usize, dims[2]])
}

/// The running reduction, and for the maximum its position.
pub fn scan(
    op: ScanOp,
    (x, lx): View,
    dims: [usize; 3],
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let (name, kernels) = match op {
        ScanOp::Sum => ("cumsum", ["cumsum_rows", "cumsum_columns", "cumsum_before"]),
        ScanOp::Max => ("cummax", ["cummax_rows", "cummax_columns", "cummax_before"]),
    };
    if op == ScanOp::Sum && x.dtype == DType::U8 {
        return dtype_error(name, DType::U8, "i64 or a float dtype");
    }
    let c = x.context()?;
    let count: usize = dims.iter().product();
    let y = CudaStorage::new(name, c, x.dtype, count)?;
    let at = match op {
        ScanOp::Sum => None,
        ScanOp::Max => Some(CudaStorage::new(name, c, DType::I64, count)?),
    };
    if count == 0 {
        return Ok((y, at));
    }
    let [outer, n, inner] = numbers(dims);
    let parts = if inner > 1 {
        (MANY * 256 / (outer * inner)).min(n / 32)
    } else {
        (MANY / 2 / outer).min(n / 4096)
    }
    .max(1);
    let v = Variant::new(&table::SCAN, x.dtype);
    let at_address = at.as_ref().map_or(Ok(0), |a| a.start(name))?;
    let (to, from) = (y.start(name)?, x.at(name, lx)?);
    // Totals of parts: numbers, or a maximum and its position in 16 bytes.
    let rooms = if parts > 1 {
        (outer * parts * inner) as usize
    } else {
        0
    };
    let totals = CudaStorage::new(name, c, DType::I64, 2 * rooms)?;
    let totals_at = totals.start(name)?;
    let (kernel, grid) = if inner > 1 {
        (kernels[1], Grid::threads(outer * parts * inner))
    } else {
        (kernels[0], Grid::blocks(outer * parts, 256))
    };
    let run = |write: u32| {
        c.launch(
            name,
            v,
            kernel,
            grid,
            &[
                &to,
                &at_address,
                &from,
                &totals_at,
                &outer,
                &n,
                &inner,
                &parts,
                &write,
            ],
        )
    };
    if parts > 1 {
        run(0)?;
        let grid = Grid::threads(outer * inner);
        c.launch(
            name,
            v,
            kernels[2],
            grid,
            &[&totals_at, &outer, &inner, &parts],
        )?;
    }
    run(1)?;
    Ok((y, at))
}

/// Whether a warp serves a row (else a block of 256 threads), and the grid.
fn row_grid(dtype: DType, rows: usize, n: usize) -> (bool, Grid) {
    let narrow = n * dtype.size() <= 8192;
    let per_block = if narrow { 8 } else { 1 };
    (narrow, Grid::blocks((rows as u64).div_ceil(per_block), 256))
}

fn row_alignment(t: Type, n: usize, addresses: &[u64]) -> u32 {
    let fits = n.is_multiple_of(t.vector() as usize);
    u32::from(fits && addresses.iter().all(|a| a.is_multiple_of(16)))
}

/// Softmax or its logarithm over rows of n.
pub fn softmax((x, lx): View, rows: usize, n: usize, log: bool) -> Result<CudaStorage> {
    let op = if log { "log_softmax" } else { "softmax" };
    need_float(op, x)?;
    let c = x.context()?;
    let y = CudaStorage::new(op, c, x.dtype, rows * n)?;
    if y.count == 0 {
        return Ok(y);
    }
    let (to, from) = (y.start(op)?, x.at(op, lx)?);
    let (narrow, grid) = row_grid(x.dtype, rows, n);
    let aligned = row_alignment(x.dtype.into(), n, &[from]);
    let v = Variant::new(&table::SOFTMAX, x.dtype);
    let name = if narrow { "softmax32" } else { "softmax256" };
    let (rows, n, log) = (rows as u64, n as u64, u32::from(log));
    c.launch(op, v, name, grid, &[&to, &from, &rows, &n, &log, &aligned])?;
    Ok(y)
}

/// log(sum(e^x)) over rows of n.
pub fn logsumexp((x, lx): View, rows: usize, n: usize) -> Result<CudaStorage> {
    const OP: &str = "logsumexp";
    need_float(OP, x)?;
    let c = x.context()?;
    let y = CudaStorage::new(OP, c, x.dtype, rows)?;
    let (to, from) = (y.start(OP)?, x.at(OP, lx)?);
    let (narrow, grid) = row_grid(x.dtype, rows, n);
    let aligned = row_alignment(x.dtype.into(), n, &[from]);
    let v = Variant::new(&table::SOFTMAX, x.dtype);
    let name = if narrow {
        "logsumexp32"
    } else {
        "logsumexp256"
    };
    let (rows, n) = (rows as u64, n as u64);
    c.launch(OP, v, name, grid, &[&to, &from, &rows, &n, &aligned])?;
    Ok(y)
}

/// Losses of x [rows, n] at targets [rows], and the rows' log-sum-exp, both in the computing type.
pub fn cross_entropy((x, lx): View, (t, lt): View, n: usize) -> Result<[CudaStorage; 2]> {
    const OP: &str = "cross_entropy";
    need_float(OP, x)?;
    super::storage::need(OP, t, DType::I64)?;
    let c = super::storage::common(OP, &[x, t])?;
    let rows = lt.count();
    let loss = CudaStorage::new(OP, c, computing(x.dtype), rows)?;
    let lse = CudaStorage::new(OP, c, computing(x.dtype), rows)?;
    let rows = Rows {
        first: 0,
        rows,
        n,
        dtype: x.dtype,
        logits: x.at(OP, lx)?,
        lse: lse.start(OP)?,
        targets: t.at(OP, lt)?,
    };
    rows.losses(c, loss.start(OP)?)?;
    Ok([loss, lse])
}

/// Gradient of the logits from the gradients g of the losses.
pub fn cross_entropy_backward(
    (x, lx): View,
    lse: &CudaStorage,
    (g, lg): View,
    (t, lt): View,
    n: usize,
) -> Result<CudaStorage> {
    const OP: &str = "cross_entropy";
    super::storage::need(OP, g, computing(x.dtype))?;
    let c = super::storage::common(OP, &[x, lse, g, t])?;
    let rows = lt.count();
    let dx = CudaStorage::new(OP, c, x.dtype, rows * n)?;
    let rows = Rows {
        first: 0,
        rows,
        n,
        dtype: x.dtype,
        logits: x.at(OP, lx)?,
        lse: lse.start(OP)?,
        targets: t.at(OP, lt)?,
    };
    rows.gradients(c, dx.start(OP)?, g.at(OP, lg)?)?;
    Ok(dx)
}

/// Rows of logits [rows, n], their log-sum-exp [rows] and targets [rows], by address; they are the rows from `first`
/// on of a longer batch.
pub(super) struct Rows {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) dtype: DType,
    pub(super) logits: u64,
    pub(super) lse: u64,
    pub(super) targets: u64,
}

impl Rows {
    /// The rows' losses and log-sum-exp.
    pub(super) fn losses(&self, c: &'static Context, loss: u64) -> Result<()> {
        const OP: &str = "cross_entropy";
        let (narrow, grid) = row_grid(self.dtype, self.rows, self.n);
        let aligned = row_alignment(self.dtype.into(), self.n, &[self.logits]);
        let v = Variant::new(&table::SOFTMAX, self.dtype);
        let name = if narrow {
            "cross_entropy32"
        } else {
            "cross_entropy256"
        };
        let [first, rows, n] = [self.first, self.rows, self.n].map(|n| n as u64);
        let fault = c.fault.address();
        let arguments: [&dyn Argument; 9] = [
            &loss,
            &self.lse,
            &self.logits,
            &self.targets,
            &first,
            &rows,
            &n,
            &aligned,
            &fault,
        ];
        c.launch(OP, v, name, grid, &arguments)
    }

    /// The gradients of the logits, which may take their place, from those of the losses.
    pub(super) fn gradients(&self, c: &'static Context, to: u64, g: u64) -> Result<()> {
        const OP: &str = "cross_entropy";
        let (narrow, grid) = row_grid(self.dtype, self.rows, self.n);
        let aligned = row_alignment(self.dtype.into(), self.n, &[self.logits, to]);
        let v = Variant::new(&table::SOFTMAX, self.dtype);
        let name = if narrow {
            "cross_entropy_back32"
        } else {
            "cross_entropy_back256"
        };
        let [rows, n] = [self.rows, self.n].map(|n| n as u64);
        let arguments: [&dyn Argument; 8] = [
            &to,
            &self.logits,
            &self.lse,
            &g,
            &self.targets,
            &rows,
            &n,
            &aligned,
        ];
        c.launch(OP, v, name, grid, &arguments)
    }
}
