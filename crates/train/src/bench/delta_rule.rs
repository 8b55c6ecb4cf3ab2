//! The gated delta rule of gdn, kda and gdn2: chunkwise forward and backward, and the decode step.
//!
//! The products of the published chunk form count, two operations to a multiply-add, triangles as whole squares and
//! no inverse: per chunk of C tokens and value head C C (3 K + 2 V) + 3 C K V multiply-adds forward, and
//! C C (8 K + 5 V + 2 C) + 7 C K V backward with what it computes again. Bytes are those of the operands, the outputs
//! and, backward, the gradients; a decode step reads and writes its state [B, HV, K, V] in f32.

use weft_mixers::shared::delta_rule::{CHUNK, Operands, delta_rule, delta_rule_step};
use weft_tensor::{DType, Device, Tensor, no_grad};

use super::case::{Case, Work, gradients};
use super::input;
use crate::error::Result;

/// How finely a mixer gates.
#[derive(Clone, Copy)]
struct Rule {
    name: &'static str,
    /// Decay per key channel instead of per value head.
    channel_decay: bool,
    /// Erase gate per key channel and write gate per value channel, instead of one beta per value head.
    channel_gates: bool,
}

const GDN: Rule = Rule {
    name: "gdn",
    channel_decay: false,
    channel_gates: false,
};
const KDA: Rule = Rule {
    name: "kda",
    channel_decay: true,
    channel_gates: false,
};
const GDN2: Rule = Rule {
    name: "gdn2",
    channel_decay: true,
    channel_gates: true,
};

#[derive(Clone, Copy)]
struct Shape {
    rule: Rule,
    batch: usize,
    tokens: usize,
    heads: usize,
    value_heads: usize,
    /// K = V.
    dim: usize,
}

const fn shape(rule: Rule, [batch, tokens, heads, value_heads, dim]: [usize; 5]) -> Shape {
    Shape {
        rule,
        batch,
        tokens,
        heads,
        value_heads,
        dim,
    }
}

impl Shape {
    fn text(&self) -> String {
        let Shape {
            batch,
            tokens,
            heads,
            value_heads,
            dim,
            ..
        } = self;
        let heads = match heads == value_heads {
            true => heads.to_string(),
            false => format!("{heads}/{value_heads}"),
        };
        let tokens = match tokens {
            1 => String::new(),
            n => format!(" T{n}"),
        };
        format!("B{batch}{tokens} H{heads} K=V={dim}")
    }

    fn operands(&self, dtype: DType, device: &Device) -> Result<Operands> {
        let Shape {
            rule,
            batch,
            tokens,
            heads,
            value_heads,
            dim,
        } = *self;
        let per_head = [batch, tokens, value_heads];
        let channels = |heads| [batch, tokens, heads, dim];
        let gate = |seed, fine: bool, heads, range| match fine {
            true => input::uniform(seed, &channels(heads), range, DType::F32, device),
            false => input::uniform(seed, &per_head, range, DType::F32, device),
        };
        let width = (2 * heads + value_heads) * dim;
        let erase = gate(3, rule.channel_gates, heads, [0.0, 1.0])?;
        let write = match rule.channel_gates {
            true => gate(4, true, value_heads, [0.0, 1.0])?,
            false => erase.clone(),
        };
        Ok(Operands {
            qkv: input::activations(1, &[batch, tokens, width], dtype, device)?,
            decay: Some(gate(2, rule.channel_decay, heads, [-0.1, 0.0])?),
            erase,
            write,
            state: Tensor::zeros(&[batch, value_heads, dim, dim], DType::F32, device),
        })
    }

    fn forward(self, dtype: DType, device: &Device) -> Result<Work> {
        let x = self.operands(dtype, device)?;
        Ok(Box::new(move || {
            let (o, state) = no_grad(|| delta_rule(&x, CHUNK))?;
            Ok(vec![o, state])
        }))
    }

    fn backward(self, dtype: DType, device: &Device) -> Result<Work> {
        let x = self.operands(dtype, device)?;
        let qkv = x.qkv.requires_grad()?;
        let decay = x.decay.map(|g| g.requires_grad()).transpose()?;
        let erase = x.erase.requires_grad()?;
        let write = match self.rule.channel_gates {
            true => x.write.requires_grad()?,
            false => erase.clone(),
        };
        let mut leaves = vec![qkv.clone(), erase.clone()];
        leaves.extend(decay.clone());
        leaves.extend(self.rule.channel_gates.then(|| write.clone()));
        let x = Operands {
            qkv,
            decay,
            erase,
            write,
            state: x.state,
        };
        let (o, _) = delta_rule(&x, CHUNK)?;
        let along = input::activations(5, o.shape(), o.dtype(), device)?;
        Ok(gradients(vec![o], vec![along], leaves))
    }

