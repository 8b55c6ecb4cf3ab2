//! How many answers of a synthetic task a model gets right, at the length that it was trained on and at others.
//!
//! ```text
//! accuracy = right answers / answers        exact = examples with every answer right / examples
//! ```
//!
//! An answer is right when its class has the greatest logit of all tokens. The examples are held-out draws, the same in
//! each evaluation.

use std::fmt;

use serde::{Deserialize, Serialize};
use weft_models::{LanguageModel, Run};
use weft_tasks::{Batch, Generator, NOTHING};
use weft_tensor::{Device, Tensor, no_grad};

use crate::error::Result;
use crate::report::length_key;

/// What is asked in an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Exam {
    /// Tokens of the examples that the model is trained on.
    pub length: usize,
    /// Other lengths.
    pub lengths: Vec<usize>,
    /// Examples of each length.
    pub examples: usize,
    /// Examples side by side.
    pub batch: usize,
    /// The share of an example's answers that count, from its end.
    pub tail: f64,
}

/// What a model knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// At the length of training.
    #[serde(flatten)]
    pub trained: AtLength,
    /// The accuracy of guessing.
    pub chance: f64,
    /// At other lengths.
    pub lengths: Vec<AtLength>,
}

/// What a model knows at one length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtLength {
    /// Tokens of an example.
    pub length: usize,
    /// The share of right answers.
    pub accuracy: f64,
    /// The share of examples with every answer right.
    pub exact: f64,
    /// Nats per answer.
    pub loss: f64,
    /// Answers counted.
    pub answers: usize,
}

impl Answers {
    /// Accuracy and the share of examples that are right as a whole, and the accuracy at each other length.
    pub(super) fn metrics(&self) -> Vec<(String, f64)> {
        let at = |one: &AtLength| (length_key("accuracy", one.length), one.accuracy);
        let mut metrics = vec![
            ("accuracy".to_string(), self.trained.accuracy),
            ("exact".to_string(), self.trained.exact),
        ];
        metrics.extend(self.lengths.iter().map(at));
        metrics
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let trained = &self.trained;
        write!(f, "accuracy {:.3}", trained.accuracy)?;
        for one in &self.lengths {
            write!(f, ", {:.3} at {} tokens", one.accuracy, one.length)?;
        }
        Ok(())
    }
}

/// The places of a batch that are asked about, row by row as b * T + t, and their classes; of each row only the last
/// `tail` of its answers.
pub fn asked(batch: &Batch, tail: f64) -> Vec<Vec<(usize, i64)>> {
    let row = |(row, targets): (usize, &[i64])| {
        let places = targets.iter().enumerate();
        let all: Vec<(usize, i64)> = places
            .filter(|(_, class)| **class != NOTHING)
            .map(|(place, &class)| (row * batch.columns + place, class))
            .collect();
        // One at least: every example asks something.
        let count = ((tail * all.len() as f64).ceil() as usize).max(1);
        all[all.len().saturating_sub(count)..].to_vec()
    };
    let rows = batch.targets.chunks(batch.columns).enumerate();
    rows.map(row).collect()
}

/// Ask a model.
///
/// # Errors
/// When the task does not fit the model's vocabulary, or a length the task.
pub fn answer(model: &LanguageModel, task: &Generator, exam: &Exam) -> Result<Answers> {
    let at = |&length: &usize| at_length(model, task, exam, length);
    Ok(Answers {
        trained: at(&exam.length)?,
        chance: 1.0 / task.task().classes() as f64,
        lengths: exam.lengths.iter().map(at).collect::<Result<_>>()?,
    })
}

fn at_length(
    model: &LanguageModel,
    task: &Generator,
    exam: &Exam,
    length: usize,
) -> Result<AtLength> {
    let (mut right, mut exact, mut answers, mut nats) = (0, 0, 0, 0.0);
    for first in (0..exam.examples).step_by(exam.batch) {
        let rows = exam.batch.min(exam.examples - first);
        let batch = task.held_out(first as u64, rows, length)?;
        let asked = asked(&batch, exam.tail);
        let (places, classes): (Vec<usize>, Vec<i64>) = asked.iter().flatten().copied().unzip();
        let ids = Tensor::from_vec(batch.ids, &[rows, length], &Device::Cpu)?;
        let (guesses, loss) = no_grad(|| guess(model, &ids, &places, &classes))?;
        let mut verdicts = guesses.iter().zip(&classes).map(|(a, b)| a == b);
        for row in &asked {
            let good = verdicts.by_ref().take(row.len()).filter(|&v| v).count();
            right += good;
            exact += usize::from(good == row.len());
        }
        answers += classes.len();
        nats += loss;
    }
    Ok(AtLength {
        length,
        accuracy: right as f64 / answers as f64,
        exact: exact as f64 / exam.examples as f64,
        loss: nats / answers as f64,
        answers,
    })
}

