//! Batches in an order that is a function of the seed and the position.

use serde::{Deserialize, Serialize};

use super::{Permutation, Windows};
use crate::error::{Error, Result};

/// Token ids of shape [B, T + 1], row by row: inputs are the columns 0..T, targets the columns 1..T + 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The ids, B * (T + 1) of them.
    pub tokens: Vec<i64>,
    /// Rows, B.
    pub rows: usize,
    /// Columns, T + 1.
    pub columns: usize,
}

/// Where in the data a run is; all that must be saved to go on exactly there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The seed of the order.
    pub seed: u64,
    /// Passes completed.
    pub epoch: u64,
    /// Windows read in this pass.
    pub position: u64,
    /// Windows in a pass; tells data that has changed.
    pub windows: u64,
}

/// Endless batches of shuffled windows. Every pass visits each window once, in its own order; a batch at the end of a
/// pass is filled from the next.
#[derive(Clone, Debug)]
pub struct Batches {
    windows: Windows,
    rows: usize,
    cursor: Cursor,
    order: Permutation,
}

impl Batches {
    /// Batches of `rows` windows from the beginning.
    pub fn new(windows: Windows, rows: usize, seed: u64) -> Self {
        let cursor = Cursor {
            seed,
            epoch: 0,
            position: 0,
            windows: windows.len(),
        };
        Self {
            order: Permutation::new(windows.len(), seed, 0),
            windows,
            rows,
            cursor,
        }
    }

    /// Goes on where [`Batches::cursor`] was taken.
    ///
    /// # Errors
    /// When the data does not have as many windows as when the cursor was taken.
    pub fn resume(windows: Windows, rows: usize, cursor: Cursor) -> Result<Self> {
        let mut batches = Self::new(windows, rows, cursor.seed);
        batches.seek(cursor)?;
        Ok(batches)
    }

    /// Goes where [`Batches::cursor`] was taken.
    ///
    /// # Errors
    /// As [`Batches::resume`]; the place then stays.
    pub fn seek(&mut self, cursor: Cursor) -> Result<()> {
        let windows = self.windows.len();
        if cursor.windows != windows || cursor.position >= cursor.windows {
            return Err(Error::Data(format!(
                "the run was in window {} of {}, but the data now has {windows}: restore the data or start a new run",
                cursor.position, cursor.windows,
            )));
        }
        self.order = Permutation::new(windows, cursor.seed, cursor.epoch);
        self.cursor = cursor;
        Ok(())
    }

    /// Where the next batch begins.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next batch.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, naming file and place; the cursor then stays.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let columns = self.windows.sequence() + 1;
        let mut tokens = Vec::with_capacity(self.rows * columns);
        let start = (self.cursor, self.order.clone());
        for _ in 0..self.rows {
            let window = self.order.get(self.cursor.position);
            if let Err(error) = self.windows.read(window, &mut tokens) {
                (self.cursor, self.order) = start;
                return Err(error);
            }
            self.advance();
        }
        Ok(Batch {
            tokens,
            rows: self.rows,
            columns,
        })
    }

    fn advance(&mut self) {
        self.cursor.position += 1;
        if self.cursor.position == self.cursor.windows {
            self.cursor.position = 0;
            self.cursor.epoch += 1;
            self.order = Permutation::new(self.cursor.windows, self.cursor.seed, self.cursor.epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::{Corpus, ShardWriter};

    /// Windows of 4 + 1 tokens; window i begins with token 4 i.
    fn windows(count: usize, vocab: usize) -> Windows {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let mut shard = ShardWriter::create(&path, vocab as u64).unwrap();
        shard
            .write(&(0..=4 * count as u32).collect::<Vec<_>>())
            .unwrap();
        shard.finish().unwrap();
        Corpus::open_shards(&[path], 0.0)
            .unwrap()
            .train(4, vocab)
            .unwrap()
    }

    fn starts(batch: &Batch) -> Vec<i64> {
        assert_eq!(batch.tokens.len(), batch.rows * batch.columns);
        batch
            .tokens
            .chunks(batch.columns)
            .map(|row| row[0] / 4)
            .collect()
    }

    fn run(batches: &mut Batches, count: usize) -> Vec<i64> {
        (0..count)
            .flat_map(|_| starts(&batches.next_batch().unwrap()))
            .collect()
    }

    #[test]
    fn every_window_comes_once_per_pass_in_a_new_order() {
        let mut batches = Batches::new(windows(10, 100), 4, 1);
        let seen = run(&mut batches, 5);
        for pass in seen.chunks(10) {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..10), "{pass:?}");
        }
        assert_ne!(seen[..10], seen[10..]);
        let cursor = batches.cursor();
        assert_eq!((cursor.epoch, cursor.position), (2, 0));
        assert_ne!(run(&mut Batches::new(windows(10, 100), 4, 2), 5), seen);
        assert_eq!(run(&mut Batches::new(windows(10, 100), 4, 1), 5), seen);
    }

    #[test]
    fn batches_larger_than_a_pass_are_filled() {
        let mut seen = run(&mut Batches::new(windows(3, 100), 7, 5), 3);
        seen.sort_unstable();
        assert_eq!(seen, [[0; 7], [1; 7], [2; 7]].concat());
    }

    #[test]
    fn rows_hold_inputs_and_shifted_targets() {
        let batch = Batches::new(windows(5, 100), 2, 0).next_batch().unwrap();
        assert_eq!((batch.rows, batch.columns), (2, 5));
        for row in batch.tokens.chunks(5) {
            assert!(row.windows(2).all(|pair| pair[1] == pair[0] + 1), "{row:?}");
        }
    }

    #[test]
    fn changed_data_is_noticed() {
        let cursor = Batches::new(windows(10, 100), 4, 1).cursor();
        let error = Batches::resume(windows(9, 100), 4, cursor)
            .unwrap_err()
            .to_string();
        assert!(error.contains("of 10, but the data now has 9"), "{error}");
        let beyond = Cursor {
            position: 10,
            ..cursor
        };
        assert!(Batches::resume(windows(10, 100), 4, beyond).is_err());
    }

    #[test]
    fn a_bad_token_leaves_the_cursor_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        let header = "{'descr': '<u2', 'fortran_order': False, 'shape': (9,), }";
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(
            [1u16, 2, 3, 4, 5, 6, 7, 99, 9]
                .map(u16::to_le_bytes)
                .concat(),
        );
        std::fs::write(&path, file).unwrap();
        let windows = Corpus::open_shards(&[path], 0.0)
            .unwrap()
            .train(4, 50)
            .unwrap();
        let mut batches = Batches::new(windows, 2, 0);
        let error = batches.next_batch().unwrap_err().to_string();
        assert!(
            error.contains("a.npy") && error.contains("token 7"),
            "{error}"
        );
        assert_eq!(batches.cursor().position, 0);
    }

    proptest! {
        #[test]
        fn resuming_anywhere_equals_going_on(count in 1usize..40, rows in 1usize..9, at in 0usize..30, seed: u64) {
            let mut whole = Batches::new(windows(count, 200), rows, seed);
            run(&mut whole, at);
            let saved = serde_json::to_string(&whole.cursor()).unwrap();
            let cursor = serde_json::from_str(&saved).unwrap();
            let mut resumed = Batches::resume(windows(count, 200), rows, cursor).unwrap();
            prop_assert_eq!(run(&mut resumed, 8), run(&mut whole, 8));
            prop_assert_eq!(resumed.cursor(), whole.cursor());
        }
    }
}
