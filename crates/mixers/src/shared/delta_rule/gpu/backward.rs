//! Gradients of the chunkwise rule on tensor cores: `scan_back.cu` takes the gradient of the state through the chunks
//! from the last to the first; then, all chunks at once, `chunk_values.cu` the value side and `chunk_keys.cu` (a decay
//! for each channel) or `chunk_keys_scalar.cu` (one for all, or none) the key side. Products in bf16 with f32 sums;
//! gates, their sums and the carried gradient in f32. Nothing is added atomically: the value heads of a key head, and
//! the panels of channels that share one number, are summed in order.

use weft_tensor::cuda::{Grid, Launch, Source, Variant};
use weft_tensor::{DType, Result, Tensor};

use super::super::op::Operands;
use super::super::{CHUNK, Dims};
use super::kernels::{Tiles, aligned, width};

/// Key and value channels of a head that the kernels are compiled for.
const CHANNELS: [usize; 3] = [64, 128, 256];
/// `THREADS` of the sources.
const THREADS: u32 = 256;
/// Value columns of a block of the scan.
const COLUMNS: usize = 32;
/// Channels of a panel, and the bytes of one with 64 rows.
const PANEL: usize = 64;
const PANEL_BYTES: usize = 64 * PANEL * 2;

/// The chain over chunks.
pub static SCAN: Source = Source {
    name: "delta_rule_scan_back",
    text: concat!(include_str!("panels.cu"), include_str!("scan_back.cu")),
    variants: |_| CHANNELS.iter().map(|&k| scan_variant(k)).collect(),
};

/// The value side of chunks, and the norms of q and k.
pub static VALUES: Source = Source {
    name: "delta_rule_chunk_values",
    text: concat!(include_str!("panels.cu"), include_str!("chunk_values.cu")),
    variants: of_all_heads,
};

/// The key side where channels decay each for itself.
pub static KEYS: Source = Source {
    name: "delta_rule_chunk_keys",
    text: concat!(include_str!("panels.cu"), include_str!("chunk_keys.cu")),
    variants: of_all_heads,
};

/// The key side where all channels decay alike.
pub static SCALAR_KEYS: Source = Source {
    name: "delta_rule_chunk_keys_scalar",
    text: concat!(
        include_str!("panels.cu"),
        include_str!("chunk_keys_scalar.cu")
    ),
    variants: of_all_heads,
};

fn of_all_heads(source: &'static Source) -> Vec<Variant> {
    CHANNELS
        .iter()
        .flat_map(|&k| CHANNELS.map(|v| variant(source, k, v)))
        .collect()
}

/// Chunks whose tiles a block of the scan keeps at once: as many as fit.
fn stages(key_dim: usize) -> usize {
    if key_dim <= 128 { 2 } else { 1 }
}

fn scan_variant(key_dim: usize) -> Variant {
    Variant::new(&SCAN, DType::BF16)
        .constant("KD", key_dim as u32)
        .constant("COLUMNS", COLUMNS as u32)
        .constant("STAGES", stages(key_dim) as u32)
}

fn variant(source: &'static Source, key_dim: usize, value_dim: usize) -> Variant {
    Variant::new(source, DType::BF16)
        .constant("KD", key_dim as u32)
        .constant("VD", value_dim as u32)
}

/// Bytes of a chunk's tiles in the scan, and of all of it.
fn scan_shared(key_dim: usize) -> usize {
    let stage = 3 * CHUNK * key_dim * 2 + PANEL_BYTES + CHUNK * COLUMNS * 2 + key_dim * 4;
    stages(key_dim) * stage + (key_dim + CHUNK) * COLUMNS * 2
}

fn values_shared(value_dim: usize) -> usize {
    let slot = (value_dim / PANEL + 1).max(3);
    (3 + value_dim / PANEL + 2 * slot) * PANEL_BYTES
}

const KEYS_SHARED: usize = 13 * PANEL_BYTES;

/// Whether there are kernels for heads of this size, on a GPU whose blocks may have that many bytes of shared memory.
pub fn fits(key_dim: usize, value_dim: usize, shared_memory: u32) -> bool {
    // What a kernel declares itself comes on top.
    let most = scan_shared(key_dim)
        .max(values_shared(value_dim))
        .max(KEYS_SHARED)
        + 4096;
    CHANNELS.contains(&key_dim) && CHANNELS.contains(&value_dim) && most <= shared_memory as usize
}

/// What is known of each chunk.
pub struct Chunks<'a> {
    pub tiles: &'a Tiles,
    /// S before each chunk [B, HV, N, K, V] in bf16.
    pub before: &'a Tensor,
    /// u = U - W S [B, HV, N, 64, V] in bf16.
    pub added: &'a Tensor,
}