    fn step(self, dtype: DType, device: &Device) -> Result<Work> {
        let mut x = self.operands(dtype, device)?;
        Ok(Box::new(move || {
            // The only owner of a state may change it in place.
            let nothing = Tensor::zeros(&[0], DType::F32, &Device::Cpu);
            let state = std::mem::replace(&mut x.state, nothing);
            let (o, state) = no_grad(|| delta_rule_step(Operands { state, ..x.clone() }))?;
            x.state = state;
            Ok(vec![o])
        }))
    }

    /// Bytes of q, k, v and o, of the gates, and of the state.
    fn bytes(&self, dtype: DType) -> [f64; 3] {
        let Shape {
            rule,
            batch,
            tokens,
            heads,
            value_heads,
            dim,
        } = *self;
        let activations = (2 * heads + 2 * value_heads) * dim;
        let decay = if rule.channel_decay {
            heads * dim
        } else {
            value_heads
        };
        let gates = if rule.channel_gates {
            (heads + value_heads) * dim
        } else {
            value_heads
        };
        let rows = (batch * tokens) as f64;
        [
            rows * (activations * dtype.size()) as f64,
            rows * 4.0 * (decay + gates) as f64,
            4.0 * (batch * value_heads * dim * dim) as f64,
        ]
    }

    fn case(
        self,
        suffix: &str,
        dtype: DType,
        [bytes, flops]: [f64; 2],
        make: fn(Shape, DType, &Device) -> Result<Work>,
    ) -> Case {
        Case {
            name: format!("{}{suffix}", self.rule.name),
            shape: self.text(),
            dtype,
            bytes,
            flops,
            prepare: Box::new(move |device| make(self, dtype, device)),
        }
    }

    fn chunks(self, dtype: DType) -> [Case; 2] {
        let (c, n) = (CHUNK as f64, self.dim as f64);
        let chunks = (self.batch * self.value_heads * self.tokens.div_ceil(CHUNK)) as f64;
        let ahead = 2.0 * chunks * (5.0 * c * c * n + 3.0 * c * n * n);
        let back = 2.0 * chunks * (c * c * (13.0 * n + 2.0 * c) + 7.0 * c * n * n);
        let [activations, gates, state] = self.bytes(dtype);
        let bytes = activations + gates + 2.0 * state;
        [
            self.case("", dtype, [bytes, ahead], Shape::forward),
            self.case(
                " back",
                dtype,
                [2.0 * (activations + gates) + 2.0 * state, back],
                Shape::backward,
            ),
        ]
    }

    fn decode(self, dtype: DType) -> Case {
        let [activations, gates, state] = self.bytes(dtype);
        let bytes = activations + gates + 2.0 * state;
        self.case(" step", dtype, [bytes, 0.0], Shape::step)
    }
}

/// On a GPU the shapes that other implementations publish, then the training row's.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let (chunks, steps, dtype): (&[Shape], &[Shape], DType) = match device {
        Device::Cuda(_) => (
            &[
                shape(GDN, [1, 2048, 16, 32, 128]),
                shape(GDN, [1, 8192, 16, 32, 128]),
                shape(GDN, [1, 32_768, 16, 32, 128]),
                shape(KDA, [1, 8192, 32, 32, 128]),
                shape(GDN2, [1, 8192, 32, 32, 128]),
                shape(GDN2, [16, 1024, 6, 6, 128]),
            ],
            &[
                shape(GDN, [1, 1, 32, 32, 128]),
                shape(GDN, [32, 1, 32, 32, 128]),
                shape(GDN, [256, 1, 32, 32, 128]),
                shape(KDA, [256, 1, 32, 32, 128]),
                shape(GDN2, [1, 1, 32, 32, 128]),
                shape(GDN2, [32, 1, 32, 32, 128]),
                shape(GDN2, [256, 1, 32, 32, 64]),
                shape(GDN2, [256, 1, 32, 32, 128]),
                shape(GDN2, [128, 1, 32, 32, 256]),
            ],
            DType::BF16,
        ),
        _ => (
            &[
                shape(GDN, [8, 256, 4, 4, 64]),
                shape(KDA, [8, 256, 4, 4, 64]),
                shape(GDN2, [8, 256, 4, 4, 64]),
            ],
            &[
                shape(GDN, [64, 1, 4, 4, 128]),
                shape(KDA, [64, 1, 4, 4, 128]),
                shape(GDN2, [64, 1, 4, 4, 128]),
            ],
            DType::F32,
        ),
    };
    let mut all: Vec<Case> = chunks.iter().flat_map(|s| s.chunks(dtype)).collect();
    all.extend(steps.iter().map(|s| s.decode(dtype)));
    all
}
