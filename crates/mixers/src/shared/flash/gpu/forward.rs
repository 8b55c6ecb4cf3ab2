//! Launching `forward.cu`.

use weft_tensor::cuda::{Grid, Launch, Source};
use weft_tensor::{DType, Result, Tensor};

use super::super::Dims;
use super::{Places, THREADS, hopper, shared_rows, variant, variants};

/// The forward kernel.
pub static KERNELS: Source = Source {
    name: "flash_forward",
    text: concat!(include_str!("tile.cu"), include_str!("forward.cu")),
    variants: |s| variants(s, DType::BF16),
};

/// Queries and keys of a block's tiles, and how many tiles of keys it holds: `BM`, `BN`, `STAGES` of the source.
const fn tiles(head_dim: usize) -> (usize, usize, usize) {
    if head_dim == 256 {
        (64, 32, 2)
    } else {
        (128, 64, 2)
    }
}

/// o and lse of contiguous bf16 q, k and v.
pub fn forward(
    dims: &Dims,
    [q, k, v]: [&Tensor; 3],
    places: &Places,
    scale: f64,
) -> Result<[Tensor; 2]> {
    if let Some(seen) = hopper::keys_seen(dims, places, q.device()) {
        return hopper::forward(dims, [q, k, v], places, seen, scale);
    }
    let (queries, keys, stages) = tiles(dims.dim);
    let variant = variant(&KERNELS, DType::BF16, dims.dim, places.slots);
    let mut launch = Launch::new("attention", variant, q.device())?;
    let o = launch.output(q.shape(), DType::BF16)?;
    let lse = launch.output(&[dims.batch, dims.heads, dims.queries], DType::F32)?;
    for x in [q, k, v] {
        launch.input(x, DType::BF16)?;
    }
    let call = places.call(dims, dims.group(), &launch)?;
    launch.words(&call);
    launch.f32(scale as f32);
    let blocks = dims.batch * dims.heads * dims.queries.div_ceil(queries);
    let grid = Grid {
        shared: shared_rows(queries + 2 * keys * stages, dims.dim),
        ..Grid::blocks(blocks as u64, THREADS)
    };
    // SAFETY: the parameters of `forward`; `dims` are those of the tensors, of which it reads and writes whole rows.
    unsafe { launch.run("forward", grid) }?;
    Ok([o, lse])
}
