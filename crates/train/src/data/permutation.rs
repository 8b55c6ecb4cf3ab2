//! A shuffled order of n items in constant memory.
//!
//! A balanced Feistel network over the smallest even number of bits that holds n is a bijection on 0..2^bits, at most
//! 4 times as large as n (16 values at the least). Walking its cycle until a value falls below n makes it a bijection
//! on 0..n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), in fewer than 4 steps on average.

/// Rounds of the network: four make it hard to tell from random (Luby and Rackoff 1988), the rest is margin.
const ROUNDS: usize = 6;

/// A bijection on `0..len` chosen by a seed and an epoch.
///
/// ```
/// use weft_train::data::Permutation;
///
/// let order = Permutation::new(10, 7, 0);
/// let mut seen: Vec<u64> = (0..10).map(|i| order.get(i)).collect();
/// assert_eq!(seen, (0..10).map(|i| Permutation::new(10, 7, 0).get(i)).collect::<Vec<_>>());
/// seen.sort();
/// assert_eq!(seen, (0..10).collect::<Vec<_>>());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The order of `len` items in this epoch under this seed.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        let start = mix(mix(seed).wrapping_add(epoch));
        Self {
            len,
            half: bits.div_ceil(2).max(2),
            keys: std::array::from_fn(|round| mix(start.wrapping_add(round as u64))),
        }
    }

    /// How many items there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there is nothing to order.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item at `position`; positions from `len` on have none and are returned as they are.
    pub fn get(&self, position: u64) -> u64 {
        if position >= self.len {
            return position;
        }
        let mut at = self.network(position);
        while at >= self.len {
            at = self.network(at);
        }
        at
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014) after its increment: every input bit reaches every output.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let permutation = Permutation::new(len, seed, epoch);
        (0..len).map(|i| permutation.get(i)).collect()
    }

    #[test]
    fn every_item_comes_once() {
        for len in (0..300).chain([1023, 1024, 1025, 65_536, 65_537]) {
            let mut items = order(len, 3, len);
            items.sort_unstable();
            assert!(items.iter().copied().eq(0..len), "len {len}");
        }
    }

    #[test]
    fn billions_need_no_memory_and_stay_in_range() {
        for len in [5_000_000_000, u64::MAX / 2 + 2, u64::MAX] {
            let permutation = Permutation::new(len, 1, 0);
            let mut seen: Vec<u64> = (0..2000).map(|i| permutation.get(len - 1 - i)).collect();
            assert!(seen.iter().all(|&item| item < len));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 2000);
            let low = seen.iter().filter(|&&item| item < len / 2).count();
            assert!(
                (800..1200).contains(&low),
                "{low} of 2000 in the lower half"
            );
        }
    }

    #[test]
    fn seeds_and_epochs_differ_and_neighbours_part() {
        let first = order(1000, 0, 0);
        assert_eq!(first, order(1000, 0, 0));
        for other in [order(1000, 1, 0), order(1000, 0, 1)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} items at the same place");
        }
        let near = first
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) < 10)
            .count();
        assert!(near < 50, "{near} neighbours stayed near");
    }

    /// Over many seeds each item takes each place about equally often, down to the smallest sizes.
    #[test]
    fn small_orders_are_fair() {
        for len in [2, 3, 5] {
            let mut counts = vec![0u32; len * len];
            for seed in 0..3000 {
                for (place, item) in order(len as u64, seed, 0).into_iter().enumerate() {
                    counts[place * len + item as usize] += 1;
                }
            }
            let expected = 3000 / len as u32;
            let fair = |count: &u32| count.abs_diff(expected) < 6 * expected.isqrt();
            assert!(counts.iter().all(fair), "len {len}: {counts:?}");
        }
    }
}
