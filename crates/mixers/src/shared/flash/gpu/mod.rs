//! Softmax attention on a GPU, on tensor cores: q [B, T, Hq, D], k, v [B, S, Hkv, D] -> o [B, T, Hq, D] and lse
//! [B, Hq, T], as [`super`] defines them. Scores stay in registers, so memory grows with T + S.
//!
//! | kernels | dtype | for |
//! |---|---|---|
//! | `forward.cu`, `backward.cu` | bf16, sums and softmax in f32 | any T and S |
//! | `forward_hopper.cu`, `backward_hopper.cu` | the same, on compute capability 9.0 | D 64 and 128, all sequences at one place |
//! | `decode.cu` | bf16 | up to 8 queries without gradients |
//! | `decode_f32.cu` | f32 | the same |
//!
//! D is 64, 128 or 256, of values too. Arrays are read where the projections left them. Where all sequences stand at the
//! same place, which is every training step, nothing is sent to the GPU but the launch, and nothing is waited for.
//! Tiles of keys that a block's queries cannot see are skipped. Nothing is added up by atomics: equal inputs give
//! equal bits.

mod backward;
mod decode;
mod forward;
mod hopper;
mod op;
mod place;
#[cfg(test)]
mod tests;

use weft_tensor::cuda::{Source, Variant};
use weft_tensor::{DType, Tensor};

use super::Dims;

pub use backward::KERNELS as BACKWARD;
pub use decode::{KERNELS as DECODE, KERNELS_F32 as DECODE_F32};
pub use forward::KERNELS as FORWARD;
pub use hopper::{BACKWARD as BACKWARD_HOPPER, FORWARD as FORWARD_HOPPER};
pub use op::{attend, attend_few};
pub use place::{Place, Places};

/// Elements of a head that the kernels are compiled for.
pub const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// Most queries of a sequence that the kernels for few queries take.
pub const FEW_QUERIES: usize = 8;

/// Positions inside a call are 32-bit numbers.
const MOST_ROWS: usize = 1 << 29;

/// `THREADS` of the sources.
const THREADS: u32 = 128;

/// What runs on a GPU for `tokens` queries at a time, or why no kernel does, in a sentence.
pub fn plan(head_dim: usize, tokens: usize, training: bool) -> String {
    if !HEAD_DIMS.contains(&head_dim) {
        let sizes = HEAD_DIMS.map(|d| d.to_string()).join(", ");
        return format!(
            "whole matrices of scores, masked: heads of {head_dim}, the kernels are for {sizes}"
        );
    }
    match tokens <= FEW_QUERIES && !training {
        true => "the cache read once, its keys split over blocks; f64 as masked matrices of scores",
        false => {
            "bf16 in tiles on tensor cores, scores in registers; f32 and f64 as masked matrices of scores"
        }
    }
    .into()
}

/// Whether the kernels for few queries serve a call, as no gradient is asked for.
fn few(dims: &Dims, inputs: [&Tensor; 3]) -> bool {
    let tracked = inputs.iter().any(|x| x.is_tracked());
    dims.queries <= FEW_QUERIES && !(weft_tensor::grad_enabled() && tracked)
}

/// Whether a kernel here serves a call.
fn serves(dims: &Dims, inputs: [&Tensor; 3], scale: f64) -> bool {
    let dtype = inputs[0].dtype();
    let known = match dtype {
        DType::BF16 => true,
        DType::F32 => few(dims, inputs),
        _ => false,
    };
    known
        && inputs.iter().all(|x| x.dtype() == dtype)
        && HEAD_DIMS.contains(&dims.dim)
        && dims.dim == dims.value_dim
        && dims.queries.max(dims.keys) < MOST_ROWS
        && inputs.iter().all(|x| aligned(x))
        && scale > 0.0
}

/// Whether rows can be read 16 bytes at a time, of the tensor or of the copy that contiguous() would make.
fn aligned(x: &Tensor) -> bool {
    !x.is_contiguous() || (x.layout().offset * x.dtype().size()).is_multiple_of(16)
}

/// The variants of a source: each size of heads, keys as runs of positions or as slots.
fn variants(source: &'static Source, dtype: DType) -> Vec<Variant> {
    HEAD_DIMS
        .iter()
        .flat_map(|&d| [false, true].map(|slots| variant(source, dtype, d, slots)))
        .collect()
}

fn variant(source: &'static Source, dtype: DType, head_dim: usize, slots: bool) -> Variant {
    Variant::new(source, dtype)
        .constant("HEAD_DIM", head_dim as u32)
        .constant("SLOTS", u32::from(slots))
}

/// Shared memory for a number of rows of a head. A launch has to ask for more than 48 KiB, and what the kernels declare
/// beside it counts too: never less than that.
fn shared_rows(rows: usize, head_dim: usize) -> u32 {
    const ASKED_FOR: usize = (48 << 10) + 16;
    (rows * head_dim * size_of::<u16>()).max(ASKED_FOR) as u32
}
