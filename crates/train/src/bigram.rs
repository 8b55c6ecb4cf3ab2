//! A byte bigram model: the floor that a trained model must clearly beat.
//!
//! ```text
//! P(b | a) = (n(a, b) + k(a) P(b)) / (n(a) + k(a))        P(b) = (n(b) + 1) / (n + 256)
//! ```
//!
//! with k(a) the number of different bytes seen after a (Witten & Bell 1991). Every byte has a probability above 0 and
//! nothing is tuned.

/// Counts of pairs of neighbouring bytes.
#[derive(Clone)]
pub struct Bigram {
    /// [256, 256]: how often the second byte followed the first.
    pairs: Vec<u64>,
    singles: Vec<u64>,
}

const BYTES: usize = 256;

impl Bigram {
    /// Counts the pairs within each text; none spans two texts.
    pub fn train<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut pairs = vec![0; BYTES * BYTES];
        let mut singles = vec![0; BYTES];
        for text in texts {
            for &b in text {
                singles[usize::from(b)] += 1;
            }
            for (&a, &b) in text.iter().zip(text.iter().skip(1)) {
                pairs[usize::from(a) * BYTES + usize::from(b)] += 1;
            }
        }
        Self { pairs, singles }
    }

    /// Probability of every byte, by the byte before it; without one, by frequency alone.
    fn row(&self, before: Option<u8>) -> Vec<f64> {
        let total: u64 = self.singles.iter().sum();
        let single = |b: usize| (self.singles[b] as f64 + 1.0) / (total as f64 + BYTES as f64);
        let Some(a) = before else {
            return (0..BYTES).map(single).collect();
        };
        let counts = &self.pairs[usize::from(a) * BYTES..][..BYTES];
        let seen: u64 = counts.iter().sum();
        let kinds = counts.iter().filter(|&&n| n > 0).count() as f64;
        let mix = |b: usize| match seen {
            0 => single(b),
            _ => (counts[b] as f64 + kinds * single(b)) / (seen as f64 + kinds),
        };
        (0..BYTES).map(mix).collect()
    }

    /// Average -log2 of the probability of each byte of the texts; 0 if they are empty.
    pub fn bits_per_byte<'a>(&self, texts: impl IntoIterator<Item = &'a [u8]>) -> f64 {
        let rows: Vec<Vec<f64>> = (0..=u8::MAX).map(|a| self.row(Some(a))).collect();
        let first = self.row(None);
        let (mut bits, mut bytes) = (0.0, 0usize);
        for text in texts {
            let mut row = &first;
            for &b in text {
                bits -= row[usize::from(b)].log2();
                row = &rows[usize::from(b)];
            }
            bytes += text.len();
        }
        bits / bytes.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(t: &[&'static str]) -> Vec<&'static [u8]> {
        t.iter().map(|t| t.as_bytes()).collect()
    }

    #[test]
    fn probabilities_add_up_to_one_after_every_byte() {
        let model = Bigram::train(texts(&["the cat sat on the mat", "", "x"]));
        for before in (0..=u8::MAX).map(Some).chain([None]) {
            let row = model.row(before);
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(row.iter().all(|&p| p > 0.0));
        }
    }

    #[test]
    fn the_formula_by_hand() {
        // After a: b twice, c once; singles a 3, b 2, c 1 of 6.
        let model = Bigram::train(texts(&["ab", "ab", "ac"]));
        let p = |n: f64| (n + 1.0) / 262.0;
        let want = -(p(3.0).log2() + ((2.0 + 2.0 * p(2.0)) / 5.0).log2()) / 2.0;
        assert!((model.bits_per_byte(texts(&["ab"])) - want).abs() < 1e-12);
        // b never had a successor: the frequency decides.
        let want = -(p(2.0).log2() + p(1.0).log2()) / 2.0;
        assert!((model.bits_per_byte(texts(&["bc"])) - want).abs() < 1e-12);
    }

    #[test]
    fn nothing_learned_is_eight_bits_and_nothing_to_score_is_zero() {
        let model = Bigram::train(texts(&[]));
        assert!((model.bits_per_byte(texts(&["any"])) - 8.0).abs() < 1e-12);
        assert_eq!(model.bits_per_byte(texts(&[])), 0.0);
    }

    #[test]
    fn no_pair_spans_two_texts() {
        let model = Bigram::train(texts(&["a", "b"]));
        assert_eq!(model.row(Some(b'a')), model.row(None));
    }
}
