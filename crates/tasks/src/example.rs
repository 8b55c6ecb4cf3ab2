//! What a task is, and what comes out of it.

use weft_tensor::Rng;

/// The target where nothing is asked.
pub const NOTHING: i64 = -1;

/// A family of examples, its knobs set.
pub trait Task: Send + Sync {
    /// Every token and every class is below it.
    fn vocab(&self) -> usize;

    /// How many answers there are to choose from.
    fn classes(&self) -> usize;

    /// The fewest tokens that hold an example.
    fn min_length(&self) -> usize;

    /// An example of exactly `length` tokens, [`Task::min_length`] or more, at least one of them asked about. It
    /// depends on the random numbers and on nothing else.
    fn draw(&self, rng: &mut Rng, length: usize) -> Example;
}

/// Token ids and what is to be named after each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Token ids, [T].
    pub ids: Vec<i64>,
    /// Classes or [`NOTHING`], [T].
    pub targets: Vec<i64>,
}

impl Example {
    /// A token after which nothing is asked.
    pub fn tell(&mut self, id: usize) {
        self.ids.push(id as i64);
        self.targets.push(NOTHING);
    }

    /// A token after which a class is to be named.
    pub fn ask(&mut self, id: usize, class: usize) {
        self.ids.push(id as i64);
        self.targets.push(class as i64);
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Examples of one length, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, [B, T].
    pub ids: Vec<i64>,
    /// Classes or [`NOTHING`], [B, T].
    pub targets: Vec<i64>,
    /// Rows, B.
    pub rows: usize,
    /// Columns, T.
    pub columns: usize,
}

/// Uniform in 0..n.
pub(crate) fn below(rng: &mut Rng, n: usize) -> usize {
    rng.below(n as u64) as usize
}

/// `count` different numbers of 0..n in random order.
pub(crate) fn distinct(rng: &mut Rng, n: usize, count: usize) -> Vec<usize> {
    let mut order = rng.permutation(n);
    order.truncate(count);
    order
}

/// As [`distinct`], in ascending order.
pub(crate) fn places(rng: &mut Rng, n: usize, count: usize) -> Vec<usize> {
    let mut places = distinct(rng, n, count);
    places.sort_unstable();
    places
}

/// An index by weight; the weights are not negative and one of them is positive.
pub(crate) fn weighted(rng: &mut Rng, weights: &[f64]) -> usize {
    let mut left = rng.unit() * weights.iter().sum::<f64>();
    let last = weights.iter().rposition(|&w| w > 0.0).unwrap_or(0);
    for (i, &weight) in weights.iter().enumerate().take(last) {
        if left < weight {
            return i;
        }
        left -= weight;
    }
    last
}
