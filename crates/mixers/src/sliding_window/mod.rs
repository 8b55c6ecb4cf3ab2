//! Sliding-window attention (Beltagy et al. 2020) with attention sinks (Xiao et al. 2023): a query sees the last
//! W positions, itself included, and the first `sinks` ones.
//!
//! ```text
//! o_t = sum_s softmax_s( q_t . k_s / sqrt(D) ) v_s     over s <= t with t - s < W or s < sinks
//! ```
//!
//! The state is a ring of constant size: position p stays in slot p if p < sinks, otherwise in slot
//! sinks + (p - sinks) mod W. Which position a slot holds follows from how many tokens the row has seen.

mod ring;

use serde::{Deserialize, Serialize};
use weft_tensor::{DType, Tensor, grad_enabled};

use crate::error::{Error, Result};
use crate::mixer::{Call, Form, Mixer};
use crate::params::Scope;
use crate::registry::{Entry, Options};
use crate::shared::cache_rows::{self, Starts};
use crate::shared::flash::gpu;
use crate::shared::flash::op::{KeyPositions, Visibility, attend, attend_at, plain};
use crate::shared::heads::{Heads, HeadsConfig};
use crate::state::State;
use ring::Ring;

const NAME: &str = "swa";
/// Slots of a ring at most.
const MAX_SLOTS: usize = 1 << 24;
const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// The line of the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "Sliding-window attention",
    paper: "Beltagy et al. 2020, arXiv 2004.05150; sinks: Xiao et al. 2023, arXiv 2309.17453",
    page: "docs/mixers/sliding-window.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(SlidingWindow::new(options, scope)?)),
    samples,
};

fn samples() -> Vec<Options> {
    [
        serde_json::json!({ "window": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8 }),
        serde_json::json!({ "window": 20, "sinks": 3, "num_heads": 2, "head_dim": 8, "qk_norm": "rms" }),
        serde_json::json!({ "window": 1, "sinks": 1, "num_heads": 2, "head_dim": 8, "rope": "none" }),
        serde_json::json!({ "window": 200, "num_heads": 2, "head_dim": 8 }),
    ]
    .into_iter()
    .map(|table| Options::new(16, table))
    .collect()
}

/// Settings: those of [`HeadsConfig`], and the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Positions that a query sees, itself included.
    window: usize,
    /// First positions that stay visible for ever.
    sinks: usize,
    /// The rest is the attention shell's, which refuses what it does not know.
    #[serde(flatten)]
    heads: serde_json::Map<String, serde_json::Value>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            window: 2048,
            sinks: 0,
            heads: serde_json::Map::new(),
        }
    }
}

/// The layer; parameters as in [`crate::attention`].
pub struct SlidingWindow {
    heads: Heads,
    ring: Ring,
}

impl SlidingWindow {
    /// Build it with its parameters.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<SlidingWindow> {
        let config: Config = options.parse(NAME)?;
        if config.window == 0 {
            return Err(Error::config(
                NAME,
                "window 0: a query must see itself, give 1 or more",
            ));
        }
        if config.window.max(config.sinks) > MAX_SLOTS {
            let detail = format!(
                "window and sinks must not be above {MAX_SLOTS}: the ring is allocated whole"
            );
            return Err(Error::config(NAME, detail));
        }
        let rest = Options {
            d_model: options.d_model,
            table: config.heads,
            ..options.clone()
        };
        let heads: HeadsConfig = rest.parse(NAME)?;
        let heads = Heads::new(NAME, options.d_model, &heads, scope)?;
        Ok(SlidingWindow {
            heads,
            ring: Ring {
                window: config.window,
                sinks: config.sinks,
            },
        })
    }

    fn attend_all(
        &self,
        q: &Tensor,
        (k, v): (&Tensor, &Tensor),
        starts: &[usize],
        keys: KeyPositions,
        call: &Call,
    ) -> Result<Tensor> {
        let sees = Visibility {
            query_start: starts.iter().map(|&s| s as i64).collect(),
            keys,
            window: Some(self.ring.window as i64),
            sinks: self.ring.sinks as i64,
        };
        let run = if call.form == Some(Form::Reference) {
            plain
        } else {
            attend
        };
        Ok(run(q, k, v, &sees, self.heads.scale())?.0)
    }
}

