//! Where queries and keys stand, as the kernels are told.

use weft_tensor::cuda::Launch;
use weft_tensor::{DType, Device, Result, Tensor};

use super::super::Dims;
use super::super::op::{KeyPositions, Visibility};

/// Keys and values that are worked on at a time, in bytes: a good part of a large GPU's L2.
const L2_SHARE: usize = 16 << 20;

/// Numbers of sequences.
#[derive(Clone, Debug)]
pub enum Place {
    /// The same for all.
    Same(i64),
    /// One for each, in memory of the GPU: I64.
    Each(Tensor),
}

impl Place {
    fn of(starts: &[i64], device: &Device) -> Result<Place> {
        match starts {
            [first, rest @ ..] if rest.iter().all(|s| s == first) => Ok(Place::Same(*first)),
            all => Ok(Place::Each(Tensor::from_slice(all, &[all.len()], device)?)),
        }
    }

    fn same(&self) -> u64 {
        match self {
            Place::Same(at) => *at as u64,
            Place::Each(_) => 0,
        }
    }

    fn list<'a>(&'a self, launch: &Launch<'a>) -> Result<u64> {
        match self {
            Place::Same(_) => Ok(0),
            Place::Each(list) => launch.address(list, DType::I64),
        }
    }
}

/// [`Visibility`] on a GPU.
#[derive(Clone, Debug)]
pub struct Places {
    /// Position of the first query [B].
    pub query_start: Place,
    /// Position of the first key [B], or with `slots` of all keys [B, S].
    pub keys: Place,
    /// Whether keys are in any order, -1 marking empty slots.
    pub slots: bool,
    /// As in [`Visibility`].
    pub window: Option<i64>,
    /// As in [`Visibility`].
    pub sinks: i64,
}

impl Places {
    /// One query for each sequence, at the clock [B], over keys from position 0 on.
    pub fn at(clock: &Tensor) -> Places {
        Places {
            query_start: Place::Each(clock.clone()),
            keys: Place::Same(0),
            slots: false,
            window: None,
            sinks: 0,
        }
    }

    /// Sends lists of positions to the GPU, where sequences differ or keys are slots.
    pub fn of(sees: &Visibility, device: &Device) -> Result<Places> {
        let (keys, slots) = match &sees.keys {
            KeyPositions::Range(starts) => (Place::of(starts, device)?, false),
            KeyPositions::Slots(all) => {
                let list = Tensor::from_slice(all, &[all.len()], device)?;
                (Place::Each(list), true)
            }
        };
        Ok(Places {
            query_start: Place::of(&sees.query_start, device)?,
            keys,
            slots,
            window: sees.window,
            sinks: sees.sinks,
        })
    }

    /// `Call` of the sources, for a kernel that has `blocks_per_key_head` heads to a key head.
    pub(super) fn call<'a>(
        &'a self,
        dims: &Dims,
        blocks_per_key_head: usize,
        launch: &Launch<'a>,
    ) -> Result<[u64; 12]> {
        let bytes = 2 * dims.keys.max(dims.queries) * dims.dim * size_of::<u16>();
        let together = (L2_SHARE / bytes.max(1)).max(1) * blocks_per_key_head;
        Ok([
            dims.batch as u64,
            dims.queries as u64,
            dims.keys as u64,
            dims.heads as u64,
            dims.kv_heads as u64,
            self.query_start.same(),
            self.keys.same(),
            self.query_start.list(launch)?,
            self.keys.list(launch)?,
            self.window.unwrap_or(i64::MAX) as u64,
            self.sinks as u64,
            together as u64,
        ])
    }
}
