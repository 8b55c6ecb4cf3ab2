//! The chunkwise form as matrix products of tensors, for devices without a kernel of the family: differentiable, and
//! fast where products are. The derivation, per value head and chunk with tokens i, G_i the sum of g up to i:
//!
//! ```text
//! u_i = w_i v_i - S_i^T (b_i k_i)                          what token i adds, S_i the state it finds, decayed
//! (I + A) U = W V - (e^G b k) S       A_ij = (b_i k_i) . e^(G_i - G_j) k_j   for j < i
//! O = (e^G q) S + P U                 P_ij = q_i . e^(G_i - G_j) k_j         for j <= i
//! S <- e^(G_C) S + (e^(G_C - G) k)^T U
//! ```
//!
//! No exponent is positive. A chunk is cut into blocks of 16 tokens: between blocks the exponent G_i - G_j is a sum of
//! a part of each block, so that A and P are products of factors below 1; within a block it is taken token by token.

use weft_tensor::{DType, Result, Tensor};

use super::L2_EPS;
use super::op::Operands;

/// Tokens of a block.
pub(in crate::shared) const BLOCK: usize = 16;

/// Outputs [B, T, HV, V] and final state [B, HV, K, V]; all operands in the state's dtype.
pub fn chunks(x: &Operands, chunk: usize) -> Result<(Tensor, Tensor)> {
    let dims = x.dims()?;
    let (heads, tokens) = (dims.value_heads, dims.tokens);
    let blocks = chunk.min(tokens).div_ceil(BLOCK).max(1);
    let count = tokens.div_ceil(blocks * BLOCK);
    let padded = count * blocks * BLOCK;
    let cut = Cut {
        shape: [dims.batch, heads, count, blocks],
        repeat: dims.repeat(),
        padding: padded - tokens,
    };
    let keys = dims.heads * dims.key_dim;
    let parts = x.qkv.split(-1, &[keys, keys, heads * dims.value_dim])?;
    let rows = |x: &Tensor, n, width| cut.blocks(&x.reshape(&[dims.batch, tokens, n, width])?);
    let scale = (dims.key_dim as f64).powf(-0.5);
    let q = unit(&rows(&parts[0], dims.heads, dims.key_dim)?)?.mul_scalar(scale)?;
    let k = unit(&rows(&parts[1], dims.heads, dims.key_dim)?)?;
    let erased = k.mul(&cut.gate(&x.erase)?)?;
    let values = rows(&parts[2], heads, dims.value_dim)?.mul(&cut.gate(&x.write)?)?;
    let decay = match &x.decay {
        Some(g) => cut.gate(g)?,
        None => Tensor::zeros(&[1, 1, 1, blocks, BLOCK, 1], k.dtype(), &k.device()),
    };
    let decay = Decay::new(&decay)?;

    let scores = decay.scores(&[&erased, &q], &k)?;
    let flat = |x: &Tensor| x.flatten(3, 4);
    let (erased, q) = (decay.since_start(&erased)?, decay.since_start(&q)?);
    // (I + A)^-1 of the values and of what reads the state, in one solution.
    let right = Tensor::cat(&[&flat(&values)?, &flat(&erased)?], -1)?;
    let solved = scores[0].tril(-1)?.tri_solve(&right, false, true)?;
    let solved = solved.split(-1, &[dims.value_dim, dims.key_dim])?;
    let (reads, q) = (&scores[1], flat(&q)?);
    let (keys, keep) = (flat(&decay.until_end(&k)?)?, decay.whole()?);

    let mut state = x.state.clone();
    let mut outputs = Vec::with_capacity(count);
    for c in 0..count {
        let at = |x: &Tensor| x.select(2, if x.dim(2)? == 1 { 0 } else { c });
        let added = at(&solved[0])?.sub(&at(&solved[1])?.matmul(&state)?)?;
        let o = at(&q)?.matmul(&state)?;
        outputs.push(o.add(&at(reads)?.matmul(&added)?)?);
        let kept = state.mul(&at(&keep)?)?;
        state = kept.add(&at(&keys)?.transpose(-1, -2)?.matmul(&added)?)?;
    }
    // [B, HV, T, V]
    let o = Tensor::cat(&outputs.iter().collect::<Vec<_>>(), 2)?;
    Ok((o.narrow(2, 0, tokens)?.transpose(1, 2)?, state))
}