/// The most likely class at each place, and the nats of the right ones together.
fn guess(
    model: &LanguageModel,
    ids: &Tensor,
    places: &[usize],
    classes: &[i64],
) -> Result<(Vec<i64>, f64)> {
    let run = Run {
        compute: model.dtype(),
        checkpoint: false,
    };
    let logits = model.logits_at(ids, places, &run)?;
    let classes = Tensor::from_vec(classes.to_vec(), &[classes.len()], &model.device())?;
    let nats: f64 = logits.cross_entropy(&classes)?.to_f64_vec()?.iter().sum();
    Ok((logits.argmax(-1, false)?.to_vec()?, nats))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use weft_models::Config;

    use super::*;

    fn words() -> Generator {
        let knobs = Map::from_iter([("group".to_string(), json!("Z2"))]);
        Generator::new("state_tracking", &knobs, 0).unwrap()
    }

    fn exam(tail: f64) -> Exam {
        Exam {
            length: 8,
            lengths: vec![4, 16],
            examples: 10,
            batch: 4,
            tail,
        }
    }

    /// A model that always names one class: the head's row of that class is all that is not zero.
    fn stubborn(class: usize) -> LanguageModel {
        let mut config = Config::new(2, 4, vec!["attention".into()]);
        config.tie_word_embeddings = false;
        let model = LanguageModel::new(&config, 0, &Device::Cpu).unwrap();
        let set = |name: &str, values: Vec<f32>| {
            let p = model.params().get(name).unwrap();
            p.set(&Tensor::from_vec(values, p.shape(), &Device::Cpu).unwrap())
                .unwrap();
        };
        // Every token is the same vector; blocks add what they like to it, so the MLP and the mixer are muted.
        set("model.embed_tokens.weight", vec![1.0; 8]);
        for p in model.params().iter().filter(|p| {
            p.name().ends_with("o_proj.weight") || p.name().ends_with("down_proj.weight")
        }) {
            p.set(&p.get().zeros_like()).unwrap();
        }
        let mut head = vec![0.0; 8];
        head[4 * class..][..4].fill(1.0);
        set("lm_head.weight", head);
        model
    }

    #[test]
    fn right_answers_are_counted_at_every_length() {
        let (task, exam) = (words(), exam(1.0));
        let shares = [0, 1].map(|class| answer(&stubborn(class), &task, &exam).unwrap());
        for i in 0..3 {
            let at = |a: &Answers| if i == 0 { a.trained } else { a.lengths[i - 1] };
            let (a, b) = (at(&shares[0]), at(&shares[1]));
            assert_eq!(a.length, [8, 4, 16][i]);
            assert_eq!(a.answers, 10 * a.length);
            assert!((a.accuracy + b.accuracy - 1.0).abs() < 1e-12);
            // Counted by hand.
            let batch = task.held_out(0, 10, a.length).unwrap();
            let ones = batch.targets.iter().filter(|&&t| t == 1).count();
            assert!((b.accuracy - ones as f64 / a.answers as f64).abs() < 1e-12);
        }
        assert_eq!(shares[0].chance, 0.5);
    }

    #[test]
    fn the_tail_counts_the_last_answers_only() {
        let batch = words().held_out(0, 3, 8).unwrap();
        let last = asked(&batch, 0.25);
        let places: Vec<Vec<usize>> = last
            .iter()
            .map(|row| row.iter().map(|a| a.0).collect())
            .collect();
        assert_eq!(places, [[6, 7], [14, 15], [22, 23]]);
        assert_eq!(asked(&batch, 1.0).concat().len(), 24);
        assert_eq!(asked(&batch, 1e-9).concat().len(), 3, "one answer at least");
        let tail = answer(&stubborn(1), &words(), &exam(0.25)).unwrap();
        assert_eq!(tail.trained.answers, 20);
    }

    #[test]
    fn an_example_is_exact_when_all_of_it_is_right() {
        let exam = Exam {
            length: 1,
            lengths: vec![],
            ..exam(1.0)
        };
        let got = answer(&stubborn(1), &words(), &exam).unwrap().trained;
        assert_eq!(got.exact, got.accuracy);
        let exam = Exam { length: 40, ..exam };
        let got = answer(&stubborn(1), &words(), &exam).unwrap().trained;
        assert!(got.exact == 0.0 && got.accuracy > 0.2);
    }

    #[test]
    fn a_score_is_told_from_the_other_kind_by_its_fields() {
        use crate::evaluate::Score;
        let answers = Score::Answers(answer(&stubborn(1), &words(), &exam(1.0)).unwrap());
        let text = serde_json::to_string(&answers).unwrap();
        assert_eq!(serde_json::from_str::<Score>(&text).unwrap(), answers);
        let names: Vec<String> = answers.metrics().into_iter().map(|m| m.0).collect();
        assert_eq!(names, ["accuracy", "exact", "accuracy@4", "accuracy@16"]);
    }
}
