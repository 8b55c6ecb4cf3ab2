//! SymbolSoup: name the styles of two passages that stand in noise (Horbatko 2026, Sessa, arXiv 2604.18580).
//!
//! ```text
//! ^ noise < block > noise < block > noise $        at $: the pair of styles, 4 left ones x 5 right ones
//! ```
//!
//! The letters are a..p. A style prefers some: four primaries (weight 3), four secondaries (2), the others 1. Behind a
//! letter, its preferred followers weigh four times as much: primary i -> primary i + 1, each primary and secondary ->
//! itself, primary i <-> secondary i. Where three places are left, with probability 0.3 a motif comes instead: a run of
//! 3 to 5 neighbours of the alphabet, of weight 1 + 0.9 per primary + 0.5 per secondary in it. Each letter of a block
//! then flips to another with probability 0.03.
//!
//! Of M letters, 30 % to 60 % are noise; a uniform point parts the rest into a block of a left style and one of a right
//! style, each with `least` of it at least, in random order. The released program writes spaces and line ends between
//! all of these; here they are left out, so that a letter is a token.

use serde::{Deserialize, Serialize};
use weft_tensor::Rng;

use crate::error::{Result, ensure};
use crate::example::{Example, Task, below, weighted};
use crate::registry::Knobs;

/// Its knobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SymbolSoup {
    /// The least share of the style letters that a block has.
    pub least: f64,
}

impl Default for SymbolSoup {
    fn default() -> Self {
        Self { least: 0.3 }
    }
}

const LETTERS: usize = 16;
const LEFT: usize = 4;
const RIGHT: usize = 5;
/// Begin, two brackets, end.
const MARKS: [usize; 4] = [16, 17, 18, 19];
const CLASSES: usize = 20;
/// Fewer letters leave no room for three parts of noise and two blocks.
const MIN_LETTERS: usize = 16;
/// Marks around the letters.
const AROUND: usize = 6;

impl Knobs for SymbolSoup {
    const NAME: &'static str = "symbol_soup";

    fn build(self, seed: u64) -> Result<Box<dyn Task>> {
        let least = self.least;
        let reason = format!("least is {least}: give a share from 0 to 0.5");
        ensure((0.0..=0.5).contains(&least), Self::NAME, reason)?;
        let mut rng = Rng::new(seed);
        let styles = (0..LEFT + RIGHT).map(|_| Style::new(&mut rng)).collect();
        Ok(Box::new(Soup { styles, least }))
    }
}

/// How a block prefers letters.
struct Style {
    /// Per letter.
    unigram: [f64; LETTERS],
    /// Whether the second letter is preferred behind the first.
    follows: [[bool; LETTERS]; LETTERS],
    /// Motifs as first letter and length.
    motifs: Vec<(usize, usize)>,
    motif_weights: Vec<f64>,
}

impl Style {
    fn new(rng: &mut Rng) -> Style {
        let order = rng.permutation(LETTERS);
        let (primary, secondary) = (&order[..4], &order[4..8]);
        let mut unigram = [1.0; LETTERS];
        let mut follows = [[false; LETTERS]; LETTERS];
        for i in 0..4 {
            let (p, s) = (primary[i], secondary[i]);
            (unigram[p], unigram[s]) = (3.0, 2.0);
            for (a, b) in [(p, primary[(i + 1) % 4]), (p, p), (s, s), (p, s), (s, p)] {
                follows[a][b] = true;
            }
        }
        let motifs: Vec<(usize, usize)> = (3..=5)
            .flat_map(|length| (0..=LETTERS - length).map(move |first| (first, length)))
            .collect();
        let weight = |&(first, length): &(usize, usize)| {
            let count = |of: &[usize]| (first..first + length).filter(|l| of.contains(l)).count();
            1.0 + 0.9 * count(primary) as f64 + 0.5 * count(secondary) as f64
        };
        Style {
            unigram,
            follows,
            motif_weights: motifs.iter().map(weight).collect(),
            motifs,
        }
    }

    fn block(&self, rng: &mut Rng, count: usize) -> Vec<usize> {
        let mut letters: Vec<usize> = Vec::with_capacity(count);
        while letters.len() < count {
            let left = count - letters.len();
            if left >= 3 && rng.unit() < 0.3 {
                let fits = |(m, &w): (&(usize, usize), &f64)| if m.1 <= left { w } else { 0.0 };
                let weights: Vec<f64> = self
                    .motifs
                    .iter()
                    .zip(&self.motif_weights)
                    .map(fits)
                    .collect();
                let (first, length) = self.motifs[weighted(rng, &weights)];
                letters.extend(first..first + length);
                continue;
            }
            let mut weights = self.unigram;
            if let Some(&last) = letters.last() {
                for (weight, &preferred) in weights.iter_mut().zip(&self.follows[last]) {
                    *weight *= if preferred { 4.0 } else { 1.0 };
                }
            }
            letters.push(weighted(rng, &weights));
        }
        for letter in &mut letters {
            if rng.unit() < 0.03 {
                *letter = (*letter + 1 + below(rng, LETTERS - 1)) % LETTERS;
            }
        }
        letters
    }
}

