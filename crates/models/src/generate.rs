//! Text from a model, token by token through its state. A [`Session`] is a conversation with the model at one point: the
//! prompt is processed once, and the session can be forked there and continued in several ways.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;
use weft_mixers::Call;
use weft_tensor::{DType, Tensor, no_grad};

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::folder::check_vocabulary;
use crate::lm::LanguageModel;
use crate::sample::{Sampler, Sampling};
use crate::state::ModelState;
use crate::stop::StopFilter;
use crate::tokenizer::{DecodeStream, Specials, Tokenizer};

/// A prompt is processed in pieces of this many tokens, so that activations stay small.
const PREFILL_TOKENS: usize = 2048;

/// How a text is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Stop after this many tokens.
    pub max_tokens: usize,
    /// Stop before any of these strings; they may span tokens.
    pub stop: Vec<String>,
    /// Go on after the token that ends a document.
    pub ignore_eos: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            sampling: Sampling::default(),
            max_tokens: 256,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// Why a continuation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// It has `max_tokens` tokens.
    Length,
    /// The model ended the document.
    Eos,
    /// This stop string came.
    Stop(String),
    /// The callback asked to stop.
    Cancelled,
}

/// A continuation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// Its text, without special tokens and without the stop string.
    pub text: String,
    /// Every token chosen, those of the stop string and the final eos included.
    pub ids: Vec<u32>,
    /// ln p of each token under the model's own distribution.
    pub logprobs: Vec<f64>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the session before the first new one.
    pub prompt_tokens: usize,
    /// Seconds until the first token was chosen, processing of the prompt included if it was still to be done.
    pub seconds_to_first_token: f64,
    /// Tokens per second behind the first one; 0 for a single token.
    pub tokens_per_second: f64,
}

/// A model at one point of a text. Cloning it is a snapshot.
///
/// ```
/// use std::ops::ControlFlow;
/// use weft_models::tokenizer::{END_OF_TEXT, Tokenizer};
/// use weft_models::{Config, LanguageModel, Session, Settings};
/// use weft_tensor::Device;
///
/// let tokenizer = Tokenizer::byte_level(&[END_OF_TEXT])?;
/// let layers = ["gdn2", "attention"].map(String::from).to_vec();
/// let config = Config::new(tokenizer.vocab_size(), 32, layers);
/// let model = LanguageModel::new(&config, 0, &Device::Cpu)?;
///
/// let mut session = Session::new(&model, &tokenizer)?;
/// session.prompt("Once upon a time")?;
/// for mut ending in session.fork(2)? {
///     let settings = Settings { max_tokens: 8, ..Settings::default() };
///     let new = ending.generate(&settings, &mut |_text| ControlFlow::Continue(()))?;
///     assert!(new.ids.len() <= 8);
/// }
/// # Ok::<(), weft_models::Error>(())
/// ```
#[derive(Clone)]
pub struct Session<'a> {
    model: &'a LanguageModel,
    tokenizer: &'a Tokenizer,
    state: ModelState,
    ids: Vec<u32>,
    /// How many of `ids` the state has seen.
    processed: usize,
    /// Those that follow the last processed token.
    logits: Vec<f32>,
}

