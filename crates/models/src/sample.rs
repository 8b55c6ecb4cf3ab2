//! Choosing the next token from logits, on the CPU. In this order: repetition penalty (Keskar et al. 2019),
//! temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024), then one draw from
//! what is left. Temperature 0 takes the largest logit. Ties go to the smaller id, so a seed fixes every choice.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weft_tensor::cpu::simd::vectorize;
use weft_tensor::{Real, Rng};

use crate::error::{Error, Result};

/// How tokens are chosen. The default draws from the model's own distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest.
    pub temperature: f64,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this many times as likely as the most likely one; 0 keeps all.
    pub min_p: f64,
    /// Logits of tokens that have occurred are divided by it (multiplied where negative); 1 changes nothing.
    pub repetition_penalty: f64,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Sampling {
        Sampling {
            temperature: 0.0,
            ..Sampling::default()
        }
    }

    /// Check the ranges.
    ///
    /// # Errors
    /// When a setting is out of its range; it is named.
    pub fn check(&self) -> Result<()> {
        let rules = [
            ("temperature", self.temperature, 0.0..=f64::MAX, "0 or more"),
            ("top_p", self.top_p, f64::MIN_POSITIVE..=1.0, "in (0, 1]"),
            ("min_p", self.min_p, 0.0..=1.0, "in [0, 1]"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                f64::MIN_POSITIVE..=f64::MAX,
                "above 0",
            ),
        ];
        match rules.iter().find(|(_, v, range, _)| !range.contains(v)) {
            None => Ok(()),
            Some((name, value, _, expected)) => Err(Error::Setting {
                name,
                detail: format!("is {value}: use a number {expected}"),
            }),
        }
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// ln p(token) under the model's own distribution, before any of the settings.
    pub logprob: f64,
}

/// Chooses tokens one after another. A clone goes on with the same random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: Sampling,
    rng: Rng,
    seen: BTreeSet<u32>,
}

struct Candidate {
    id: u32,
    score: f32,
    weight: f32,
}

impl Sampler {
    /// A sampler that has seen no tokens.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn new(settings: &Sampling) -> Result<Sampler> {
        settings.check()?;
        Ok(Sampler {
            settings: settings.clone(),
            rng: Rng::new(settings.seed),
            seen: BTreeSet::new(),
        })
    }

    /// Tokens that have occurred, for the repetition penalty.
    pub fn observe(&mut self, ids: &[u32]) {
        if self.settings.repetition_penalty != 1.0 {
            self.seen.extend(ids);
        }
    }

    /// Choose from the logits of all tokens.
    ///
    /// # Errors
    /// When a logit is NaN or +infinity, or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice> {
        let top = argmax(logits).map(|i| logits[i]);
        let Some(max) = top.filter(|m| m.is_finite() && !logits.iter().any(|l| l.is_nan())) else {
            return Err(Error::Input(format!(
                "the model's {} logits are not finite: its weights or its state are damaged",
                logits.len()
            )));
        };
        let penalised;
        let scores = if self.seen.is_empty() {
            logits
        } else {
            penalised = self.penalise(logits);
            &penalised
        };
        let chosen = if self.settings.temperature == 0.0 {
            argmax(scores)
        } else {
            self.draw(scores)
        };
        let Some(id) = chosen else {
            return Err(Error::Input("no token is left to choose from".into()));
        };
        let total: f64 = weights(logits, max, 1.0)
            .iter()
            .map(|&w| f64::from(w))
            .sum();
        let logprob = f64::from(logits[id]) - f64::from(max) - total.ln();
        Ok(Choice {
            id: id as u32,
            logprob,
        })
    }

    fn penalise(&self, logits: &[f32]) -> Vec<f32> {
        let penalty = self.settings.repetition_penalty as f32;
        let mut scores = logits.to_vec();
        for &id in &self.seen {
            if let Some(s) = scores.get_mut(id as usize) {
                *s = if *s > 0.0 { *s / penalty } else { *s * penalty };
            }
        }
        scores
    }

    fn draw(&mut self, scores: &[f32]) -> Option<usize> {
        let settings = &self.settings;
        let max = scores[argmax(scores)?];
        let weights = weights(scores, max, settings.temperature);
        let mut kept: Vec<Candidate> = (0u32..)
            .zip(scores.iter().zip(weights))
            .map(|(id, (&score, weight))| Candidate { id, score, weight })
            .filter(|c| c.weight > 0.0)
            .collect();
        if (1..kept.len()).contains(&settings.top_k) {
            kept.select_nth_unstable_by(settings.top_k, by_rank);
            kept.truncate(settings.top_k);
        }
        if settings.top_p < 1.0 {
            keep_nucleus(&mut kept, settings.top_p);
        }
        // The largest weight is 1.
        kept.retain(|c| f64::from(c.weight) >= settings.min_p);
        kept.sort_unstable_by_key(|c| c.id);
        let mut left = self.rng.unit() * total(&kept);
        let hit = kept.iter().find(|c| {
            left -= f64::from(c.weight);
            left < 0.0
        });
        // Rounding may leave a crumb behind the last candidate.
        hit.or(kept.last()).map(|c| c.id as usize)
    }
}

