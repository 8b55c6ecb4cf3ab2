//! How well a model predicts text that it has not seen.
//!
//! Every token of every text is scored once, as -ln p(token | all before it in its text), while the model's state is
//! carried from window to window: texts of any length, in memory that does not grow with them (beyond what the mixers
//! themselves keep). With nats summed over all tokens,
//!
//! ```text
//! bits per byte = nats / ln 2 / bytes        perplexity = exp(nats / tokens)
//! ```
//!
//! The first token of a text is predicted after the tokenizer's begin (else end) token. Where it has neither, it costs
//! ln(vocabulary): nothing is free.

use std::fmt;

use serde::{Deserialize, Serialize};
use weft_mixers::Call;
use weft_models::tokenizer::Tokenizer;
use weft_models::{LanguageModel, ModelState};
use weft_tensor::{Device, Tensor, no_grad};

use crate::error::{Error, Result};

/// How held-out text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Tokens per forward.
    pub window: usize,
    /// Texts (or their parts, see `context`) side by side.
    pub batch: usize,
    /// Start anew from an empty state after this many tokens, as in training on sequences of that length. `None`
    /// carries the state through each whole text.
    pub context: Option<usize>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            window: 512,
            batch: 8,
            context: None,
        }
    }
}

/// Texts to be scored, as tokens.
#[derive(Clone, Debug, Default)]
pub struct HeldOut {
    texts: Vec<Vec<i64>>,
    /// Whether each text begins with a token that is given, not scored.
    primed: bool,
    bytes: usize,
}

impl HeldOut {
    /// The tokens of some texts; empty ones are left out.
    ///
    /// # Errors
    /// When the tokenizer fails, or there is nothing to score.
    pub fn new<S: AsRef<str>>(texts: &[S], tokenizer: &Tokenizer) -> Result<Self> {
        let first = tokenizer.bos().or(tokenizer.eos()).map(i64::from);
        let mut held_out = Self {
            primed: first.is_some(),
            ..Self::default()
        };
        for text in texts.iter().map(AsRef::as_ref).filter(|t| !t.is_empty()) {
            let tokens = tokenizer.encode(text)?;
            let tokens = first.into_iter().chain(tokens.into_iter().map(i64::from));
            held_out.texts.push(tokens.collect());
            held_out.bytes += text.len();
        }
        if held_out.texts.is_empty() {
            return Err(Error::Data(
                "the held-out text is empty: give some text to evaluate on".into(),
            ));
        }
        Ok(held_out)
    }

    /// Bytes of text.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tokens that are scored.
    pub fn tokens(&self) -> usize {
        let given = usize::from(self.primed) * self.texts.len();
        self.texts.iter().map(Vec::len).sum::<usize>() - given
    }
}

/// What a model makes of held-out text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Nats / ln 2 / bytes; independent of the tokenizer.
    pub bits_per_byte: f64,
    /// exp(nats per token).
    pub perplexity: f64,
    /// Nats per token.
    pub loss: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes of text that they stand for.
    pub bytes: usize,
}

impl Evaluation {
    fn new(nats: f64, held_out: &HeldOut) -> Self {
        let (tokens, bytes) = (held_out.tokens(), held_out.bytes);
        let loss = nats / tokens as f64;
        Self {
            bits_per_byte: nats / std::f64::consts::LN_2 / bytes as f64,
            perplexity: loss.exp(),
            loss,
            tokens,
            bytes,
        }
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (bits, perplexity) = (self.bits_per_byte, self.perplexity);
        write!(f, "{bits:.4} bits per byte, perplexity {perplexity:.2}")
    }
}

