//! The shell of softmax attention layers: projections to heads, q/k norms, rotary positions, output gate and
//! output projection, under the names of Hugging Face checkpoints.
//!
//! ```text
//! q, gate = q_proj(x)   k = k_proj(x)   v = v_proj(x)        [B, T, heads, head_dim]
//! q, k    = rope(norm(q)), rope(norm(k))
//! y       = o_proj( o * sigmoid(gate) )
//! ```

use serde::{Deserialize, Serialize};
use weft_tensor::{Device, Tensor};

use super::MAX_CHANNELS;
use super::norm::{RmsNorm, sigmoid_mul};
use super::rope::{Layout, Rotary};
use crate::error::{Error, Result};
use crate::params::{Init, Linear, Scope};
use crate::state::State;

/// Positions of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rope {
    /// Pairs (i, i + n/2), as in Hugging Face's Llama.
    Half,
    /// Pairs (2i, 2i + 1), as in the paper.
    Adjacent,
    /// No positions (NoPE).
    None,
}

/// Norm of each head's query and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    None,
    /// RMSNorm over the head, weight w.
    Rms,
    /// RMSNorm over the head, weight stored as w - 1 (Qwen3-Next).
    RmsPlusOne,
}

/// Channels of a head at most: each layer keeps a few hundred bytes of rotary turns for a channel.
const MAX_HEAD_DIM: usize = 1 << 16;

/// Settings of the shell; those left out follow from the width.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadsConfig {
    /// Query heads; by default one for every 64 channels.
    pub num_heads: Option<usize>,
    /// Key and value heads (grouped queries); by default as many as query heads.
    pub num_kv_heads: Option<usize>,
    /// Channels of a head; by default width / heads.
    pub head_dim: Option<usize>,
    /// Positions.
    pub rope: Rope,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The share of a head's channels that is rotated.
    pub partial_rotary_factor: f64,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Added under the root of that norm.
    pub norm_eps: f64,
    /// Sigmoid gate on the output; q_proj then holds [query | gate] for each head.
    pub output_gate: bool,
    /// Biases on q, k and v.
    pub bias: bool,
}

impl Default for HeadsConfig {
    fn default() -> HeadsConfig {
        HeadsConfig {
            num_heads: None,
            num_kv_heads: None,
            head_dim: None,
            rope: Rope::Half,
            rope_theta: 10_000.0,
            partial_rotary_factor: 1.0,
            qk_norm: QkNorm::None,
            norm_eps: 1e-6,
            output_gate: false,
            bias: false,
        }
    }
}

/// Projections of an attention layer.
pub struct Heads {
    /// Width D.
    pub d_model: usize,
    /// Hq
    pub heads: usize,
    /// Hkv
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    rotary: Option<Rotary>,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    gated: bool,
}

/// What a layer attends with: q [B, T, Hq, D], k and v [B, T, Hkv, D], gate [B, T, Hq D].
pub struct Projected {
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// Output gate before its sigmoid.
    pub gate: Option<Tensor>,
}

impl Heads {
    /// Where its parameters live.
    pub fn device(&self) -> Device {
        self.q_proj.weight.get().device()
    }

