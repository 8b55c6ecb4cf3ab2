//! Who sees whom: one rule on absolute positions, and what it says about a whole tile.

use std::ops::Range;

use super::TILE;
use super::block::{BLOCK, Lane};
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

/// The positions that the lanes of a panel stand for: `group` lanes to a position, in order.
pub(super) struct LanePositions {
    first: i64,
    last: i64,
    group: usize,
    /// Lanes of the first position that belong to the panel before.
    phase: usize,
    count: usize,
}

impl LanePositions {
    /// Lanes `from..to` of a sequence whose queries start at `start`.
    #[inline(always)]
    pub(super) fn new(start: i64, group: usize, lanes: Range<usize>) -> LanePositions {
        let at = |lane: usize| start.saturating_add((lane / group) as i64);
        LanePositions {
            first: at(lanes.start),
            last: at(lanes.end - 1),
            group,
            phase: lanes.start % group,
            count: lanes.len(),
        }
    }

    /// How many lanes stand for positions before the given one.
    #[inline(always)]
    fn before(&self, position: i64) -> u8 {
        let positions = position.saturating_sub(self.first);
        let positions = positions.clamp(0, self.last - self.first + 1) as usize;
        let lanes = (positions * self.group).saturating_sub(self.phase);
        lanes.min(self.count) as u8
    }
}

/// The lanes, from and to, that see a key.
pub(super) type Seen = (u8, u8);

/// Smallest and largest position in a tile, and whether it has empty slots.
#[derive(Clone, Copy)]
pub(super) struct Span {
    min: i64,
    max: i64,
    holes: bool,
}

/// What a panel of queries sees of a tile.
pub(super) enum Cover {
    /// Nothing.
    Hidden,
    /// All keys, from all its queries.
    Full,
    /// These keys (whole blocks), each from some lanes.
    Partial(Range<usize>, [Seen; TILE]),
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

    #[inline(always)]
    fn lanes_that_see(&self, key: i64, lanes: &LanePositions) -> Seen {
        if key < 0 {
            return (0, 0);
        }
        let to = match self.window {
            Some(window) if key >= self.sinks => lanes.before(key.saturating_add(window)),
            _ => lanes.count as u8,
        };
        (lanes.before(key), to)
    }
}

/// Set the scores (one row a key) of the lanes that do not see their key to -infinity.
#[inline(always)]
pub(super) fn hide<R: Real>(scores: &mut [Lane<R>], seen: &[Seen]) {
    for (row, &(from, to)) in scores.iter_mut().zip(seen) {
        row[..usize::from(from)].fill(R::NEG_INFINITY);
        row[usize::from(to.max(from))..].fill(R::NEG_INFINITY);
    }
}
