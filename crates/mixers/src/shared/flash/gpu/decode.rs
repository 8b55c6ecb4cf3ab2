//! Launching `decode.cu` and `decode_f32.cu`: a few queries over a long cache. Its keys are split over blocks, as many as
//! the cache's slots suggest, whatever of it is filled: a captured launch serves every later position.

use weft_tensor::cuda::{Grid, Launch, Source, Variant};
use weft_tensor::{DType, Result, Tensor};

use super::super::Dims;
use super::{Places, THREADS, shared_rows, variant, variants};

/// The kernels for bf16.
pub static KERNELS: Source = Source {
    name: "flash_decode",
    text: concat!(
        include_str!("tile.cu"),
        include_str!("split.cu"),
        include_str!("decode.cu")
    ),
    variants: |s| variants(s, DType::BF16),
};

/// The kernels for f32.
pub static KERNELS_F32: Source = Source {
    name: "flash_decode_f32",
    text: concat!(
        include_str!("tile.cu"),
        include_str!("split.cu"),
        include_str!("decode_f32.cu")
    ),
    variants: |s| variants(s, DType::F32),
};

const OP: &str = "attention";

/// Keys that are worth a block.
const LEAST_KEYS: usize = 256;

/// Splits of the keys of `units` heads, where `at_a_time` blocks run at a time: few, and whole rounds of blocks.
fn splits(units: usize, at_a_time: usize, keys: usize) -> usize {
    const MOST_ROUNDS: usize = 8;
    let share = |splits: usize| {
        let blocks = units * splits;
        blocks as f64 / blocks.next_multiple_of(at_a_time) as f64
    };
    let most = (at_a_time * MOST_ROUNDS / units.max(1))
        .min(keys / LEAST_KEYS)
        .max(1);
    let first = (1..=most).find(|&n| share(n) > 0.9);
    first.unwrap_or_else(|| {
        (1..=most)
            .rev()
            .max_by(|&a, &b| share(a).total_cmp(&share(b)))
            .unwrap_or(1)
    })
}

/// How a call is cut.
struct Plan {
    dtype: DType,
    variant: Variant,
    /// Blocks that the rows (query, head of the group) of a key head take.
    chunks: usize,
    splits: usize,
    shared: u32,
}

impl Plan {
    fn new(dims: &Dims, dtype: DType, slots: bool) -> Plan {
        // `ROWS` of the sources, the rows of the tiles that a block holds (q, and `STAGES` of k and v), and how many
        // blocks run at a time on a large GPU, of 132 multiprocessors.
        let (source, rows, tile_rows, at_a_time) = match (dtype, dims.dim) {
            (DType::BF16, 256) => (&KERNELS, 16, 16 + 2 * 128, 132),
            (DType::BF16, _) => (&KERNELS, 16, 16 + 3 * 128, 2 * 132),
            _ => (&KERNELS_F32, 4, 0, 3 * 132),
        };
        let chunks = dims.lanes().div_ceil(rows);
        let units = dims.batch * dims.kv_heads * chunks;
        Plan {
            dtype,
            variant: variant(source, dtype, dims.dim, slots),
            chunks,
            splits: splits(units, at_a_time, dims.keys),
            shared: shared_rows(tile_rows, dims.dim),
        }
    }
}

/// o and lse of contiguous q, k and v, all bf16 or all f32, without gradients.
pub fn decode(
    dims: &Dims,
    [q, k, v]: [&Tensor; 3],
    places: &Places,
    scale: f64,
) -> Result<[Tensor; 2]> {
    let plan = Plan::new(dims, q.dtype(), places.slots);
    let (device, rows) = (q.device(), dims.batch * dims.kv_heads * dims.lanes());
    let cut = [plan.splits, dims.lanes(), dims.group()].map(|n| n as u64);
    let lse_shape = [dims.batch, dims.heads, dims.queries];
    let mut launch = Launch::new(OP, plan.variant, device)?;
    // One split writes o and lse, several write their parts.
    let whole = plan.splits == 1;
    let null = |launch: &mut Launch| [0, 0].map(|null| launch.u64(null));
    let shapes = match whole {
        true => [q.shape(), &lse_shape],
        false => [
            &[rows * plan.splits, 2][..],
            &[rows * plan.splits, dims.dim],
        ],
    };
    if !whole {
        null(&mut launch);
    }
    let dtype = if whole { plan.dtype } else { DType::F32 };
    let first = launch.output(shapes[0], dtype)?;
    let second = launch.output(shapes[1], DType::F32)?;
    if whole {
        null(&mut launch);
    }
    for x in [q, k, v] {
        launch.input(x, plan.dtype)?;
    }
    launch.words(&places.call(dims, 1, &launch)?);
    launch.words(&cut);
    launch.f32(scale as f32);
    let blocks = dims.batch * dims.kv_heads * plan.chunks * plan.splits;
    let grid = Grid {
        shared: plan.shared,
        ..Grid::blocks(blocks as u64, THREADS)
    };
    // SAFETY: the parameters of `decode`; `dims` are those of the tensors, and there is room for the rows of every split.
    unsafe { launch.run("decode", grid) }?;
    if whole {
        return Ok([first, second]);
    }
    let (parts, sums) = (first, second);
    let mut launch = Launch::new(OP, plan.variant, device)?;
    let o = launch.output(q.shape(), plan.dtype)?;
    let lse = launch.output(&lse_shape, DType::F32)?;
    launch.input(&parts, DType::F32)?;
    launch.input(&sums, DType::F32)?;
    launch.words(&places.call(dims, 1, &launch)?);
    launch.words(&cut);
    let grid = Grid::blocks((rows as u64 * 32).div_ceil(THREADS.into()), THREADS);
    // SAFETY: the parameters of `merge`, which reads what `decode` left.
    unsafe { launch.run("merge", grid) }?;
    Ok([o, lse])
}
