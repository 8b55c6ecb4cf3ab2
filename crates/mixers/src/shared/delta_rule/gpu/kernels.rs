//! The kernels of the chunkwise rule and their launches: `prepare.cu`, `scalar.cu` and `scan.cu`, each behind what they
//! share, `tiles.cu`.

use weft_tensor::cuda::{Grid, Launch, Source, Variant};
use weft_tensor::{DType, Error, Result, Tensor};

use super::super::op::Operands;
use super::super::{CHUNK, Dims, L2_EPS};

/// Key channels that the kernels are compiled for.
const KEYS: [usize; 3] = [64, 128, 256];
/// Value columns of a block of `scan`; value heads are a multiple of it.
const COLUMNS: usize = 32;
/// Value columns that `prepare` takes at once.
const SLAB: usize = 64;
/// Floats for a chunk in `prepare_scalar`'s rows, `ROWS` of the source.
const ROWS: usize = 4 * CHUNK + 4;
/// Bytes of a [C, C] matrix: in bf16, and in f32 with rows 68 apart.
const SQUARE: usize = CHUNK * CHUNK * 2;
const MATRIX: usize = CHUNK * 68 * 4;

const _: () = assert!(
    CHUNK == 64 && L2_EPS == 1e-6,
    "the sources have them as numbers"
);

/// Everything a chunk needs before the scan, for gates of any width.
pub static PREPARE: Source = Source {
    name: "delta_rule_prepare",
    text: concat!(include_str!("tiles.cu"), include_str!("prepare.cu")),
    variants: |_| KEYS.map(|k| variant(&PREPARE, k)).into(),
};

/// The same for gates that are one number for each value head.
pub static SCALAR: Source = Source {
    name: "delta_rule_scalar",
    text: concat!(include_str!("tiles.cu"), include_str!("scalar.cu")),
    variants: |_| KEYS.map(|k| variant(&SCALAR, k)).into(),
};

/// The chain over chunks.
pub static SCAN: Source = Source {
    name: "delta_rule_scan",
    text: concat!(include_str!("tiles.cu"), include_str!("scan.cu")),
    variants: |_| {
        let each = KEYS.iter();
        each.flat_map(|&k| [false, true].map(|scalar| scan_variant(k, scalar)))
            .collect()
    },
};

fn variant(source: &'static Source, key_dim: usize) -> Variant {
    Variant::new(source, DType::BF16).constant("KD", key_dim as u32)
}

/// Chunks whose tiles are in shared memory at once.
fn ring(key_dim: usize, scalar: bool) -> usize {
    if key_dim > 128 && !scalar { 1 } else { 2 }
}

fn scan_variant(key_dim: usize, scalar: bool) -> Variant {
    variant(&SCAN, key_dim)
        .constant("SCALAR", scalar.into())
        .constant("COLUMNS", COLUMNS as u32)
        .constant("RING", ring(key_dim, scalar) as u32)
}

/// Bytes of a [C, KD] tile.
fn key_tile(key_dim: usize) -> usize {
    CHUNK * key_dim * 2
}

fn prepare_shared(key_dim: usize, erase_channels: bool) -> usize {
    let tiles = if erase_channels { 3 } else { 2 };
    CHUNK * (key_dim + 8) * 4 + tiles * key_tile(key_dim) + SQUARE + MATRIX
}

fn scalar_shared(key_dim: usize) -> usize {
    (2 * key_tile(key_dim)).max(MATRIX + SQUARE)
}

fn scan_shared(key_dim: usize, scalar: bool) -> usize {
    let (keys, values) = (key_tile(key_dim), CHUNK * COLUMNS * 2);
    let slot = match scalar {
        true => 2 * keys + values + 2 * SQUARE + 2048,
        false => 3 * keys + values + SQUARE + 1024,
    };
    // S and u in bf16, and what each half of the channels reads in f32, for 16 columns.
    let exchange = key_dim / 16 * 512 + CHUNK / 16 * 512 + 2 * 16 * CHUNK * 4;
    ring(key_dim, scalar) * slot + COLUMNS / 16 * exchange
}

/// Whether there are kernels for heads of this size, on a GPU whose blocks may have that many bytes of shared memory.
pub fn fits(key_dim: usize, value_dim: usize, shared_memory: u32) -> bool {
    // What a kernel declares itself comes on top.
    let most = prepare_shared(key_dim, true).max(scan_shared(key_dim, false)) + 4096;
    KEYS.contains(&key_dim) && value_dim.is_multiple_of(SLAB) && most <= shared_memory as usize
}

/// One call: its sizes, and where packed sequences begin.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// With B = 1 if sequences are packed.
    pub dims: Dims,
    /// First tokens of the sequences and the number of all tokens, i64 [sequences + 1].
    pub starts: Option<&'a Tensor>,
    /// Number of sequences, B unless they are packed.
    pub sequences: usize,
}