    /// Build the projections; `mixer` is named in errors.
    pub fn new(mixer: &str, d_model: usize, c: &HeadsConfig, scope: &mut Scope) -> Result<Heads> {
        let heads = c.num_heads.unwrap_or((d_model / 64).max(1));
        let kv_heads = c.num_kv_heads.unwrap_or(heads);
        let head_dim = c.head_dim.unwrap_or(d_model / heads.max(1));
        if heads == 0 || kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
            let detail = format!(
                "num_heads {heads} must be a positive multiple of num_kv_heads {kv_heads}, head_dim {head_dim} positive"
            );
            return Err(Error::config(mixer, detail));
        }
        // Room for every product of sizes below.
        let fits = |n: usize| n.checked_mul(head_dim).is_some_and(|w| w <= MAX_CHANNELS);
        if !fits(heads.saturating_mul(2)) {
            let detail =
                format!("{heads} heads of {head_dim} channels: at most {MAX_CHANNELS} fit a layer");
            return Err(Error::config(mixer, detail));
        }
        if head_dim > MAX_HEAD_DIM {
            let detail = format!("head_dim {head_dim}: at most {MAX_HEAD_DIM}");
            return Err(Error::config(mixer, detail));
        }
        let rotated = (head_dim as f64 * c.partial_rotary_factor).round();
        if !(0.0..=head_dim as f64).contains(&rotated)
            || !(rotated as usize).is_multiple_of(2)
            || c.rope_theta <= 0.0
        {
            let detail = format!(
                "partial_rotary_factor {} rotates {rotated} of {head_dim} channels: it must be an even number of them, and rope_theta positive",
                c.partial_rotary_factor
            );
            if c.rope != Rope::None {
                return Err(Error::config(mixer, detail));
            }
        }
        let layout = match c.rope {
            Rope::Half => Some(Layout::Half),
            Rope::Adjacent => Some(Layout::Adjacent),
            Rope::None => None,
        };
        let init = Init::FanIn { gain: 1.0 };
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let q_width = if c.output_gate { 2 * width } else { width };
        let norms = match c.qk_norm {
            QkNorm::None => None,
            kind => {
                let plus_one = kind == QkNorm::RmsPlusOne;
                let q = RmsNorm::new(scope, "q_norm", head_dim, c.norm_eps, plus_one)?;
                Some((
                    q,
                    RmsNorm::new(scope, "k_norm", head_dim, c.norm_eps, plus_one)?,
                ))
            }
        };
        Ok(Heads {
            d_model,
            heads,
            kv_heads,
            head_dim,
            q_proj: scope.linear("q_proj", d_model, q_width, c.bias, init.clone())?,
            k_proj: scope.linear("k_proj", d_model, kv_width, c.bias, init.clone())?,
            v_proj: scope.linear("v_proj", d_model, kv_width, c.bias, init.clone())?,
            o_proj: scope.linear("o_proj", width, d_model, false, init)?,
            rotary: layout.map(|l| Rotary::new(rotated as usize, c.rope_theta, l)),
            norms,
            gated: c.output_gate,
        })
    }

    /// Queries, keys and values of x [B, T, D] whose rows start at the positions of the state.
    pub fn project(&self, x: &Tensor, state: &State) -> Result<Projected> {
        let [b, t, _] = x.dims()?;
        let split = |y: Tensor, heads: usize| y.reshape(&[b, t, heads, self.head_dim]);
        let q = self.q_proj.forward(x)?;
        let (q, gate) = if self.gated {
            let both = q.reshape(&[b, t, self.heads, 2 * self.head_dim])?;
            let gate = both.narrow(-1, self.head_dim, self.head_dim)?;
            let gate = gate.reshape(&[b, t, self.heads * self.head_dim])?;
            (both.narrow(-1, 0, self.head_dim)?.contiguous()?, Some(gate))
        } else {
            (split(q, self.heads)?, None)
        };
        let mut k = split(self.k_proj.forward(x)?, self.kv_heads)?;
        let v = split(self.v_proj.forward(x)?, self.kv_heads)?;
        let mut q = q;
        if let Some((qn, kn)) = &self.norms {
            (q, k) = (qn.forward(&q)?, kn.forward(&k)?);
        }
        if let Some(rotary) = &self.rotary {
            let table = rotary.table(state.positions(), state.clock(), t, &q)?;
            (q, k) = (table.rotate(&q)?, table.rotate(&k)?);
        }
        Ok(Projected { q, k, v, gate })
    }

    /// y [B, T, D] of the attended values o [B, T, Hq, D].
    pub fn output(&self, o: &Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
        let o = o.flatten(2, 3)?;
        match gate {
            Some(gate) => self.o_proj.forward(&sigmoid_mul(gate, &o)?),
            None => self.o_proj.forward(&o),
        }
    }

    /// 1 / sqrt(head_dim), the factor on the scores.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Multiply-adds of one token that sees `context` keys.
    pub fn cost_per_token(&self, context: usize) -> usize {
        let width = self.heads * self.head_dim;
        let q_width = if self.gated { 2 * width } else { width };
        let projections = self.d_model * (q_width + 2 * self.kv_heads * self.head_dim + width);
        projections + 2 * width * context
    }
}
