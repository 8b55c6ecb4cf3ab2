//! Causal softmax attention (Vaswani et al. 2017) with grouped keys and values (Ainslie et al. 2023):
//!
//! ```text
//! o_t = sum_{s <= t} softmax_s( q_t . k_s / sqrt(D) ) v_s        q [B, T, Hq, D], k, v [B, T, Hkv, D]
//! ```
//!
//! The state is the cache of keys and values. Its capacity grows by doubling, so that appending a token is
//! cheap; slot p of a row holds position p. The kernels are in [`crate::shared::flash`].

pub(crate) mod cache;
#[cfg(test)]
mod tests;

use weft_tensor::{DType, Tensor, grad_enabled};

use crate::error::Result;
use crate::mixer::{Call, Form, Mixer};
use crate::params::Scope;
use crate::registry::{Entry, Options};
use crate::shared::flash::gpu;
use crate::shared::flash::op::{KeyPositions, Visibility, attend, attend_at, plain};
use crate::shared::heads::{Heads, HeadsConfig};
use crate::state::State;

const NAME: &str = "attention";
const FORMS: &[Form] = &[Form::Reference, Form::Chunk, Form::Step];

/// The line of the registry.
pub static ENTRY: Entry = Entry {
    name: NAME,
    title: "Softmax attention",
    paper: "Vaswani et al. 2017, arXiv 1706.03762; grouped queries: Ainslie et al. 2023, arXiv 2305.13245",
    page: "docs/mixers/attention.md",
    forms: FORMS,
    build: |options, scope| Ok(Box::new(Attention::new(options, scope)?)),
    samples,
};

fn samples() -> Vec<Options> {
    [
        serde_json::json!({ "num_heads": 4, "head_dim": 8 }),
        serde_json::json!({ "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "rope": "adjacent", "bias": true }),
        serde_json::json!({
            "num_heads": 3, "num_kv_heads": 1, "head_dim": 8, "partial_rotary_factor": 0.5,
            "qk_norm": "rms_plus_one", "output_gate": true
        }),
        serde_json::json!({ "num_heads": 2, "head_dim": 12, "rope": "none", "qk_norm": "rms" }),
    ]
    .into_iter()
    .map(|table| Options::new(24, table))
    .collect()
}

/// The layer; parameters `q_proj`, `k_proj`, `v_proj`, `o_proj`, and `q_norm`, `k_norm` if asked for.
pub struct Attention {
    heads: Heads,
}

impl Attention {
    /// Build it with its parameters.
    pub fn new(options: &Options, scope: &mut Scope) -> Result<Attention> {
        let config: HeadsConfig = options.parse(NAME)?;
        Ok(Attention {
            heads: Heads::new(NAME, options.d_model, &config, scope)?,
        })
    }
}

impl Mixer for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &Tensor, state: &mut State, call: &Call) -> Result<Tensor> {
        let (x, b, t) = call.open(NAME, x, self.heads.d_model)?;
        state.expect(NAME, b)?;
        let starts = state.positions().to_vec();
        let p = self.heads.project(&x, state)?;
        let (k, v) = cache::append(state, &starts, &p.k, &p.v)?;
        let sees = Visibility {
            query_start: starts.iter().map(|&s| s as i64).collect(),
            keys: KeyPositions::Range(vec![0; b]),
            window: None,
            sinks: 0,
        };
        let scale = self.heads.scale();
        let (o, _) = match (state.clock(), call.form) {
            (Some(clock), _) => attend_at(&p.q, &k, &v, &gpu::Places::at(clock), scale)?,
            (None, Some(Form::Reference)) => plain(&p.q, &k, &v, &sees, scale)?,
            (None, _) => attend(&p.q, &k, &v, &sees, scale)?,
        };
        drop((k, v));
        state.advance(&call.tokens(b, t));
        call.zero_padding(&self.heads.output(&o, p.gate.as_ref())?)
    }

    fn init_state(&self, batch: usize, dtype: DType) -> Result<State> {
        let mut state = State::new(NAME, batch);
        for name in ["k", "v"] {
            let shape = [batch, 0, self.heads.kv_heads, self.heads.head_dim];
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
                false => "the cache read once".into(),
            };
            return (
                Form::Step,
                format!("one token: appended to the cache in place, {how}"),
            );
        }
        if on_gpu {
            return (
                Form::Chunk,
                gpu::plan(self.heads.head_dim, tokens, training),
            );
        }
        let why =
            "tiles of 64 keys by 16 queries with an online softmax; scores never leave the tile";
        (Form::Chunk, why.into())
    }

    fn room(&self, state: &State) -> Result<Option<usize>> {
        Ok(Some(state.get("k")?.dim(1)?))
    }

    fn state_bytes(&self, tokens: usize, dtype: DType) -> usize {
        2 * cache::capacity(tokens) * self.heads.kv_heads * self.heads.head_dim * dtype.size()
    }

    fn cost_per_token(&self, context: usize) -> usize {
        self.heads.cost_per_token(context)
    }
}

/// Whether the state may be changed in place: nothing in it, and nothing new, has a gradient.
fn in_place(tensors: &[&Tensor]) -> bool {
    !grad_enabled() || tensors.iter().all(|t| !t.is_tracked())
}