/// x / sqrt(sum x^2 + eps) over the last axis.
fn unit(x: &Tensor) -> Result<Tensor> {
    x.mul(&x.square()?.sum(&[-1], true)?.add_scalar(L2_EPS)?.rsqrt()?)
}

/// How tokens are cut up: [batch, value heads, chunks, blocks of a chunk].
pub(in crate::shared) struct Cut {
    pub shape: [usize; 4],
    /// Value heads of a key head.
    pub repeat: usize,
    /// Tokens behind the last one.
    pub padding: usize,
}

impl Cut {
    /// x [B, T, H or HV, width] -> [B, HV, chunks, blocks, BLOCK, width]; tokens behind the last are 0: they neither
    /// decay, erase nor write.
    pub fn blocks(&self, x: &Tensor) -> Result<Tensor> {
        let [b, h, chunks, blocks] = self.shape;
        let x = if x.dim(2)? == h {
            x.clone()
        } else {
            x.repeat_interleave(2, self.repeat)?
        };
        let x = if self.padding > 0 {
            x.pad(1, 0, self.padding, 0.0)?
        } else {
            x
        };
        let width = x.dim(-1)?;
        x.transpose(1, 2)?
            .reshape(&[b, h, chunks, blocks, BLOCK, width])
    }

    /// The same for a gate that may have one value for all channels.
    pub fn gate(&self, x: &Tensor) -> Result<Tensor> {
        if x.rank() == 3 {
            self.blocks(&x.unsqueeze(-1)?)
        } else {
            self.blocks(x)
        }
    }
}

/// Decay of log decays g [.., blocks, BLOCK, K or 1], each over tokens that follow one another, so that none is a
/// difference of longer sums.
pub(in crate::shared) struct Decay {
    /// Within its block, up to a token.
    before: Tensor,
    /// Within its block, behind a token.
    behind: Tensor,
    /// Of whole blocks [.., blocks, 1, K or 1].
    total: Tensor,
}

impl Decay {
    pub fn new(g: &Tensor) -> Result<Decay> {
        // Further down e^g is 0, and a longer sum would cost the digits of its neighbours.
        let floor = match g.dtype() {
            DType::F64 => -800.0,
            _ => -110.0,
        };
        let g = g.clamp(floor, f64::INFINITY)?;
        Ok(Decay {
            before: g.cumsum(-2)?,
            behind: g.rev_cumsum(-2)?.sub(&g)?,
            total: g.sum(&[-2], true)?,
        })
    }

    fn blocks(&self) -> Result<usize> {
        self.total.dim(-3)
    }

    /// Block `i` of a sum or of keys, [.., BLOCK or 1, width].
    fn block(x: &Tensor, i: usize) -> Result<Tensor> {
        x.select(-3, i)
    }

    /// The sum over whole blocks `from .. to`; `None` if there are none.
    fn between(&self, from: usize, to: usize) -> Result<Option<Tensor>> {
        (from..to).try_fold(None, |sum: Option<Tensor>, i| {
            let total = Decay::block(&self.total, i)?;
            Ok(Some(match sum {
                Some(sum) => sum.add(&total)?,
                None => total,
            }))
        })
    }

    fn decayed(x: &Tensor, exponent: &Tensor, more: Option<Tensor>) -> Result<Tensor> {
        let exponent = match more {
            Some(more) => exponent.add(&more)?,
            None => exponent.clone(),
        };
        x.mul(&exponent.exp()?)
    }

