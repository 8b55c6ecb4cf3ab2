//! Launching `forward_hopper.cu` and `backward_hopper.cu`: GPUs of compute capability 9.0, heads of 64 and 128.
//!
//! The copy engine brings whole tiles, so that keys that no query sees are loaded too, but for those after the last one
//! that is seen, which come as zeros. So these kernels serve calls in which no other key is hidden from all: training
//! steps, and prompts on caches with room to spare.

use weft_tensor::cuda::{Grid, Launch, Source, Variant, context};
use weft_tensor::{DType, Device, Error, Result, Tensor};

use super::super::Dims;
use super::backward::Pass;
use super::{Place, Places, variant};

const HEAD_DIMS: [usize; 2] = [64, 128];

/// The forward kernel.
pub static FORWARD: Source = Source {
    name: "flash_forward_hopper",
    text: concat!(
        include_str!("tile.cu"),
        include_str!("hopper.cu"),
        include_str!("forward_hopper.cu")
    ),
    variants: |_| HEAD_DIMS.map(forward_of).to_vec(),
};

/// The backward kernels.
pub static BACKWARD: Source = Source {
    name: "flash_backward_hopper",
    text: concat!(
        include_str!("tile.cu"),
        include_str!("hopper.cu"),
        include_str!("statistics.cu"),
        include_str!("backward_hopper.cu")
    ),
    variants: |_| HEAD_DIMS.map(backward_of).to_vec(),
};

fn forward_of(head_dim: usize) -> Variant {
    variant(&FORWARD, DType::BF16, head_dim, false)
}

fn backward_of(head_dim: usize) -> Variant {
    variant(&BACKWARD, DType::BF16, head_dim, false)
}

/// Rows that one warpgroup works on.
const GROUP_ROWS: usize = 64;
/// Threads of a warpgroup.
const GROUP: usize = 128;
/// Tiles begin at multiples of this; a block's memory may not.
const ALIGNMENT: usize = 1024;

/// Keys from the first to behind the last that any query sees, if these kernels serve the call.
pub fn keys_seen(dims: &Dims, places: &Places, device: Device) -> Option<usize> {
    let (Device::Cuda(ordinal), Place::Same(query), Place::Same(key), false) =
        (device, &places.query_start, &places.keys, places.slots)
    else {
        return None;
    };
    let ahead = query.saturating_sub(*key);
    let end = ahead
        .saturating_add(dims.queries as i64)
        .min(dims.keys as i64);
    let all = dims.queries > 0
        && *key >= 0
        && end > 0
        && places.window.is_none_or(|window| ahead < window);
    let served =
        all && HEAD_DIMS.contains(&dims.dim) && context(ordinal).is_ok_and(|gpu| gpu.arch == 90);
    served.then_some(end as usize)
}

/// A block for each multiprocessor, as long as there is work: `groups` warpgroups beside the one that loads, `rows` of a
/// head in shared memory.
fn grid(items: usize, groups: usize, rows: usize, head_dim: usize, device: Device) -> Result<Grid> {
    let Device::Cuda(ordinal) = device else {
        return Err(Error::Custom(format!(
            "attention: no kernel runs on {device}"
        )));
    };
    let most = context(ordinal)?.multiprocessors as usize;
    Ok(Grid {
        shared: (ALIGNMENT + rows * head_dim * size_of::<u16>()) as u32,
        ..Grid::blocks(items.min(most) as u64, ((groups + 1) * GROUP) as u32)
    })
}

/// o and lse of contiguous bf16 q, k and v.
pub fn forward(
    dims: &Dims,
    [q, k, v]: [&Tensor; 3],
    places: &Places,
    seen: usize,
    scale: f64,
) -> Result<[Tensor; 2]> {
    // `GROUPS`, `BN` and `STAGES` of the source.
    let (groups, keys, stages) = (if dims.dim == 64 { 3 } else { 2 }, 128, 2);
    let queries = groups * GROUP_ROWS;
    let mut launch = Launch::new("attention", forward_of(dims.dim), q.device())?;
    let o = launch.output(q.shape(), DType::BF16)?;
    let lse = launch.output(&[dims.batch, dims.heads, dims.queries], DType::F32)?;
    launch.tiles(q, dims.queries, queries as u32)?;
    launch.tiles(k, seen, keys as u32)?;
    launch.tiles(v, seen, keys as u32)?;
    launch.words(&places.call(dims, dims.group(), &launch)?);
    launch.f32(scale as f32);
    let items = dims.batch * dims.heads * dims.queries.div_ceil(queries);
    let rows = 2 * queries + 2 * stages * keys;
    let grid = grid(items, groups, rows, dims.dim, q.device())?;
    // SAFETY: the parameters of `forward`; `dims` are those of the tensors, of which it reads and writes whole rows.
    unsafe { launch.run("forward", grid) }?;
    Ok([o, lse])
}

/// dq, dk and dv, from the statistics of [`Pass`].
pub fn backward(pass: &Pass, statistics: &Tensor, seen: usize) -> Result<[Tensor; 3]> {
    let dims = pass.dims;
    // `BQ`, `QUERY_STAGES`, `BN` and `KEY_STAGES` of the source.
    let (queries, query_stages, keys, key_stages) = match dims.dim {
        64 => (64, 4, 128, 4),
        _ => (64, 3, 64, 4),
    };
    let (groups, rows) = (2, 2 * GROUP_ROWS);
    let [q, k, v] = pass.inputs;
    let device = q.device();
    let start = || Launch::new("attention, back", backward_of(dims.dim), device);

    let mut launch = start()?;
    let dk = launch.output(k.shape(), DType::BF16)?;
    let dv = launch.output(v.shape(), DType::BF16)?;
    launch.tiles(q, dims.queries, queries as u32)?;
    launch.tiles(k, seen, rows as u32)?;
    launch.tiles(v, seen, rows as u32)?;
    launch.tiles(pass.dout, dims.queries, queries as u32)?;
    pass.rest(&mut launch, statistics, 1)?;
    let items = dims.batch * dims.kv_heads * dims.keys.div_ceil(rows);
    let kept = 3 * rows + 2 * query_stages * queries;
    let blocks = grid(items, groups, kept, dims.dim, device)?;
    // SAFETY: the parameters of `key_value_gradients`, over rows that `dims` count.
    unsafe { launch.run("key_value_gradients", blocks) }?;

    let mut launch = start()?;
    let dq = launch.output(q.shape(), DType::BF16)?;
    launch.tiles(q, dims.queries, rows as u32)?;
    launch.tiles(k, seen, keys as u32)?;
    launch.tiles(v, seen, keys as u32)?;
    launch.tiles(pass.dout, dims.queries, rows as u32)?;
    pass.rest(&mut launch, statistics, dims.group())?;
    let items = dims.batch * dims.heads * dims.queries.div_ceil(rows);
    let kept = 3 * rows + 2 * key_stages * keys;
    let blocks = grid(items, groups, kept, dims.dim, device)?;
    // SAFETY: the parameters of `query_gradients`, over rows that `dims` count.
    unsafe { launch.run("query_gradients", blocks) }?;
    Ok([dq, dk, dv])
}