impl<'a> Call<'a> {
    /// Slots for chunks, of a sequence or of all packed ones: sequence i has those from starts[i] / C + i on.
    pub fn slots(&self) -> usize {
        match self.starts {
            Some(_) => self.dims.tokens / CHUNK + self.sequences,
            None => self.dims.tokens.div_ceil(CHUNK),
        }
    }

    /// [B, HV, slots] and then `rest`.
    pub fn tiles<const N: usize>(&self, rest: [usize; N]) -> Vec<usize> {
        let d = &self.dims;
        [d.batch, d.value_heads, self.slots()]
            .into_iter()
            .chain(rest)
            .collect()
    }

    /// Whether all counts fit the kernels' 32 bits.
    pub fn is_countable(&self) -> bool {
        let d = &self.dims;
        let tiles = self
            .tiles([d.value_dim / COLUMNS])
            .iter()
            .product::<usize>();
        tiles.max(self.sequences * d.value_heads * d.value_dim) < 1 << 31
            && d.tokens.max(d.width()) < 1 << 30
    }

    /// The last parameters of every kernel.
    fn finish(&self, launch: &mut Launch<'a>) -> Result<()> {
        match self.starts {
            Some(starts) => launch.input(starts, DType::I64)?,
            None => launch.u64(0),
        }
        let d = &self.dims;
        for n in [
            self.sequences,
            d.tokens,
            self.slots(),
            d.heads,
            d.value_heads,
            d.value_dim,
        ] {
            launch.u32(n as u32);
        }
        Ok(())
    }

    /// Chunks of all sequences.
    fn chunks(&self) -> u64 {
        (self.dims.batch * self.slots()) as u64
    }
}

/// What `prepare` makes of every chunk: tiles [B, HV, slots, C, ..] in bf16, zero behind a sequence's end.
pub struct Tiles {
    /// W = T (b k e^G)
    pub keys_w: Tensor,
    /// q e^G
    pub queries: Tensor,
    /// k e^(G_C - G)
    pub keys: Tensor,
    /// U = T (w v)
    pub values_u: Tensor,
    /// P
    pub reads: Tensor,
    /// T = (I + A)^-1
    pub inverse: Tensor,
    /// e^G_C [B, HV, slots, KD] in f32
    pub last: Tensor,
    /// 1 / |q| K^-1/2 and 1 / |k| [B, HV, slots, 2, C] in f32
    pub lengths: Tensor,
}

/// What `prepare_scalar` makes of every chunk.
pub struct Rows {
    /// T = (I + A)^-1
    pub inverse: Tensor,
    /// P
    pub reads: Tensor,
    /// A factor for each row of what the scan multiplies.
    pub rows: Tensor,
}

/// What a scan reads.
pub enum Prepared {
    /// Gates of any width.
    Tiles(Tiles),
    /// One number for each value head.
    Rows(Rows),
}

/// Outputs of the scan.
pub struct Scanned {
    /// [B, T, HV, V] in bf16
    pub o: Tensor,
    /// [sequences, HV, K, V] in f32
    pub state: Tensor,
    /// State before each chunk [B, HV, slots, K, V] and u [B, HV, slots, C, V], in bf16, if they were to be kept.
    pub kept: Option<[Tensor; 2]>,
}

/// Widths of gates, 1 or the channels.
pub(super) fn width(gate: &Tensor) -> Result<usize> {
    if gate.rank() == 4 { gate.dim(3) } else { Ok(1) }
}

/// Whether decay, erase and write gate are one number for each value head.
pub fn is_scalar(x: &Operands) -> bool {
    let gates = [x.decay.as_ref(), Some(&x.erase), Some(&x.write)];
    gates.into_iter().flatten().all(|g| g.rank() == 3)
}

/// An operand that is read 16 bytes at a time.
pub(super) fn aligned<'a>(launch: &mut Launch<'a>, x: &'a Tensor, dtype: DType) -> Result<u64> {
    let address = launch.address(x, dtype)?;
    if address.is_multiple_of(16) {
        return Ok(address);
    }
    Err(Error::Custom(format!(
        "delta_rule: an operand of shape {:?} begins {} bytes behind a multiple of 16: copy it before",
        x.shape(),
        address % 16
    )))
}

/// Address, heads and width of a gate.
fn gate<'a>(launch: &mut Launch<'a>, gate: Option<&'a Tensor>) -> Result<()> {
    let words = match gate {
        Some(g) => {
            let address = match width(g)? {
                1 => launch.address(g, DType::F32)?,
                _ => aligned(launch, g, DType::F32)?,
            };
            [address, g.dim(2)? as u64, width(g)? as u64]
        }
        None => [0, 1, 1],
    };
    launch.words(&words);
    Ok(())
}