    fn each(&self, f: impl Fn(usize) -> Result<Tensor>) -> Result<Tensor> {
        let all = (0..self.blocks()?).map(f).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&all.iter().collect::<Vec<_>>(), -3)
    }

    /// e^G x, decayed from the chunk's beginning up to each token.
    pub fn since_start(&self, x: &Tensor) -> Result<Tensor> {
        self.each(|i| {
            let sum = Decay::block(&self.before, i)?;
            Decay::decayed(&Decay::block(x, i)?, &sum, self.between(0, i)?)
        })
    }

    /// e^(G_C - G) x, decayed from each token to the chunk's end.
    pub fn until_end(&self, x: &Tensor) -> Result<Tensor> {
        let n = self.blocks()?;
        self.each(|i| {
            let sum = Decay::block(&self.behind, i)?;
            Decay::decayed(&Decay::block(x, i)?, &sum, self.between(i + 1, n)?)
        })
    }

    /// e^(G_C) [B, HV, chunks, K or 1, 1]: what the chunk leaves of the state.
    pub fn whole(&self) -> Result<Tensor> {
        let all = self.total.sum(&[-3], false)?;
        all.exp()?.transpose(-1, -2)
    }

    /// x_i . e^(G_i - G_j) k_j for j <= i and 0 behind, [.., C, C], for each x.
    pub fn scores(&self, xs: &[&Tensor], k: &Tensor) -> Result<Vec<Tensor>> {
        let n = self.blocks()?;
        let own = self.own_block(xs, k)?;
        let one = |(x, own): (&&Tensor, &Tensor)| {
            let mut rows = Vec::with_capacity(n);
            for i in 0..n {
                let mut row = vec![];
                if i > 0 {
                    let left = Decay::block(x, i)?.mul(&Decay::block(&self.before, i)?.exp()?)?;
                    let mut keys = Vec::with_capacity(i);
                    for j in 0..i {
                        let sum = Decay::block(&self.behind, j)?;
                        let key = Decay::block(k, j)?;
                        keys.push(Decay::decayed(&key, &sum, self.between(j + 1, i)?)?);
                    }
                    let keys = Tensor::cat(&keys.iter().collect::<Vec<_>>(), -2)?;
                    row.push(left.matmul(&keys.transpose(-1, -2)?)?);
                }
                row.push(Decay::block(own, i)?);
                let row = Tensor::cat(&row.iter().collect::<Vec<_>>(), -1)?;
                let missing = (n - 1 - i) * BLOCK;
                rows.push(if missing > 0 {
                    row.pad(-1, 0, missing, 0.0)?
                } else {
                    row
                });
            }
            Tensor::cat(&rows.iter().collect::<Vec<_>>(), -2)
        };
        xs.iter().zip(&own).map(one).collect()
    }

    /// The same within each block, [.., blocks, BLOCK, BLOCK].
    fn own_block(&self, xs: &[&Tensor], k: &Tensor) -> Result<Vec<Tensor>> {
        // [.., BLOCK, BLOCK, K or 1]: sums over the tokens j + 1 .. i, where j <= i.
        let sums = self
            .before
            .unsqueeze(-2)?
            .sub(&self.before.unsqueeze(-3)?)?;
        let seen = Tensor::tril_mask(BLOCK, BLOCK, 0, &k.device())?.unsqueeze(-1)?;
        let zero = Tensor::zeros(&[], k.dtype(), &k.device());
        // Behind the diagonal the sums are positive: masked before the exponential as well as after it.
        let ratios = seen.where_cond(&sums, &zero)?.exp()?;
        let ratios = seen.where_cond(&ratios, &zero)?;
        if ratios.dim(-1)? == 1 {
            let (ratios, turned) = (ratios.squeeze(-1)?, k.transpose(-1, -2)?);
            return xs.iter().map(|x| x.matmul(&turned)?.mul(&ratios)).collect();
        }
        // [.., i, j, K] times x_i: one product of a row with a matrix for each token i.
        let keys = ratios.mul(&k.unsqueeze(-3)?)?.transpose(-1, -2)?;
        xs.iter()
            .map(|x| x.unsqueeze(-2)?.matmul(&keys)?.squeeze(-2))
            .collect()
    }
}
