//! Launching `backward.cu`.

use weft_tensor::cuda::{Grid, Launch, Source};
use weft_tensor::{DType, Result, Tensor};

use super::super::Dims;
use super::{Places, THREADS, hopper, shared_rows, variant, variants};

/// Statistics of a head are padded to a multiple of so many queries.
const STATISTICS_ROWS: usize = 128;

/// The backward kernels.
pub static KERNELS: Source = Source {
    name: "flash_backward",
    text: concat!(
        include_str!("tile.cu"),
        include_str!("statistics.cu"),
        include_str!("backward.cu")
    ),
    variants: |s| variants(s, DType::BF16),
};

/// What a backward pass is given; all contiguous.
pub struct Pass<'a> {
    /// Sizes.
    pub dims: &'a Dims,
    /// q, k and v.
    pub inputs: [&'a Tensor; 3],
    /// Of the forward pass.
    pub out: &'a Tensor,
    /// Of the forward pass.
    pub lse: &'a Tensor,
    /// Gradient of the output.
    pub dout: &'a Tensor,
    /// Gradient of the log-sum-exp, if it has one.
    pub dlse: Option<&'a Tensor>,
    /// Where queries and keys stand.
    pub places: &'a Places,
    /// Factor on the scores.
    pub scale: f64,
}

impl Pass<'_> {
    fn launch(&self) -> Result<Launch<'_>> {
        let variant = variant(&KERNELS, DType::BF16, self.dims.dim, self.places.slots);
        Launch::new("attention, back", variant, self.out.device())
    }

    /// dq, dk and dv.
    pub fn run(&self) -> Result<[Tensor; 3]> {
        let statistics = self.statistics()?;
        if let Some(seen) = hopper::keys_seen(self.dims, self.places, self.out.device()) {
            return hopper::backward(self, &statistics, seen);
        }
        let [dk, dv] = match self.dims.dim {
            256 => self.keys_one_by_one(&statistics)?,
            _ => self.keys(&statistics)?,
        };
        Ok([self.queries(&statistics)?, dk, dv])
    }

    /// For each head lse in base 2 and delta of its queries, padded to whole tiles [B, Hq, 2, T padded].
    fn statistics(&self) -> Result<Tensor> {
        let dims = self.dims;
        let mut launch = self.launch()?;
        let padded = dims.queries.next_multiple_of(STATISTICS_ROWS);
        let statistics = launch.output(&[dims.batch, dims.heads, 2, padded], DType::F32)?;
        launch.input(self.out, DType::BF16)?;
        launch.input(self.dout, DType::BF16)?;
        launch.input(self.lse, DType::F32)?;
        match self.dlse {
            Some(dlse) => launch.input(dlse, DType::F32)?,
            None => launch.u64(0),
        }
        launch.words(&self.places.call(dims, 1, &launch)?);
        let threads = dims.batch * padded * dims.heads * dims.dim / 8;
        let grid = Grid::blocks((threads as u64).div_ceil(THREADS.into()), THREADS);
        // SAFETY: the parameters of `statistics`; it reads the rows that `dims` count and writes the padded ones.
        unsafe { launch.run("statistics", grid) }?;
        Ok(statistics)
    }

    /// What the kernels have in common after their outputs.
    fn common<'a>(
        &'a self,
        launch: &mut Launch<'a>,
        statistics: &'a Tensor,
        blocks_per_key_head: usize,
    ) -> Result<()> {
        for x in self.inputs.into_iter().chain([self.dout]) {
            launch.input(x, DType::BF16)?;
        }
        self.rest(launch, statistics, blocks_per_key_head)
    }

    /// What all kernels have at the end of their parameters.
    pub fn rest<'a>(
        &'a self,
        launch: &mut Launch<'a>,
        statistics: &'a Tensor,
        blocks_per_key_head: usize,
    ) -> Result<()> {
        launch.input(statistics, DType::F32)?;
        launch.words(&self.places.call(self.dims, blocks_per_key_head, launch)?);
        launch.f32(self.scale as f32);
        Ok(())
    }

    /// Keys of a block, `BN` of the source, by the rows of the tiles that it holds.
    fn key_grid(&self) -> Grid {
        let dims = self.dims;
        let rows = if dims.dim == 256 { 64 } else { 256 };
        let blocks = dims.batch * dims.kv_heads * dims.keys.div_ceil(64);
        Grid {
            shared: shared_rows(2 * 64 + rows, dims.dim),
            ..Grid::blocks(blocks as u64, THREADS)
        }
    }

    fn keys(&self, statistics: &Tensor) -> Result<[Tensor; 2]> {
        let mut launch = self.launch()?;
        let [_, k, v] = self.inputs;
        let dk = launch.output(k.shape(), DType::BF16)?;
        let dv = launch.output(v.shape(), DType::BF16)?;
        self.common(&mut launch, statistics, 1)?;
        // SAFETY: the parameters of `key_value_gradients`, over rows that `dims` count.
        unsafe { launch.run("key_value_gradients", self.key_grid()) }?;
        Ok([dk, dv])
    }

    fn keys_one_by_one(&self, statistics: &Tensor) -> Result<[Tensor; 2]> {
        let [_, k, v] = self.inputs;
        let mut launch = self.launch()?;
        launch.u64(0);
        let dv = launch.output(v.shape(), DType::BF16)?;
        self.common(&mut launch, statistics, 1)?;
        // SAFETY: the parameters of `value_gradients_only`, which writes dv alone.
        unsafe { launch.run("value_gradients_only", self.key_grid()) }?;
        let mut launch = self.launch()?;
        let dk = launch.output(k.shape(), DType::BF16)?;
        launch.u64(0);
        self.common(&mut launch, statistics, 1)?;
        // SAFETY: the parameters of `key_gradients_only`, which writes dk alone.
        unsafe { launch.run("key_gradients_only", self.key_grid()) }?;
        Ok([dk, dv])
    }

    fn queries(&self, statistics: &Tensor) -> Result<Tensor> {
        let dims = self.dims;
        // Rows of q and do, and of the tiles of k and v: `BM`, `BK` and `STAGES` of the source.
        let (queries, keys) = match dims.dim {
            64 => (128, 2 * 64),
            128 => (128, 2 * 32),
            _ => (64, 32),
        };
        let mut launch = self.launch()?;
        let dq = launch.output(self.inputs[0].shape(), DType::BF16)?;
        self.common(&mut launch, statistics, dims.group())?;
        let blocks = dims.batch * dims.heads * dims.queries.div_ceil(queries);
        let grid = Grid {
            shared: shared_rows(2 * (queries + keys), dims.dim),
            ..Grid::blocks(blocks as u64, THREADS)
        };
        // SAFETY: the parameters of `query_gradients`, over rows that `dims` count.
        unsafe { launch.run("query_gradients", grid) }?;
        Ok(dq)
    }
}