/// Everything that the scan needs of each chunk, for gates of any width; backward wants the same.
pub fn prepare(x: &Operands, call: &Call) -> Result<Tiles> {
    let d = call.dims;
    let mut launch = Launch::new("delta_rule", variant(&PREPARE, d.key_dim), x.qkv.device())?;
    let mut tile = |width: usize| launch.output(&call.tiles([CHUNK, width]), DType::BF16);
    let tiles = Tiles {
        keys_w: tile(d.key_dim)?,
        queries: tile(d.key_dim)?,
        keys: tile(d.key_dim)?,
        values_u: tile(d.value_dim)?,
        reads: tile(CHUNK)?,
        inverse: tile(CHUNK)?,
        last: launch.output(&call.tiles([d.key_dim]), DType::F32)?,
        lengths: launch.output(&call.tiles([2, CHUNK]), DType::F32)?,
    };
    let qkv = aligned(&mut launch, &x.qkv, DType::BF16)?;
    launch.u64(qkv);
    gate(&mut launch, x.decay.as_ref())?;
    gate(&mut launch, Some(&x.erase))?;
    gate(&mut launch, Some(&x.write))?;
    call.finish(&mut launch)?;
    let grid = Grid {
        shared: prepare_shared(d.key_dim, width(&x.erase)? > 1) as u32,
        ..Grid::blocks(call.chunks() * d.value_heads as u64, 256)
    };
    // SAFETY: the parameters of `prepare`; the operands' shapes were checked against `dims`, outputs have a tile for
    // every slot, and positions taken from `starts` are held inside the tokens.
    unsafe { launch.run("prepare", grid) }?;
    Ok(tiles)
}

/// The same for gates that are one number for each value head.
pub fn prepare_scalar(x: &Operands, call: &Call) -> Result<Rows> {
    let d = call.dims;
    let mut launch = Launch::new("delta_rule", variant(&SCALAR, d.key_dim), x.qkv.device())?;
    let rows = Rows {
        inverse: launch.output(&call.tiles([CHUNK, CHUNK]), DType::BF16)?,
        reads: launch.output(&call.tiles([CHUNK, CHUNK]), DType::BF16)?,
        rows: launch.output(&call.tiles([ROWS]), DType::F32)?,
    };
    let qkv = aligned(&mut launch, &x.qkv, DType::BF16)?;
    launch.u64(qkv);
    match &x.decay {
        Some(decay) => launch.input(decay, DType::F32)?,
        None => launch.u64(0),
    }
    launch.input(&x.erase, DType::F32)?;
    launch.input(&x.write, DType::F32)?;
    call.finish(&mut launch)?;
    let grid = Grid {
        shared: scalar_shared(d.key_dim) as u32,
        ..Grid::blocks(call.chunks() * d.heads as u64, 128)
    };
    // SAFETY: the parameters of `prepare_scalar`; sizes as in `prepare`.
    unsafe { launch.run("prepare_scalar", grid) }?;
    Ok(rows)
}

/// The chain over chunks from the initial state; `keep` what backward needs of it.
pub fn scan(x: &Operands, call: &Call, prepared: &Prepared, keep: bool) -> Result<Scanned> {
    let d = call.dims;
    let scalar = matches!(prepared, Prepared::Rows(_));
    let mut launch = Launch::new(
        "delta_rule",
        scan_variant(d.key_dim, scalar),
        x.qkv.device(),
    )?;
    let o = launch.output(
        &[d.batch, d.tokens, d.value_heads, d.value_dim],
        DType::BF16,
    )?;
    let state = launch.output(x.state.shape(), DType::F32)?;
    let kept = match keep {
        true => Some([
            launch.output(&call.tiles([d.key_dim, d.value_dim]), DType::BF16)?,
            launch.output(&call.tiles([CHUNK, d.value_dim]), DType::BF16)?,
        ]),
        false => {
            launch.u64(0);
            launch.u64(0);
            None
        }
    };
    launch.input(&x.state, DType::F32)?;
    match prepared {
        Prepared::Tiles(p) => {
            for tile in [&p.queries, &p.keys, &p.values_u, &p.keys_w] {
                launch.input(tile, DType::BF16)?;
            }
            launch.u64(0);
            launch.input(&p.reads, DType::BF16)?;
            launch.input(&p.last, DType::F32)?;
        }
        Prepared::Rows(p) => {
            let qkv = aligned(&mut launch, &x.qkv, DType::BF16)?;
            for address in [qkv, 0, 0, 0] {
                launch.u64(address);
            }
            launch.input(&p.inverse, DType::BF16)?;
            launch.input(&p.reads, DType::BF16)?;
            launch.input(&p.rows, DType::F32)?;
        }
    }
    call.finish(&mut launch)?;
    let blocks = call.sequences * d.value_heads * d.value_dim / COLUMNS;
    let warps = 3 * COLUMNS / 16 + 2;
    let grid = Grid {
        shared: scan_shared(d.key_dim, scalar) as u32,
        ..Grid::blocks(blocks as u64, 32 * warps as u32)
    };
    // SAFETY: the parameters of `scan`; sizes as in `prepare`, and the state's shape was checked against `dims`.
    unsafe { launch.run("scan", grid) }?;
    Ok(Scanned { o, state, kept })
}