/// Most likely first, equal ones by id.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

fn total(kept: &[Candidate]) -> f64 {
    kept.iter().map(|c| f64::from(c.weight)).sum()
}

/// Keep the fewest most likely candidates that hold a share `p` of the weight.
fn keep_nucleus(kept: &mut Vec<Candidate>, p: f64) {
    let goal = p * total(kept);
    // Those below this bound weigh less than 1 - p together, so the rest reaches the goal: only the rest is sorted.
    let bound = (1.0 - p) * total(kept) / (2.0 * kept.len() as f64);
    kept.retain(|c| f64::from(c.weight) > bound);
    kept.sort_unstable_by(by_rank);
    let mut sum = 0.0;
    let below = kept.iter().take_while(|c| {
        sum += f64::from(c.weight);
        sum < goal
    });
    let count = below.count() + 1;
    kept.truncate(count);
}

/// The first largest element.
fn argmax(v: &[f32]) -> Option<usize> {
    let best = vectorize(|| v.iter().fold(f32::NEG_INFINITY, |m, &x| Real::max(m, x)));
    v.iter().position(|&x| x == best)
}

/// e^((score - max) / temperature)
fn weights(scores: &[f32], max: f32, temperature: f64) -> Vec<f32> {
    let scale = (1.0 / temperature) as f32;
    let mut w = scores.to_vec();
    vectorize(|| {
        // The difference is at most 0, but 0 times an infinite scale would be NaN.
        w.iter_mut().for_each(|v| {
            let d = *v - max;
            *v = if d == 0.0 { 1.0 } else { Real::exp(d * scale) };
        });
    });
    w
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 2.0, f32::NEG_INFINITY, 1.0];

    fn draws(settings: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&settings).unwrap();
        let draw = |_| sampler.sample(&LOGITS).unwrap().id;
        (0..n).map(draw).collect()
    }

    fn set(settings: Sampling) -> Vec<u32> {
        let all: BTreeSet<u32> = draws(settings, 4000).into_iter().collect();
        all.into_iter().collect()
    }

    #[test]
    fn greedy_takes_the_first_largest_and_reports_the_models_own_probability() {
        let mut sampler = Sampler::new(&Sampling::greedy()).unwrap();
        let choice = sampler.sample(&LOGITS).unwrap();
        let z: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
        assert_eq!(choice.id, 1);
        assert!((choice.logprob - (2.0 - z.ln())).abs() < 1e-6);
    }

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let temperature = 0.7;
        let n = 40_000;
        let got = draws(
            Sampling {
                temperature,
                seed: 3,
                ..Sampling::default()
            },
            n,
        );
        let e = LOGITS.map(|l| (f64::from(l) / temperature).exp());
        let z: f64 = e.iter().sum();
        for (id, e) in e.iter().enumerate() {
            let (p, count) = (e / z, got.iter().filter(|&&g| g as usize == id).count());
            // Five standard deviations of a binomial: a correct sampler fails once in a million.
            let slack = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
            let share = count as f64 / n as f64;
            assert!((share - p).abs() <= slack, "{id}: {share} for {p}");
        }
    }

    #[test]
    fn the_filters_keep_what_they_say() {
        let base = Sampling::default();
        assert_eq!(set(base.clone()), [0, 1, 2, 3, 5]);
        let top_k = |top_k| {
            set(Sampling {
                top_k,
                ..base.clone()
            })
        };
        assert_eq!(top_k(1), [1]);
        assert_eq!(top_k(2), [1, 3]);
        assert_eq!(top_k(3), [1, 3, 5]);
        assert_eq!(top_k(600), [0, 1, 2, 3, 5]);
        // Softmax: 0.085, 0.382, 0.019, 0.382, 0, 0.141 (of 1.009 before rounding): 0.757 by two tokens, 0.898 by three.
        let top_p = |top_p| {
            set(Sampling {
                top_p,
                ..base.clone()
            })
        };
        assert_eq!(top_p(1e-9), [1]);
        assert_eq!(top_p(0.5), [1, 3]);
        assert_eq!(top_p(0.75), [1, 3]);
        assert_eq!(top_p(0.8), [1, 3, 5]);
        assert_eq!(top_p(0.95), [0, 1, 3, 5]);
        // Ratios to the best: e^-1.5 = 0.22, 1, e^-3 = 0.05, 1, 0, e^-1 = 0.37.
        let min_p = |min_p| {
            set(Sampling {
                min_p,
                ..base.clone()
            })
        };
        assert_eq!(min_p(1.0), [1, 3]);
        assert_eq!(min_p(0.3), [1, 3, 5]);
        assert_eq!(min_p(0.1), [0, 1, 3, 5]);
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let with = |seed| {
            draws(
                Sampling {
                    seed,
                    ..Sampling::default()
                },
                50,
            )
        };
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() {
        let settings = Sampling {
            repetition_penalty: 3.0,
            ..Sampling::greedy()
        };
        let mut sampler = Sampler::new(&settings).unwrap();
        sampler.observe(&[1, 9]);
        assert_eq!(sampler.sample(&LOGITS).unwrap().id, 3);
        let mut sampler = Sampler::new(&settings).unwrap();
        sampler.observe(&[0]);
        assert_eq!(sampler.sample(&[-1.0, -2.0]).unwrap().id, 1);
    }

    #[test]
    fn wrong_settings_and_damaged_logits_are_refused() {
        let base = Sampling::default();
        let wrong = [
            Sampling {
                temperature: -1.0,
                ..base.clone()
            },
            Sampling {
                temperature: f64::NAN,
                ..base.clone()
            },
            Sampling {
                top_p: 0.0,
                ..base.clone()
            },
            Sampling {
                top_p: 1.5,
                ..base.clone()
            },
            Sampling {
                min_p: -0.5,
                ..base.clone()
            },
            Sampling {
                repetition_penalty: 0.0,
                ..base.clone()
            },
        ];
        for settings in wrong {
            assert!(Sampler::new(&settings).is_err(), "{settings:?}");
        }
        for logits in [
            vec![],
            vec![f32::NAN, 1.0],
            vec![1.0, f32::NAN],
            vec![f32::INFINITY, 1.0],
            vec![f32::NEG_INFINITY; 3],
        ] {
            let mut sampler = Sampler::new(&base).unwrap();
            assert!(sampler.sample(&logits).is_err(), "{logits:?}");
        }
        assert!(serde_json::from_str::<Sampling>("{\"topk\": 3}").is_err());
    }

    proptest! {
        #[test]
        fn a_draw_is_never_worse_than_the_filters_allow(
            logits in prop::collection::vec(-30.0f32..30.0, 1..80),
            temperature in 1e-6f64..4.0,
            top_k in 0usize..20,
            top_p in 0.01f64..=1.0,
            min_p in 0.0f64..=1.0,
            seed in 0u64..1000,
        ) {
            let settings = Sampling {
                temperature, top_k, top_p, min_p, seed, ..Sampling::default()
            };
            let choice = Sampler::new(&settings).unwrap().sample(&logits).unwrap();
            let chosen = logits[choice.id as usize];
            let better = logits.iter().filter(|&&l| l > chosen).count();
            prop_assert!(top_k == 0 || better < top_k);
            let e = |l: f32| (f64::from(l) / temperature).exp();
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            prop_assert!(f64::from(chosen - max) / temperature >= min_p.ln() - 1e-4);
            if top_k == 0 && temperature > 0.1 {
                let above: f64 = logits.iter().filter(|&&l| l > chosen).map(|&l| e(l)).sum();
                let all: f64 = logits.iter().map(|&l| e(l)).sum();
                prop_assert!(above / all < top_p + 1e-5);
            }
            prop_assert!(choice.logprob <= 1e-6);
        }
    }
}
