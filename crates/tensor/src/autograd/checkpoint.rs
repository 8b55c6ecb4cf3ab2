//! Running a part of the forward again during the backward: for second-order gradients of fused operations,
//! and to trade memory for time.

use std::collections::HashSet;
use std::sync::Arc;

use super::engine::{Context, Roots, Targets, run};
use super::{Edge, Function, Node, apply, no_grad, with_mode};
use crate::error::Result;
use crate::tensor::Tensor;

/// The way back of a fused operation in second order: run its plain form `f` on the inputs under the graph
/// and differentiate that. `inputs` are the tensors given to [`apply`], with their history.
pub fn recompute(
    ctx: &Context,
    inputs: &[&Tensor],
    grads: &[Option<Tensor>],
    f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let (fresh, roots) = nested(ctx, inputs, grads, f)?;
    let wanted: Vec<&Tensor> = fresh.iter().filter(|t| t.is_tracked()).collect();
    let ids: HashSet<u64> = wanted
        .iter()
        .filter_map(|t| t.edge())
        .map(|e| e.node.id)
        .collect();
    if roots.is_empty() {
        return Ok(vec![None; inputs.len()]);
    }
    let found = run(roots, &Targets::Nodes(ids.clone()), &ids, ctx.create_graph)?;
    Ok(fresh
        .iter()
        .map(|t| t.edge().and_then(|e| found.get(e)))
        .collect())
}

/// Run `f` on fresh inputs under the graph: the fresh inputs, and the roots of a nested backward.
fn nested(
    ctx: &Context,
    inputs: &[&Tensor],
    grads: &[Option<Tensor>],
    f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<(Vec<Tensor>, Roots)> {
    with_mode(true, || {
        let fresh = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| match (ctx.needs(i), ctx.create_graph) {
                (false, false) => Ok(t.detach()),
                // Not asked for now, but the gradient still depends on it in the next order.
                (false, true) => Ok((*t).clone()),
                (true, true) => Ok(t.alias()),
                (true, false) => t.detach().requires_grad(),
            })
            .collect::<Result<Vec<_>>>()?;
        let outputs = f(&fresh)?;
        let pair = |(t, g): (&Tensor, &Option<Tensor>)| Some((t.edge()?.clone(), g.clone()?));
        let roots = outputs.iter().zip(grads).filter_map(pair).collect();
        Ok((fresh, roots))
    })
}

struct Checkpoint<const N: usize, F> {
    inputs: Vec<Tensor>,
    f: F,
}

impl<const N: usize, F> Function for Checkpoint<N, F>
where
    F: Fn(&[Tensor]) -> Result<[Tensor; N]> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "checkpoint"
    }
    fn is_opaque(&self) -> bool {
        true
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let (fresh, roots) = nested(ctx, &inputs, grads, |x| (self.f)(x).map(Vec::from))?;
        if roots.is_empty() {
            return Ok(vec![None; inputs.len()]);
        }
        let seeds: HashSet<u64> = roots.iter().map(|(e, _)| e.node.id).collect();
        let leaves = leaves_below(&roots);
        let stop = fresh
            .iter()
            .filter_map(|t| t.edge())
            .map(|e| e.node.id)
            .collect();
        let found = run(roots, &Targets::Leaves, &stop, ctx.create_graph)?;
        for leaf in leaves
            .into_iter()
            .filter(|l| !stop.contains(&l.id) && !seeds.contains(&l.id))
        {
            if let Some(g) = found.0.get(&leaf.id).and_then(|g| g[0].clone()) {
                ctx.strays.borrow_mut().push((leaf, g));
            }
        }
        Ok(fresh
            .iter()
            .map(|t| t.edge().and_then(|e| found.get(e)))
            .collect())
    }
}

fn leaves_below(roots: &[(Edge, Tensor)]) -> Vec<Arc<Node>> {
    let (mut seen, mut leaves) = (HashSet::new(), Vec::new());
    let mut open: Vec<Arc<Node>> = roots.iter().map(|(e, _)| e.node.clone()).collect();
    while let Some(node) = open.pop() {
        if seen.insert(node.id) {
            open.extend(node.inputs.iter().flatten().map(|e| e.node.clone()));
            if node.function.is_none() {
                leaves.push(node);
            }
        }
    }
    leaves
}

/// Activation checkpointing: run `f` without keeping its intermediate values, and run it again when its
/// gradient is asked for. `f` must be a pure function of `inputs` and of captured leaves (parameters).
pub fn checkpoint<const N: usize>(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<[Tensor; N]> + Send + Sync + 'static,
) -> Result<[Tensor; N]> {
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let outputs = no_grad(|| f(&detached))?;
    let kept = inputs.iter().map(|&t| t.clone()).collect();
    Ok(apply(Checkpoint { inputs: kept, f }, inputs, outputs))
}
