//! Splitting work over the cores. Pieces are cut by size alone, never by the number of threads, so results
//! do not depend on the machine's cores.

use rayon::prelude::*;

/// Elements of cheap work that pay for waking another core (measured: about 10 microseconds).
pub const GRAIN: usize = 32 * 1024;

/// Run `f` on one of the pool's threads. A parallel loop that starts outside the pool hands its work over and waits
/// to be woken, twice a context switch; a decoded token has hundreds of such loops (measured: 0.9 ms of 6).
/// Scopes like [`crate::no_grad`] belong to a thread: open them inside `f`.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// Call `f(start, piece)` for pieces of `out`, in parallel if there is enough work.
pub fn for_pieces<T: Send>(out: &mut [T], grain: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let grain = grain.max(1);
    if out.len() <= grain {
        f(0, out);
    } else {
        out.par_chunks_mut(grain)
            .enumerate()
            .for_each(|(i, piece)| f(i * grain, piece));
    }
}

/// Call `f(row, out_row)` for the rows of `out` (each of `width` elements), in parallel if `cost` (elements
/// of work per row) times the rows is large.
pub fn for_rows<T: Send>(
    out: &mut [T],
    width: usize,
    cost: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if width == 0 {
        return;
    }
    let rows_per_piece = (GRAIN / cost.max(1)).max(1);
    for_pieces(out, rows_per_piece * width, |start, piece| {
        for (i, row) in piece.chunks_exact_mut(width).enumerate() {
            f(start / width + i, row);
        }
    });
}