/// Scores every token of the held-out texts once.
///
/// # Errors
/// When a token is outside the model's vocabulary or a size is 0.
pub fn evaluate(
    model: &LanguageModel,
    held_out: &HeldOut,
    config: &EvalConfig,
) -> Result<Evaluation> {
    if config.window == 0 || config.batch == 0 || config.context == Some(0) {
        return Err(Error::Data(
            "evaluation: window, batch and context must be at least 1".into(),
        ));
    }
    let mut parts = parts(held_out, config.context);
    // Rows of one batch end at about the same time, the shortest last.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    let mut nats = 0.0;
    for rows in parts.chunks(config.batch) {
        nats += no_grad(|| score(model, rows, config.window))?;
    }
    if !held_out.primed {
        nats += held_out.texts.len() as f64 * (model.config().vocab_size as f64).ln();
    }
    Ok(Evaluation::new(nats, held_out))
}

/// Texts cut into parts of `context` predictions; neighbours share the token that is the last of one, and the first
/// that the other is given.
fn parts(held_out: &HeldOut, context: Option<usize>) -> Vec<&[i64]> {
    let mut parts = Vec::new();
    for text in &held_out.texts {
        let step = context.unwrap_or(text.len());
        for start in (0..text.len().saturating_sub(1)).step_by(step) {
            parts.push(&text[start..text.len().min(start + step + 1)]);
        }
    }
    parts
}

/// Nats of all tokens but the first of each row; the longest row comes first.
fn score(model: &LanguageModel, rows: &[&[i64]], window: usize) -> Result<f64> {
    let mut state = model.init_state(rows.len())?;
    let mut nats = 0.0;
    let longest = rows.first().map_or(0, |row| row.len() - 1);
    for start in (0..longest).step_by(window) {
        let live = rows.partition_point(|row| row.len() > start + 1);
        if live < state.batch() {
            state = state.select(&(0..live).collect::<Vec<_>>())?;
        }
        nats += score_window(model, &rows[..live], start, window, &mut state)?;
    }
    Ok(nats)
}

fn score_window(
    model: &LanguageModel,
    rows: &[&[i64]],
    start: usize,
    window: usize,
    state: &mut ModelState,
) -> Result<f64> {
    let lengths: Vec<usize> = rows
        .iter()
        .map(|row| (row.len() - 1 - start).min(window))
        .collect();
    let longest = lengths[0];
    let (mut ids, mut targets) = (Vec::new(), Vec::new());
    for (row, &n) in rows.iter().zip(&lengths) {
        ids.extend_from_slice(&row[start..start + n]);
        ids.resize(ids.len() + longest - n, 0);
        targets.extend_from_slice(&row[start + 1..start + 1 + n]);
        // A target of -1 costs nothing.
        targets.resize(targets.len() + longest - n, -1);
    }
    let device = model.device();
    // Checked on the host; the model moves them.
    let ids = Tensor::from_vec(ids, &[rows.len(), longest], &Device::Cpu)?;
    let targets = Tensor::from_vec(targets, &[rows.len() * longest], &device)?;
    let full = lengths.iter().all(|&n| n == longest);
    let call = Call {
        lengths: (!full).then_some(&lengths),
        ..Call::default()
    };
    let logits = model.forward(&ids, state, &call)?;
    let nats = logits.flatten(0, 1)?.cross_entropy(&targets)?;
    Ok(nats.to_f64_vec()?.iter().sum())
}

#[cfg(test)]
mod tests {
    use weft_models::{Config, Run};

    use super::*;

    const TEXTS: [&str; 4] = [
        "a text of some length, longer than the others",
        "short",
        "",
        "neither long nor short",
    ];

    fn model(vocab_size: usize) -> LanguageModel {
        let layers = vec!["gdn2".into(), "attention".into()];
        let mut config = Config::new(vocab_size, 16, layers);
        config.initializer_range = 0.5;
        LanguageModel::new(&config, 1, &Device::Cpu).unwrap()
    }

    fn bytes() -> Tokenizer {
        Tokenizer::byte_level(&[]).unwrap()
    }

    fn config(window: usize, batch: usize, context: Option<usize>) -> EvalConfig {
        EvalConfig {
            window,
            batch,
            context,
        }
    }

