//! The short convolution in front of a recurrence: depthwise, causal, then SiLU, over all its inputs alike.
//!
//! Its state is the last `taps - 1` inputs [B, taps - 1, C]; a row with padding keeps the last valid ones.

use weft_tensor::Tensor;

use crate::error::Result;
use crate::mixer::Call;
use crate::params::{Init, Param, Scope};

/// Weights [C, 1, taps], in one parameter or one for each of q, k and v.
pub struct ShortConv {
    pub(super) weights: Vec<Param>,
    /// [C]
    bias: Option<Param>,
    /// C.
    pub channels: usize,
    /// Inputs that an output sees.
    pub taps: usize,
}

impl ShortConv {
    /// Convolutions `(name, channels)`, one after the other along the channels.
    pub fn new(scope: &mut Scope, parts: &[(&str, usize)], taps: usize) -> Result<ShortConv> {
        let weight = |&(name, channels): &(&str, usize)| {
            scope
                .sub(name)
                .weight("weight", &[channels, 1, taps], Init::FanIn { gain: 1.0 })
        };
        let weights = parts.iter().map(weight).collect::<Result<_>>()?;
        Ok(ShortConv {
            weights,
            bias: None,
            channels: parts.iter().map(|p| p.1).sum(),
            taps,
        })
    }

    /// One convolution with a bias, as in Mamba.
    pub fn with_bias(
        scope: &mut Scope,
        name: &str,
        channels: usize,
        taps: usize,
    ) -> Result<ShortConv> {
        let conv = ShortConv::new(scope, &[(name, channels)], taps)?;
        let bias = scope
            .sub(name)
            .vector("bias", &[channels], Init::Const(0.0))?;
        Ok(ShortConv {
            bias: Some(bias),
            ..conv
        })
    }

    /// x [B, T, C] with the inputs before it [B, taps - 1, C]: outputs [B, T, C] and the new last inputs.
    pub fn forward(&self, x: &Tensor, before: &Tensor, call: &Call) -> Result<(Tensor, Tensor)> {
        let weights = self
            .weights
            .iter()
            .map(|w| w.cast(x.dtype()))
            .collect::<Result<Vec<_>>>()?;
        let weight = Tensor::cat(&weights.iter().collect::<Vec<_>>(), 0)?;
        let inputs = Tensor::cat(&[&before.to_dtype(x.dtype())?, x], 1)?;
        let weight = weight.reshape(&[self.channels, self.taps])?;
        let y = match &self.bias {
            None => inputs.conv1d_silu(&weight)?,
            Some(bias) => inputs
                .conv1d_depthwise(&weight)?
                .add(&bias.cast(x.dtype())?)?
                .silu()?,
        };
        Ok((y, self.last_inputs(&inputs, call)?))
    }

    /// Rows of `inputs` [B, taps - 1 + T, C] that precede the next token.
    fn last_inputs(&self, inputs: &Tensor, call: &Call) -> Result<Tensor> {
        let ([b, length, c], tail) = (inputs.dims()?, self.taps - 1);
        let Some(lengths) = call.lengths else {
            return Ok(inputs.narrow(1, length - tail, tail)?.contiguous()?);
        };
        let rows = lengths.iter().enumerate();
        let index: Vec<i64> = rows
            .flat_map(|(row, n)| (0..tail).map(move |i| (row * length + n + i) as i64))
            .collect();
        let index = Tensor::from_vec(index, &[b * tail], &inputs.device())?;
        Ok(inputs
            .reshape(&[b * length, c])?
            .index_select(0, &index)?
            .reshape(&[b, tail, c])?)
    }
}
