//! Reading, adding and sorting by index on the GPU. Indices are checked where they are used; a bad one comes
//! out as an error when the host next waits for the GPU (see [`super::fault`]).

use super::context::{Context, device_error};
use super::elementwise::packed;
use super::modules::Grid;
use super::source::{Type, Variant};
use super::storage::{CudaStorage, View, common, computing, need};
use super::table;
use crate::dtype::DType;
use crate::error::{Result, dtype_error};
use crate::layout::Layout;

fn around(shape: &[usize], axis: usize) -> [u64; 3] {
    let product = |s: &[usize]| s.iter().product::<usize>() as u64;
    [
        product(&shape[..axis]),
        shape[axis] as u64,
        product(&shape[axis + 1..]),
    ]
}

/// The widest word that divides rows of `bytes` at an address.
fn word(bytes: u64, address: u64) -> Type {
    let size = [16, 8, 4, 2]
        .into_iter()
        .find(|s| bytes.is_multiple_of(*s) && address.is_multiple_of(*s));
    Type::word(size.unwrap_or(1) as usize)
}

/// Slices of an axis at 1-d indices.
pub fn index_select((x, lx): View, axis: usize, (i, li): View) -> Result<CudaStorage> {
    const OP: &str = "index_select";
    need(OP, i, DType::I64)?;
    let c = common(OP, &[x, i])?;
    let (from, _kept) = packed(OP, (x, lx))?;
    let (list, _kept_list) = packed(OP, (i, li))?;
    let ([outer, size, inner], n) = (around(&lx.shape, axis), li.count() as u64);
    let y = CudaStorage::new(OP, c, x.dtype, (outer * n * inner) as usize)?;
    if y.count == 0 {
        return Ok(y);
    }
    let bytes = inner * x.dtype.size() as u64;
    let t = word(bytes, from);
    let inner = bytes / t.size() as u64;
    let work = outer * n * inner;
    let v = Variant::new(&table::INDEX, t).wide(work >= 1 << 32);
    let (to, axis, fault) = (y.start(OP)?, axis as u64, c.fault.address());
    let grid = Grid::threads(work);
    c.launch(
        OP,
        v,
        "index_select",
        grid,
        &[&to, &from, &list, &outer, &size, &n, &inner, &axis, &fault],
    )?;
    Ok(y)
}

/// x[.., index, ..] along an axis.
pub fn gather((x, lx): View, axis: usize, (i, li): View) -> Result<CudaStorage> {
    const OP: &str = "gather";
    need(OP, i, DType::I64)?;
    let c = common(OP, &[x, i])?;
    let y = CudaStorage::new(OP, c, x.dtype, li.count())?;
    if y.count == 0 {
        return Ok(y);
    }
    let (from, _kept) = packed(OP, (x, lx))?;
    let (list, _kept_list) = packed(OP, (i, li))?;
    let ([outer, size, inner], n) = (around(&lx.shape, axis), li.shape[axis] as u64);
    let v = Variant::new(&table::INDEX, Type::word(x.dtype.size())).wide(y.count >= 1 << 32);
    let (to, axis, fault) = (y.start(OP)?, axis as u64, c.fault.address());
    let grid = Grid::threads(y.count as u64);
    c.launch(
        OP,
        v,
        "gather",
        grid,
        &[&to, &from, &list, &outer, &size, &n, &inner, &axis, &fault],
    )?;
    Ok(y)
}

/// Sources per column up to which one thread adds them up in order; more are sorted first unless there are
/// enough columns to fill the GPU.
const SHORT: u64 = 32;
const MANY_COLUMNS: u64 = 1 << 14;

/// x[.., index, ..] += source along an axis of a contiguous x, in the order of the source.
pub fn scatter_add(
    x: &mut CudaStorage,
    shape: &[usize],
    axis: usize,
    (i, li): View,
    (src, ls): View,
) -> Result<()> {
    const OP: &str = "scatter_add";
    need(OP, i, DType::I64)?;
    need(OP, src, x.dtype)?;
    if x.dtype == DType::U8 {
        return dtype_error(OP, DType::U8, "i64 or a float dtype");
    }
    let c = common(OP, &[x, i, src])?;
    if ls.count() == 0 {
        return Ok(());
    }
    let repeated = |(&s, &n): (&usize, &usize)| s == 0 || n == 1;
    let rows = axis == 0 && li.strides[1..].iter().zip(&li.shape[1..]).all(repeated);
    let mut narrow = li.clone();
    if rows {
        narrow.shape[1..].fill(1);
    }
    let (list, _kept_list) = packed(OP, (i, &narrow))?;
    let (from, _kept) = packed(OP, (src, ls))?;
    let ([outer, size, inner], n) = (around(shape, axis), ls.shape[axis] as u64);
    let (to, axis, fault) = (x.start(OP)?, axis as u64, c.fault.address());
    let v = Variant::new(&table::SCATTER, x.dtype);
    if !rows && (n <= SHORT || outer * inner >= MANY_COLUMNS) {
        let grid = Grid::threads(outer * inner);
        return c.launch(
            OP,
            v,
            "scatter_columns",
            grid,
            &[&to, &list, &from, &outer, &size, &n, &inner, &axis, &fault],
        );
    }
    // Whole rows at one index, or single elements at their place in x.
    let (width, places, per_key) = match rows {
        true => (inner, size, 1),
        false => (1, outer * size * inner, inner),
    };
    let count = if rows { n } else { ls.count() as u64 };
    let keys = CudaStorage::new(OP, c, DType::I64, count as usize)?;
    let keys_at = keys.start(OP)?;
    let grid = Grid::threads(count);
    c.launch(
        OP,
        v,
        "scatter_keys",
        grid,
        &[
            &keys_at, &list, &count, &size, &n, &per_key, &axis, &places, &fault,
        ],
    )?;
    let bits = 64 - places.leading_zeros();
    let order = sort(OP, c, Type::U64, keys_at, [1, count], false, bits)?;
    let l = Layout::contiguous(&[count as usize]);
    let sorted = index_select((&keys, &l), 0, (&order, &l))?;
    let (at, order_at) = (sorted.start(OP)?, order.start(OP)?);
    let chunks = count.div_ceil(32);
    let parts = CudaStorage::new(OP, c, computing(x.dtype), (chunks * 2 * width) as usize)?;
    let parts_at = parts.start(OP)?;
    let threads = match width {
        0..=32 => 32,
        33..=128 => 128,
        _ => 256,
    };
    let grid = Grid::blocks(chunks * width.div_ceil(u64::from(threads)), threads);
    let chunk_arguments: [&dyn super::modules::Argument; 8] = [
        &to, &from, &at, &order_at, &parts_at, &count, &width, &places,
    ];
    c.launch(OP, v, "scatter_chunks", grid, &chunk_arguments)?;
    c.launch(
        OP,
        v,
        "scatter_runs",
        grid,
        &[&to, &at, &parts_at, &count, &width, &places],
    )
}

