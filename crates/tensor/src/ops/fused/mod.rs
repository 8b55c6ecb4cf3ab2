//! Fused operations: one pass forward and one back where the plain composition would make many. Each keeps
//! its plain form beside it, which is what second-order gradients are taken through.

mod cross_entropy;
mod gated;
mod linear_cross_entropy;
mod norm;
mod short_conv;

use crate::autograd::{Context, Function, apply, recompute};
use crate::error::Result;
use crate::tensor::Tensor;

/// A fused operation of one output in the graph.
struct Fused<P, B> {
    name: &'static str,
    inputs: Vec<Tensor>,
    plain: P,
    backward: B,
}

impl<P, B> Function for Fused<P, B>
where
    P: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync,
    B: Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let Some(g) = &grads[0] else {
            return Ok(vec![None; self.inputs.len()]);
        };
        if ctx.create_graph() {
            let inputs: Vec<&Tensor> = self.inputs.iter().collect();
            return recompute(ctx, &inputs, grads, |x| Ok(vec![(self.plain)(x)?]));
        }
        Ok((self.backward)(&self.inputs, &g.contiguous()?)?
            .into_iter()
            .map(Some)
            .collect())
    }
}

/// Attach `output` to the graph: `backward` is the fused way back, `plain` the composition that second-order
/// gradients go through.
fn fused(
    name: &'static str,
    inputs: &[&Tensor],
    output: Tensor,
    plain: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    backward: impl Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Tensor {
    let kept = inputs.iter().map(|&t| t.clone()).collect();
    let [output] = apply(
        Fused {
            name,
            inputs: kept,
            plain,
            backward,
        },
        inputs,
        [output],
    );
    output
}