/// Gradients of qkv (bf16), decay, erase, write and the initial state (f32), in the order of [`Operands::list`]; from
/// those of the outputs [B, T, HV, V] (bf16) and of the final state (f32, zero if absent). Everything is contiguous,
/// qkv in bf16, gates in f32.
pub fn backward(
    x: &Operands,
    dims: Dims,
    chunks: &Chunks,
    d_o: &Tensor,
    d_state: Option<&Tensor>,
) -> Result<Vec<Tensor>> {
    let (d_added, d_states, d_first) = scan(dims, chunks.tiles, d_o, d_state)?;
    let values = chunk_values(x, dims, chunks, &d_added, d_o)?;
    let keys = chunk_keys(x, dims, chunks, &values, &d_states, d_o)?;
    let decay = x.decay.as_ref().zip(keys.decay);
    let decay = decay.map(|(gate, d)| total(gate, dims, &d)).transpose()?;
    let erase = total(&x.erase, dims, &keys.erase)?;
    let qkv = norms(x, dims, values.qkv, &keys.q, &keys.k)?;
    Ok([qkv]
        .into_iter()
        .chain(decay)
        .chain([erase, values.write, d_first])
        .collect())
}

/// Shapes of a chunk's tiles: [B, HV, N, rows, columns].
fn tiled(dims: Dims, rows: usize, columns: usize) -> [usize; 5] {
    let chunks = dims.tokens.div_ceil(CHUNK);
    [dims.batch, dims.value_heads, chunks, rows, columns]
}

fn grid(blocks: usize, shared: usize) -> Grid {
    Grid {
        shared: shared as u32,
        ..Grid::blocks(blocks as u64, THREADS)
    }
}

/// Gradients of the added values, of the state behind each chunk, and of the initial state.
fn scan(
    dims: Dims,
    tiles: &Tiles,
    d_o: &Tensor,
    d_state: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (k, v) = (dims.key_dim, dims.value_dim);
    let mut launch = Launch::new("delta_rule", scan_variant(k), d_o.device())?;
    let d_added = launch.output(&tiled(dims, CHUNK, v), DType::BF16)?;
    let d_states = launch.output(&tiled(dims, k, v), DType::BF16)?;
    let d_first = launch.output(&[dims.batch, dims.value_heads, k, v], DType::F32)?;
    for tile in [&tiles.queries, &tiles.keys, &tiles.keys_w, &tiles.reads] {
        launch.input(tile, DType::BF16)?;
    }
    launch.input(&tiles.last, DType::F32)?;
    let d_o = aligned(&mut launch, d_o, DType::BF16)?;
    launch.u64(d_o);
    let d_state = d_state.map_or(Ok(0), |d| aligned(&mut launch, d, DType::F32))?;
    launch.u64(d_state);
    let sequences = dims.batch * dims.value_heads;
    let chunks = dims.tokens.div_ceil(CHUNK);
    for n in [sequences, chunks, dims.tokens, dims.value_heads, v] {
        launch.u64(n as u64);
    }
    // SAFETY: the parameters of `scan_back`; tiles and outputs have the shapes that `dims` says, which were checked
    // against every operand, and rows are a whole number of 16-byte pieces.
    unsafe { launch.run("scan_back", grid(sequences * v / COLUMNS, scan_shared(k))) }?;
    Ok((d_added, d_states, d_first))
}

/// What the columns of values give.
struct ValueGradients {
    /// The columns of v are written, those of q and k not yet.
    qkv: Tensor,
    write: Tensor,
    /// Of e^G (b k) [.., 64, K].
    reads: Tensor,
    /// Of P and A [.., 64, 64].
    pairs: Tensor,
    solve: Tensor,
}

fn chunk_values(
    x: &Operands,
    dims: Dims,
    chunks: &Chunks,
    d_added: &Tensor,
    d_o: &Tensor,
) -> Result<ValueGradients> {
    let (k, v, tiles) = (dims.key_dim, dims.value_dim, chunks.tiles);
    let mut launch = Launch::new("delta_rule", variant(&VALUES, k, v), d_o.device())?;
    let square = tiled(dims, CHUNK, CHUNK);
    let d = ValueGradients {
        qkv: launch.output(x.qkv.shape(), DType::BF16)?,
        write: launch.output(x.write.shape(), DType::F32)?,
        reads: launch.output(&tiled(dims, CHUNK, k), DType::BF16)?,
        pairs: launch.output(&square, DType::BF16)?,
        solve: launch.output(&square, DType::BF16)?,
    };
    for tile in [&tiles.inverse, &tiles.values_u, chunks.added, &tiles.keys_w] {
        launch.input(tile, DType::BF16)?;
    }
    for tile in [d_added, chunks.before, d_o, &x.qkv] {
        launch.input(tile, DType::BF16)?;
    }
    launch.input(&x.write, DType::F32)?;
    launch.u64(width(&x.write)? as u64);
    let count = sizes(&mut launch, dims);
    // SAFETY: the parameters of `chunk_values`, shapes as in `scan`.
    unsafe { launch.run("chunk_values", grid(count, values_shared(v))) }?;
    Ok(d)
}