impl Mixer for SlidingWindow {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(NAME, x, self.heads.d_model)?;
        state.expect(NAME, b)?;
        let starts = state.positions().to_vec();
        let lengths = call.tokens(b, t);
        let p = self.heads.project(&x, state)?;
        let tracked = [&p.k, &p.v, state.get("k")?, state.get("v")?]
            .iter()
            .any(|t| t.is_tracked());
        let step = t == 1 && call.form != Some(Form::Reference) && !(tracked && grad_enabled());
        let o = if let Some(clock) = state.clock().cloned() {
            let [slot, positions] = cache_rows::ring(&clock, self.ring.window, self.ring.sinks)?;
            let (k, v) = self.ring.write_at(state, Starts::Gpu(&slot), &p.k, &p.v)?;
            let places = gpu::Places {
                query_start: gpu::Place::Each(clock),
                keys: gpu::Place::Each(positions),
                slots: true,
                window: Some(self.ring.window as i64),
                sinks: self.ring.sinks as i64,
            };
            attend_at(&p.q, &k, &v, &places, self.heads.scale())?.0
        } else if step && lengths.iter().all(|&n| n == 1) {
            let (k, v) = self.ring.write_one(state, &starts, &p.k, &p.v)?;
            let after: Vec<usize> = starts.iter().map(|s| s + 1).collect();
            let keys = KeyPositions::Slots(self.ring.positions(&after));
            self.attend_all(&p.q, (&k, &v), &starts, keys, call)?
        } else if starts.iter().all(|&s| s == 0) {
            self.ring.write_many(state, &starts, &lengths, &p.k, &p.v)?;
            self.attend_all(
                &p.q,
                (&p.k, &p.v),
                &starts,
                KeyPositions::Range(vec![0; b]),
                call,
            )?
        } else {
            // The old ring in front of the new tokens; then the ring moves on.
            let k = Tensor::cat(&[state.get("k")?, &p.k], 1)?;
            let v = Tensor::cat(&[state.get("v")?, &p.v], 1)?;
            let keys = KeyPositions::Slots(self.ring.positions_with(&starts, t));
            self.ring.write_many(state, &starts, &lengths, &p.k, &p.v)?;
            self.attend_all(&p.q, (&k, &v), &starts, keys, call)?
        };
        state.advance(&lengths);
        call.zero_padding(&self.heads.output(&o, p.gate.as_ref())?)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(NAME, batch);
        for name in ["k", "v"] {
            let shape = [
                batch,
                self.ring.slots(),
                self.heads.kv_heads,
                self.heads.head_dim,
            ];
            state.put(name, Tensor::zeros(&shape, dtype, &self.heads.device()))?;
        }
        Ok(state)
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn plan(&self, tokens: usize, training: bool) -> (Form, String) {
        let on_gpu = self.heads.device() != weft_tensor::Device::Cpu;
        if tokens == 1 && !training {
            let how = match on_gpu {
                true => gpu::plan(self.heads.head_dim, tokens, training),
                false => "the ring read once".into(),
            };
            return (
                Form::Step,
                format!("one token: written into the ring in place, {how}"),
            );
        }
        if on_gpu {
            return (
                Form::Chunk,
                gpu::plan(self.heads.head_dim, tokens, training),
            );
        }
        (
            Form::Chunk,
            "tiles of 64 keys by 16 queries; tiles outside the window are skipped".into(),
        )
    }

    fn room(&self, _: &State) -> Result<Option<usize>> {
        Ok(Some(usize::MAX))
    }

    fn state_bytes(&self, _tokens: usize, dtype: DType) -> usize {
        2 * self.ring.slots() * self.heads.kv_heads * self.heads.head_dim * dtype.size()
    }

    fn cost_per_token(&self, context: usize) -> usize {
        self.heads.cost_per_token(context.min(self.ring.slots()))
    }
}