    /// Nats of a text in one forward, its first token not counted.
    fn nats(model: &LanguageModel, text: &[u8]) -> f64 {
        let ids = text.iter().map(|&b| i64::from(b)).collect();
        let ids = Tensor::from_vec(ids, &[1, text.len()], &Device::Cpu).unwrap();
        let nats = model.loss(&ids, &Run::default()).unwrap();
        nats.to_f64_vec().unwrap().iter().sum()
    }

    #[test]
    fn each_token_is_scored_once_however_the_text_is_cut() {
        let (model, ln_v) = (model(256), 256f64.ln());
        let held_out = HeldOut::new(&TEXTS, &bytes()).unwrap();
        let whole = TEXTS.iter().filter(|t| !t.is_empty());
        let want: f64 = whole.map(|t| ln_v + nats(&model, t.as_bytes())).sum();
        let count: usize = TEXTS.iter().map(|t| t.len()).sum();
        for (window, batch) in [(1, 1), (7, 2), (7, 3), (16, 8), (512, 1)] {
            let got = evaluate(&model, &held_out, &config(window, batch, None)).unwrap();
            assert_eq!((got.tokens, got.bytes), (count, count));
            let bits = want / std::f64::consts::LN_2 / count as f64;
            assert!(
                (got.bits_per_byte / bits - 1.0).abs() < 1e-5,
                "window {window}, batch {batch}: {} is not {bits}",
                got.bits_per_byte
            );
            assert!((got.loss.exp() - got.perplexity).abs() < 1e-9);
        }
    }

    #[test]
    fn a_context_starts_anew_with_the_last_token_given() {
        let model = model(256);
        let text = "abcdefghijklmnopqrstuvwx";
        let held_out = HeldOut::new(&[text], &bytes()).unwrap();
        let cuts = [0..11, 10..21, 20..24];
        let want: f64 = cuts.map(|c| nats(&model, text[c].as_bytes())).iter().sum();
        let got = evaluate(&model, &held_out, &config(4, 3, Some(10))).unwrap();
        let got = got.loss * text.len() as f64 - 256f64.ln();
        assert!((got / want - 1.0).abs() < 1e-5, "{got} is not {want}");
    }

    #[test]
    fn a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary() {
        let model = model(256);
        let table = model.params().get("model.embed_tokens.weight").unwrap();
        table.set(&table.get().zeros_like()).unwrap();
        let held_out = HeldOut::new(&TEXTS, &bytes()).unwrap();
        let got = evaluate(&model, &held_out, &EvalConfig::default()).unwrap();
        assert!((got.bits_per_byte - 8.0).abs() < 1e-6, "{got:?}");
        assert!((got.perplexity / 256.0 - 1.0).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn a_begin_or_end_token_is_given_and_costs_nothing() {
        let tokenizer = Tokenizer::byte_level(&["<|endoftext|>"]).unwrap();
        assert!(tokenizer.eos().is_some());
        let held_out = HeldOut::new(&["abc", "de"], &tokenizer).unwrap();
        assert_eq!((held_out.tokens(), held_out.bytes()), (5, 5));
        let model = model(tokenizer.vocab_size());
        let got = evaluate(&model, &held_out, &EvalConfig::default()).unwrap();
        assert_eq!(got.tokens, 5);
    }

    #[test]
    fn nothing_to_score_and_strange_tokens_are_refused() {
        let error = HeldOut::new(&["", ""], &bytes()).unwrap_err().to_string();
        assert!(error.contains("held-out text is empty"), "{error}");
        let held_out = HeldOut::new(&["xyz"], &bytes()).unwrap();
        let error = evaluate(&model(100), &held_out, &EvalConfig::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("vocabulary of 100"), "{error}");
        assert!(evaluate(&model(256), &held_out, &config(0, 1, None)).is_err());
    }
}