/// Rows up to which a block sorts in shared memory.
const IN_BLOCK: u64 = 2048;
/// Elements of a tile of the radix sort.
const TILE: u64 = 2048;

/// Stable order of rows of `n` elements at an address, as i64 positions; of integer keys only the lowest
/// `bits` count.
fn sort(
    op: &'static str,
    c: &'static Context,
    t: Type,
    x: u64,
    [rows, n]: [u64; 2],
    descending: bool,
    bits: u32,
) -> Result<CudaStorage> {
    let count = rows * n;
    let order = CudaStorage::new(op, c, DType::I64, count as usize)?;
    let (to, descending) = (order.start(op)?, u32::from(descending));
    let key = table::sort_key(t);
    let v = Variant::new(&table::SORT, t).second(key);
    if n <= IN_BLOCK {
        let (n, padded) = (n as u32, n.next_power_of_two() as u32);
        c.launch(
            op,
            v,
            "sort_short",
            Grid::blocks(rows, 256),
            &[&to, &x, &rows, &n, &padded, &descending],
        )?;
        return Ok(order);
    }
    if n > u64::from(u32::MAX) {
        return device_error(
            op,
            format!("rows of {n} elements cannot be sorted; 2^32 is the limit"),
        );
    }
    // Two sets of keys (8 bytes at most) and places, used in turn.
    let words = (count as usize).div_ceil(2);
    let key_words = if key.size() == 8 {
        count as usize
    } else {
        words
    };
    let make = |n: usize| CudaStorage::new(op, c, DType::I64, n);
    let key_sets = [make(key_words)?, make(key_words)?];
    let place_sets = [make(words)?, make(words)?];
    let keys = [key_sets[0].start(op)?, key_sets[1].start(op)?];
    let places = [place_sets[0].start(op)?, place_sets[1].start(op)?];
    let tiles = n.div_ceil(TILE);
    let width = 256 * tiles;
    let counts = make(((rows * width) as usize).div_ceil(2))?;
    let counts_at = counts.start(op)?;
    c.launch(
        op,
        v,
        "radix_start",
        Grid::threads(count),
        &[&keys[0], &places[0], &x, &count, &n, &descending],
    )?;
    // A bf16 key is a float's: its lower half is the same for all of one sign.
    let first = if t == Type::BF16 { 16 } else { 0 };
    let mut now = 0;
    for shift in (first..bits).step_by(8) {
        let tile_grid = Grid::blocks(rows * tiles, 256);
        c.launch(
            op,
            v,
            "radix_count",
            tile_grid,
            &[&counts_at, &keys[now], &rows, &n, &shift],
        )?;
        c.launch(
            op,
            v,
            "radix_prefix",
            Grid::blocks(rows, 1024),
            &[&counts_at, &rows, &width],
        )?;
        let next = 1 - now;
        c.launch(
            op,
            v,
            "radix_move",
            tile_grid,
            &[
                &keys[next],
                &places[next],
                &keys[now],
                &places[now],
                &counts_at,
                &rows,
                &n,
                &shift,
            ],
        )?;
        now = next;
    }
    c.launch(
        op,
        v,
        "radix_end",
        Grid::threads(count),
        &[&to, &places[now], &count],
    )?;
    Ok(order)
}

/// Positions that sort each row of a contiguous [rows, n]; stable, NaN last.
pub fn argsort((x, lx): View, rows: usize, n: usize, descending: bool) -> Result<CudaStorage> {
    const OP: &str = "argsort";
    let c = x.context()?;
    if rows * n == 0 {
        return CudaStorage::new(OP, c, DType::I64, 0);
    }
    let t = Type::from(x.dtype);
    let bits = match t {
        Type::BF16 => 32,
        _ => 8 * t.size() as u32,
    };
    sort(
        OP,
        c,
        t,
        x.at(OP, lx)?,
        [rows as u64, n as u64],
        descending,
        bits,
    )
}