/// The number of tiles, after it and the other sizes were handed over.
fn sizes(launch: &mut Launch, dims: Dims) -> usize {
    let chunks = dims.tokens.div_ceil(CHUNK);
    let tiles = dims.batch * dims.value_heads * chunks;
    for n in [tiles, chunks, dims.tokens, dims.heads, dims.value_heads] {
        launch.u64(n as u64);
    }
    tiles
}

/// What the key channels give, for each value head: of unit q and k [B, T, HV, K] in bf16; of gates [B, T, HV, K], or
/// one number for each panel of channels [B, T, HV, K / 64].
struct KeyGradients {
    q: Tensor,
    k: Tensor,
    decay: Option<Tensor>,
    erase: Tensor,
}

fn chunk_keys(
    x: &Operands,
    dims: Dims,
    chunks: &Chunks,
    values: &ValueGradients,
    d_states: &Tensor,
    d_o: &Tensor,
) -> Result<KeyGradients> {
    let (k, v) = (dims.key_dim, dims.value_dim);
    let panels = k / PANEL;
    let per_channel = x.decay.as_ref().filter(|g| g.rank() == 4);
    let source = if per_channel.is_some() {
        &KEYS
    } else {
        &SCALAR_KEYS
    };
    let mut launch = Launch::new("delta_rule", variant(source, k, v), d_o.device())?;
    let rows = |width| [dims.batch, dims.tokens, dims.value_heads, width];
    let gate = |launch: &mut Launch, gate: &Tensor| {
        let width = if gate.rank() == 4 { k } else { panels };
        launch.output(&rows(width), DType::F32)
    };
    let q = launch.output(&rows(k), DType::BF16)?;
    let key = launch.output(&rows(k), DType::BF16)?;
    let decay = match &x.decay {
        Some(g) => Some(gate(&mut launch, g)?),
        None => {
            launch.u64(0);
            None
        }
    };
    let erase = gate(&mut launch, &x.erase)?;
    launch.input(&chunks.tiles.lengths, DType::F32)?;
    for tile in [&values.reads, &values.pairs, &values.solve, chunks.added] {
        launch.input(tile, DType::BF16)?;
    }
    for tile in [chunks.before, d_states, d_o, &x.qkv] {
        launch.input(tile, DType::BF16)?;
    }
    match &x.decay {
        Some(g) => launch.input(g, DType::F32)?,
        None => launch.u64(0),
    }
    if let Some(g) = per_channel {
        launch.u64(g.dim(2)? as u64);
    }
    launch.input(&x.erase, DType::F32)?;
    launch.u64(x.erase.dim(2)? as u64);
    launch.u64(width(&x.erase)? as u64);
    let count = sizes(&mut launch, dims);
    // SAFETY: the parameters of `chunk_keys`, shapes as in `scan`.
    unsafe { launch.run("chunk_keys", grid(count * panels, KEYS_SHARED)) }?;
    Ok(KeyGradients {
        q,
        k: key,
        decay,
        erase,
    })
}

/// The gradient of a gate from what [`chunk_keys`] left of it: over panels, or over the value heads of a key head.
fn total(gate: &Tensor, dims: Dims, parts: &Tensor) -> Result<Tensor> {
    if gate.rank() == 3 {
        return parts.sum(&[-1], false);
    }
    if gate.dim(2)? == dims.value_heads {
        return Ok(parts.clone());
    }
    let [b, t, h, width] = gate.dims()?;
    parts
        .reshape(&[b, t, h, dims.repeat(), width])?
        .sum(&[3], false)
}

/// Back through the norms of q and k, into the columns of `d_qkv` that are still to be written.
fn norms(x: &Operands, dims: Dims, mut d_qkv: Tensor, q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let variant = variant(&VALUES, dims.key_dim, dims.value_dim);
    let mut launch = Launch::new("delta_rule", variant, d_qkv.device())?;
    launch.in_place(&mut d_qkv, DType::BF16)?;
    for part in [q, k, &x.qkv] {
        launch.input(part, DType::BF16)?;
    }
    let positions = dims.batch * dims.tokens;
    for n in [positions, dims.heads, dims.value_heads] {
        launch.u64(n as u64);
    }
    let rows = THREADS as usize / (dims.key_dim / 8);
    let blocks = (positions * dims.heads * 2).div_ceil(rows);
    // SAFETY: the parameters of `chunk_norms`, shapes as in `scan`.
    unsafe { launch.run("chunk_norms", grid(blocks, 0)) }?;
    Ok(d_qkv)
}
