//! Products with a gate and short convolutions on the GPU, forward and backward. Operands are contiguous.

use super::modules::Grid;
use super::reduce::sum_parts;
use super::source::{Type, Variant};
use super::storage::{CudaStorage, View, common, computing, need, need_float};
use super::table;
use crate::cpu::fused::short_conv::Dims;
use crate::dtype::DType;
use crate::error::{Result, shape_error};

fn gated(t: Type, addresses: &[u64]) -> Variant {
    let aligned = addresses.iter().all(|a| a.is_multiple_of(16));
    Variant::new(&table::GATED, t).vector(if aligned { t.vector() } else { 1 })
}

/// silu(a) * b over n elements.
pub fn silu_mul((a, la): View, (b, lb): View, n: usize) -> Result<CudaStorage> {
    const OP: &str = "silu_mul";
    need_float(OP, a)?;
    need(OP, b, a.dtype)?;
    let c = common(OP, &[a, b])?;
    let y = CudaStorage::new(OP, c, a.dtype, n)?;
    let (to, pa, pb, n) = (y.start(OP)?, a.at(OP, la)?, b.at(OP, lb)?, n as u64);
    let v = gated(a.dtype.into(), &[pa, pb]);
    c.launch(
        OP,
        v,
        "silu_mul",
        Grid::threads(n.div_ceil(v.per_access())),
        &[&to, &pa, &pb, &n],
    )?;
    Ok(y)
}

/// Gradients of a and b.
pub fn silu_mul_backward(
    (a, la): View,
    (b, lb): View,
    (g, lg): View,
    n: usize,
) -> Result<[CudaStorage; 2]> {
    const OP: &str = "silu_mul";
    need(OP, g, a.dtype)?;
    let c = common(OP, &[a, b, g])?;
    let (da, db) = (
        CudaStorage::new(OP, c, a.dtype, n)?,
        CudaStorage::new(OP, c, a.dtype, n)?,
    );
    let (to_a, to_b) = (da.start(OP)?, db.start(OP)?);
    let (pa, pb, pg, n) = (a.at(OP, la)?, b.at(OP, lb)?, g.at(OP, lg)?, n as u64);
    let v = gated(a.dtype.into(), &[pa, pb, pg]);
    let grid = Grid::threads(n.div_ceil(v.per_access()));
    c.launch(
        OP,
        v,
        "silu_mul_back",
        grid,
        &[&to_a, &to_b, &pa, &pb, &pg, &n],
    )?;
    Ok([da, db])
}

/// Steps of time that a thread walks.
const STEPS: u64 = 64;

/// Channels that a thread walks: 8 bytes of them if all rows at these addresses are aligned to that.
fn channels(dtype: DType, d: Dims, addresses: &[u64]) -> u32 {
    let several = (8 / dtype.size()) as u32;
    let aligned = addresses.iter().all(|a| a.is_multiple_of(8));
    if aligned && d.channels.is_multiple_of(several as usize) {
        several
    } else {
        1
    }
}

fn conv(dtype: DType, d: Dims, channels: u32) -> Result<Variant> {
    match u8::try_from(d.taps) {
        Ok(taps) => Ok(table::filter(dtype, u32::from(taps), channels)),
        Err(_) => shape_error(
            "conv1d_silu",
            format!("{} taps; the GPU takes up to 255", d.taps),
        ),
    }
}

/// silu of a depthwise convolution along time.
pub fn conv1d_silu((x, lx): View, (w, lw): View, d: Dims) -> Result<CudaStorage> {
    const OP: &str = "conv1d_silu";
    need_float(OP, x)?;
    need(OP, w, x.dtype)?;
    let c = common(OP, &[x, w])?;
    let y = CudaStorage::new(OP, c, x.dtype, d.batch * d.tokens * d.channels)?;
    let (to, from, weight) = (y.start(OP)?, x.at(OP, lx)?, w.at(OP, lw)?);
    let several = channels(x.dtype, d, &[from]);
    let v = conv(x.dtype, d, several)?;
    let [batch, tokens, channels] = [d.batch, d.tokens, d.channels].map(|n| n as u64);
    let grid = Grid::threads(batch * tokens.div_ceil(STEPS) * channels / v.per_access());
    c.launch(
        OP,
        v,
        "conv1d_silu",
        grid,
        &[&to, &from, &weight, &batch, &tokens, &channels],
    )?;
    Ok(y)
}

/// Gradients of x and weight.
pub fn conv1d_silu_backward(
    (x, lx): View,
    (w, lw): View,
    (g, lg): View,
    d: Dims,
) -> Result<[CudaStorage; 2]> {
    const OP: &str = "conv1d_silu";
    need(OP, g, x.dtype)?;
    let c = common(OP, &[x, w, g])?;
    let rows_in = d.tokens + d.taps - 1;
    let pieces = d.batch * rows_in.div_ceil(STEPS as usize);
    let width = d.channels * d.taps;
    let dx = CudaStorage::new(OP, c, x.dtype, d.batch * rows_in * d.channels)?;
    let parts = CudaStorage::new(OP, c, computing(x.dtype), pieces * width)?;
    let (to, parts_at) = (dx.start(OP)?, parts.start(OP)?);
    let (from, weight, gradient) = (x.at(OP, lx)?, w.at(OP, lw)?, g.at(OP, lg)?);
    let several = channels(x.dtype, d, &[from, gradient]);
    let v = conv(x.dtype, d, several)?;
    let [batch, tokens, channels] = [d.batch, d.tokens, d.channels].map(|n| n as u64);
    let grid = Grid::threads(pieces as u64 * channels / v.per_access());
    let arguments: [&dyn super::modules::Argument; 8] = [
        &to, &parts_at, &from, &weight, &gradient, &batch, &tokens, &channels,
    ];
    c.launch(OP, v, "conv1d_silu_back", grid, &arguments)?;
    Ok([dx, sum_parts(OP, &parts, x.dtype, [1, pieces, width])?])
}