struct Soup {
    /// The left ones, then the right ones.
    styles: Vec<Style>,
    least: f64,
}

/// Three parts of at least one.
fn three_parts(rng: &mut Rng, count: usize) -> [usize; 3] {
    let mut cuts = [1 + below(rng, count - 1), 1 + below(rng, count - 2)];
    if cuts[1] >= cuts[0] {
        cuts[1] += 1;
    }
    cuts.sort_unstable();
    [cuts[0], cuts[1] - cuts[0], count - cuts[1]]
}

impl Task for Soup {
    /// The letters and marks; classes begin at 0 again.
    fn vocab(&self) -> usize {
        LETTERS + MARKS.len()
    }

    fn classes(&self) -> usize {
        CLASSES
    }

    fn min_length(&self) -> usize {
        MIN_LETTERS + AROUND
    }

    fn draw(&self, rng: &mut Rng, length: usize) -> Example {
        let [begin, open, close, end] = MARKS;
        let letters = length - AROUND;
        let least = (0.3 * letters as f64).ceil() as usize;
        let most = (0.6 * letters as f64).floor() as usize;
        let count = least + below(rng, most - least + 1);
        let noise = three_parts(rng, count);
        let styled = letters - noise.iter().sum::<usize>();
        let least = ((self.least * styled as f64) as usize).max(1);
        let first = least + below(rng, styled - 2 * least + 1);
        let (left, right) = (below(rng, LEFT), below(rng, RIGHT));
        let mut blocks = [
            self.styles[left].block(rng, first),
            self.styles[LEFT + right].block(rng, styled - first),
        ];
        if rng.unit() < 0.5 {
            blocks.swap(0, 1);
        }
        let mut example = Example::default();
        let say_noise = |rng: &mut Rng, example: &mut Example, count: usize| {
            (0..count).for_each(|_| example.tell(below(rng, LETTERS)));
        };
        example.tell(begin);
        for (count, block) in noise.into_iter().zip(&blocks) {
            say_noise(rng, &mut example, count);
            example.tell(open);
            block.iter().for_each(|&letter| example.tell(letter));
            example.tell(close);
        }
        say_noise(rng, &mut example, noise[2]);
        example.ask(end, RIGHT * left + right);
        example
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soup(seed: u64) -> Soup {
        let mut rng = Rng::new(seed);
        let styles = (0..LEFT + RIGHT).map(|_| Style::new(&mut rng)).collect();
        Soup { styles, least: 0.3 }
    }

    /// Log-likelihood of a block under the letter and follower weights of a style.
    fn likelihood(style: &Style, block: &[usize]) -> f64 {
        let mut sum = 0.0;
        for pair in block.windows(2) {
            let weight =
                |l: usize| style.unigram[l] * if style.follows[pair[0]][l] { 4.0 } else { 1.0 };
            sum += (weight(pair[1]) / (0..LETTERS).map(weight).sum::<f64>()).ln();
        }
        sum
    }

    fn best(styles: &[Style], block: &[usize]) -> (usize, f64) {
        let scored = styles.iter().map(|s| likelihood(s, block)).enumerate();
        scored.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
    }

    #[test]
    fn a_reader_who_knows_the_styles_names_them() {
        let (soup, mut right) = (soup(1), 0);
        for number in 0..100 {
            let example = soup.draw(&mut Rng::stream(2, number), 1500);
            let ids: Vec<usize> = example.ids.iter().map(|&id| id as usize).collect();
            let marks = ids.iter().filter(|&&id| id >= LETTERS).copied();
            assert!(marks.eq([16, 17, 18, 17, 18, 19]));
            let blocks: Vec<&[usize]> = ids
                .split(|&id| id == 17)
                .skip(1)
                .map(|part| part.split(|&id| id == 18).next().unwrap())
                .collect();
            let noise = 1500 - AROUND - blocks[0].len() - blocks[1].len();
            assert!((449..=896).contains(&noise), "{noise}");
            let (left, rest) = soup.styles.split_at(LEFT);
            let guess = |l: &[usize], r: &[usize]| {
                let (a, b) = (best(left, l), best(rest, r));
                (RIGHT * a.0 + b.0, a.1 + b.1)
            };
            let both = [guess(blocks[0], blocks[1]), guess(blocks[1], blocks[0])];
            let answer = if both[0].1 > both[1].1 {
                both[0].0
            } else {
                both[1].0
            };
            right += usize::from(example.targets.last() == Some(&(answer as i64)));
        }
        assert!(right >= 90, "{right} of 100");
    }

    #[test]
    fn all_classes_come_equally_often() {
        let (soup, mut counts) = (soup(0), [0; CLASSES]);
        for number in 0..2000 {
            let example = soup.draw(&mut Rng::stream(7, number), MIN_LETTERS + AROUND);
            counts[example.targets[MIN_LETTERS + AROUND - 1] as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (60..150).contains(&n)), "{counts:?}");
    }
}