impl<'a> Session<'a> {
    /// An empty session.
    ///
    /// # Errors
    /// When the tokenizer has tokens that the model does not know.
    pub fn new(model: &'a LanguageModel, tokenizer: &'a Tokenizer) -> Result<Session<'a>> {
        Session::from_state(model, tokenizer, model.init_state(1)?)
    }

    /// A session that goes on from a state of one sequence; give it at least one token before it can generate.
    ///
    /// # Errors
    /// When the state is not one of this model for one sequence, or the tokenizer does not fit the model.
    pub fn from_state(
        model: &'a LanguageModel,
        tokenizer: &'a Tokenizer,
        state: ModelState,
    ) -> Result<Session<'a>> {
        check_vocabulary(tokenizer, model.config()).map_err(Error::Input)?;
        state.expect(model, 1)?;
        Ok(Session {
            model,
            tokenizer,
            state,
            ids: Vec::new(),
            processed: 0,
            logits: Vec::new(),
        })
    }

    /// Add text. In the first one of a session special tokens are recognised and those that the tokenizer puts around a
    /// prompt are added; later ones are plain text.
    ///
    /// # Errors
    /// When a session would begin with no token at all: an empty text and a tokenizer without a token for the beginning.
    pub fn prompt(&mut self, text: &str) -> Result<()> {
        let fresh = self.ids.is_empty() && self.state.positions() == [0];
        let mut ids = if fresh {
            self.tokenizer.encode_prompt(text)?
        } else {
            self.tokenizer.encode(text)?
        };
        if fresh && ids.is_empty() {
            ids.extend(self.tokenizer.bos());
            if ids.is_empty() {
                return Err(Error::Input(
                    "the prompt is empty, and the tokenizer has no token for the beginning of a text: give at least one character".into(),
                ));
            }
        }
        self.feed(&ids)
    }

    /// Add tokens. They are processed when they are needed.
    ///
    /// # Errors
    /// When a token is outside the model's vocabulary; then none is added.
    pub fn feed(&mut self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        if let Some(i) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(Error::Token {
                id: i64::from(ids[i]),
                row: 0,
                position: self.ids.len() + i,
                vocab_size,
            });
        }
        self.ids.extend_from_slice(ids);
        Ok(())
    }

    /// Process all tokens added so far.
    ///
    /// # Errors
    /// When the model fails.
    pub fn prefill(&mut self) -> Result<()> {
        while self.processed < self.ids.len() {
            let end = self.ids.len().min(self.processed + PREFILL_TOKENS);
            let piece: Vec<i64> = self.ids[self.processed..end]
                .iter()
                .map(|&id| i64::from(id))
                .collect();
            let ids = Tensor::from_slice(&piece, &[1, piece.len()], &self.model.device())?;
            let logits = no_grad(|| {
                self.model
                    .forward_last(&ids, &mut self.state, &Call::default())
            })?;
            self.logits = logits.to_dtype(DType::F32)?.to_vec()?;
            self.processed = end;
        }
        Ok(())
    }

    /// `n` sessions at this point, each with a state of its own; what was added is processed once, here.
    ///
    /// # Errors
    /// When the model fails.
    pub fn fork(&mut self, n: usize) -> Result<Vec<Session<'a>>> {
        self.prefill()?;
        Ok(vec![self.clone(); n])
    }

    /// The tokens added and generated so far (without those behind a state that it began with).
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The model's state behind the tokens processed so far.
    pub fn state(&self) -> &ModelState {
        &self.state
    }

    /// Continue the text; each piece of it goes to `on_text` as soon as it is certain, and `Break` ends it there. The
    /// session then stands behind the new tokens.
    ///
    /// # Errors
    /// When a setting is out of range, the session is empty, or the model fails.
    pub fn generate(
        &mut self,
        settings: &Settings,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if settings.max_tokens == 0 {
            return Err(Error::Setting {
                name: "max_tokens",
                detail: "is 0: use 1 or more".into(),
            });
        }
        if self.ids.is_empty() {
            return Err(Error::Input(
                "the session has no tokens: give a prompt".into(),
            ));
        }
        let begin = Instant::now();
        let mut sampler = Sampler::new(&settings.sampling)?;
        sampler.observe(&self.ids);
        let eos = self.tokenizer.eos().filter(|_| !settings.ignore_eos);
        let mut output = Output::new(self.tokenizer, settings, on_text);
        let prompt_tokens = self.ids.len();
        let (mut logprobs, mut first) = (Vec::new(), begin.elapsed());
        self.prefill()?;
        let mut decoder = Decoder::new(self.model, &mut self.state);
        let finish = loop {
            if let Some(&id) = self.ids.get(self.processed) {
                let logits = decoder.step(&[i64::from(id)])?;
                self.logits = logits.to_dtype(DType::F32)?.to_vec()?;
                self.processed += 1;
            }
            let choice = sampler.sample(&self.logits[..self.tokenizer.vocab_size()])?;
            sampler.observe(&[choice.id]);
            self.ids.push(choice.id);
            logprobs.push(choice.logprob);
            if logprobs.len() == 1 {
                first = begin.elapsed();
            }
            if Some(choice.id) == eos {
                break Finish::Eos;
            }
            if let Some(finish) = output.token(choice.id)? {
                break finish;
            }
            if logprobs.len() == settings.max_tokens {
                break Finish::Length;
            }
        };
        let (text, finish) = output.finish(finish)?;
        let rest = (begin.elapsed() - first).as_secs_f64();
        let later = logprobs.len() - 1;
        Ok(Generation {
            text,
            ids: self.ids[prompt_tokens..].to_vec(),
            logprobs,
            finish,
            prompt_tokens,
            seconds_to_first_token: first.as_secs_f64(),
            tokens_per_second: if later > 0 { later as f64 / rest } else { 0.0 },
        })
    }
}

/// The way of tokens to the reader: decoded, searched for stop strings, handed over.
struct Output<'a> {
    stream: DecodeStream,
    filter: StopFilter,
    text: String,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl<'a> Output<'a> {
    fn new(
        tokenizer: &Tokenizer,
        settings: &Settings,
        on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Output<'a> {
        Output {
            stream: tokenizer.stream(Specials::Skip),
            filter: StopFilter::new(&settings.stop),
            text: String::new(),
            on_text,
        }
    }

    /// Take a token; says whether the text ends here.
    fn token(&mut self, id: u32) -> Result<Option<Finish>> {
        match self.stream.push(id)? {
            Some(piece) => Ok(self.piece(&piece)),
            None => Ok(None),
        }
    }

    fn piece(&mut self, piece: &str) -> Option<Finish> {
        let passed = self.filter.push(piece);
        let cancelled = self.show(&passed.text).is_break();
        passed
            .stop
            .map(Finish::Stop)
            .or(cancelled.then_some(Finish::Cancelled))
    }

    fn show(&mut self, text: &str) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.text.push_str(text);
        (self.on_text)(text)
    }

    /// Show what is still held back, unless a stop string or the reader ended the text; that may complete a stop
    /// string too.
    fn finish(mut self, finish: Finish) -> Result<(String, Finish)> {
        let mut finish = finish;
        if matches!(finish, Finish::Length | Finish::Eos) {
            if let Some(piece) = self.stream.finish()?
                && let Some(earlier) = self.piece(&piece)
            {
                finish = earlier;
            }
            if !matches!(finish, Finish::Stop(_) | Finish::Cancelled) {
                let rest = self.filter.finish();
                // The text is over: what the reader wants next no longer matters.
                let _ = self.show(&rest);
            }
        }
        Ok((self.text, finish))
    }
}
