//! Who sees whom: one rule on absolute positions, and what it says about a whole tile.

use std::ops::Range;

use super::TILE;
use super::block::{BLOCK, LANES, Lane};
use weft_tensor::Real;

/// The positions of the keys.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// Key s of sequence b is at position `start[b] + s` [B]. Keys past the end of a left-aligned row need
    /// no mark: their positions are later than any query's.
    Range(&'a [i64]),
    /// Key s of sequence b is at position `slots[b * S + s]` [B, S], in any order; -1 marks an empty slot.
    Slots(&'a [i64]),
}

/// Query t of sequence b is at position qp = `query_start[b] + t` and sees the key at position kp if
/// `0 <= kp <= qp` and, with a window, `qp - kp < window` or `kp < sinks`.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// Position of the first query of each sequence [B]; negative positions (left padding) see nothing.
    pub query_start: &'a [i64],
    /// Positions of the keys.
    pub keys: Keys<'a>,
    /// How many positions back a query sees, itself included; `None` for all.
    pub window: Option<i64>,
    /// The first `sinks` positions stay visible outside the window.
    pub sinks: i64,
}

/// The positions that the 16 lanes of a panel stand for.
pub(super) struct LanePositions {
    first: i64,
    last: i64,
    /// Position of a lane after the first, -1 for a lane without a query.
    offset: [i32; LANES],
}

impl LanePositions {
    /// Lanes `from..to` of a sequence whose queries start at `start`, with `group` lanes to a position.
    #[inline(always)]
    pub(super) fn new(start: i64, group: usize, lanes: Range<usize>) -> LanePositions {
        let at = |lane: usize| start.saturating_add((lane / group) as i64);
        let (first, last) = (at(lanes.start), at(lanes.end - 1));
        let mut offset = [-1; LANES];
        for (lane, offset) in lanes.zip(&mut offset) {
            *offset = (at(lane) - first) as i32;
        }
        LanePositions {
            first,
            last,
            offset,
        }
    }
}

/// Smallest and largest position in a tile, and whether it has empty slots.
#[derive(Clone, Copy)]
pub(super) struct Span {
    min: i64,
    max: i64,
    holes: bool,
}

/// What a panel of queries sees of a tile. Lives on the stack for the length of one tile.
#[allow(clippy::large_enum_variant)]
pub(super) enum Cover {
    /// Nothing.
    Hidden,
    /// All keys, from all its queries.
    Full,
    /// These keys (whole blocks), and of them the lanes from `.0` to before `.1` of each key's entry.
    Partial(Range<usize>, [(i32, i32); TILE]),
}

impl Mask<'_> {
    /// # Panics
    /// If the arrays do not have one entry per sequence (and slot).
    pub(super) fn check(&self, batch: usize, keys: usize) {
        let (len, expected) = match self.keys {
            Keys::Range(start) => (start.len(), batch),
            Keys::Slots(slots) => (slots.len(), batch * keys),
        };
        assert!(
            len == expected && self.query_start.len() == batch,
            "flash: {} query and {len} key positions for {batch} sequences of {keys} keys",
            self.query_start.len()
        );
    }

    /// Whether a query at `query` sees a key at `key`.
    #[inline(always)]
    pub(super) fn visible(&self, query: i64, key: i64) -> bool {
        let near = match self.window {
            Some(window) => query.saturating_sub(key) < window || key < self.sinks,
            None => true,
        };
        0 <= key && key <= query && near
    }

    /// Position of key s of sequence b among S keys.
    #[inline(always)]
    pub(super) fn key(&self, b: usize, s: usize, keys: usize) -> i64 {
        match self.keys {
            Keys::Range(start) => start[b].saturating_add(s as i64),
            Keys::Slots(slots) => slots[b * keys + s],
        }
    }

    /// What is in the tile of the given keys.
    #[inline(always)]
    pub(super) fn span(&self, b: usize, tile: Range<usize>, keys: usize) -> Span {
        match self.keys {
            Keys::Range(_) => {
                let (min, max) = (
                    self.key(b, tile.start, keys),
                    self.key(b, tile.end - 1, keys),
                );
                Span {
                    min: min.max(0),
                    max,
                    holes: min < 0,
                }
            }
            Keys::Slots(slots) => {
                let mut span = Span {
                    min: i64::MAX,
                    max: -1,
                    holes: false,
                };
                for &at in &slots[b * keys..][tile] {
                    span.min = span.min.min(if at < 0 { i64::MAX } else { at });
                    span.max = span.max.max(at);
                    span.holes |= at < 0;
                }
                span
            }
        }
    }

    /// Whether no lane can see a key of the span.
    #[inline(always)]
    pub(super) fn hides(&self, span: Span, lanes: &LanePositions) -> bool {
        let past = match self.window {
            Some(window) => {
                lanes.first.saturating_sub(span.max) >= window && span.min >= self.sinks
            }
            None => false,
        };
        span.max < 0 || span.min > lanes.last || past
    }

    /// What the lanes see of a tile.
    #[inline(always)]
    pub(super) fn cover(
        &self,
        b: usize,
        tile: Range<usize>,
        keys: usize,
        span: Span,
        lanes: &LanePositions,
    ) -> Cover {
        if self.hides(span, lanes) {
            return Cover::Hidden;
        }
        let near = match self.window {
            Some(window) => lanes.last.saturating_sub(span.min) < window || span.max < self.sinks,
            None => true,
        };
        let whole = tile.len().is_multiple_of(BLOCK);
        if !span.holes && span.max <= lanes.first && near && whole {
            return Cover::Full;
        }
        let mut seen = [(0, 0); TILE];
        let (mut from, mut to) = (TILE, 0);
        for (i, s) in tile.enumerate() {
            seen[i] = self.lanes_that_see(self.key(b, s, keys), lanes);
            if seen[i].0 < seen[i].1 {
                from = from.min(i);
                to = i + 1;
            }
        }
        if from >= to {
            return Cover::Hidden;
        }
        Cover::Partial(from / BLOCK * BLOCK..to.next_multiple_of(BLOCK), seen)
    }

    /// The offsets [from, to) of the positions that see a key, among those of the lanes.
    #[inline(always)]
    fn lanes_that_see(&self, key: i64, lanes: &LanePositions) -> (i32, i32) {
        let end = lanes.last - lanes.first + 1;
        let clip = |position: i64| position.saturating_sub(lanes.first).clamp(0, end) as i32;
        if key < 0 {
            return (0, 0);
        }
        let to = match self.window {
            Some(window) if key >= self.sinks => clip(key.saturating_add(window)),
            _ => end as i32,
        };
        (clip(key), to)
    }
}

/// Set the scores (one row a key) of the lanes that do not see their key to -infinity.
#[inline(always)]
pub(super) fn hide<R: Real>(scores: &mut [Lane<R>], seen: &[(i32, i32)], lanes: &LanePositions) {
    for (row, &(from, to)) in scores.iter_mut().zip(seen) {
        for (x, &at) in row.iter_mut().zip(&lanes.offset) {
            *x = if from <= at && at < to {
                *x
            } else {
                R::NEG_INFINITY
            };
        }
    }
}
