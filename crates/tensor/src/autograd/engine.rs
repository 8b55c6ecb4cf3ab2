//! The backward run: nodes below the outputs in descending order of age, each asked once for the gradients of
//! its inputs, and only where they lead to something that was asked for.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Edge, NEXT, Node, OutputInfo, record, with_mode};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// What a [`Function`] may ask during its backward.
pub struct Context<'a> {
    node: &'a Arc<Node>,
    needs: Vec<bool>,
    pub(super) create_graph: bool,
    pub(super) strays: &'a RefCell<Vec<(Arc<Node>, Tensor)>>,
}

impl Context<'_> {
    /// Whether the gradient of input `i` is wanted.
    pub fn needs(&self, i: usize) -> bool {
        self.needs[i]
    }

    /// Whether this backward is itself being recorded (second order). A fused backward that works on plain
    /// slices must then go through [`recompute`] instead.
    pub fn create_graph(&self) -> bool {
        self.create_graph
    }

    /// Output `i` of the operation, with its history. Only for functions that keep their outputs.
    pub fn output(&self, i: usize) -> Result<Tensor> {
        let Some(kept) = &self.node.outputs[i].kept else {
            return Err(Error::Gradient(
                "output: the function does not keep its outputs".into(),
            ));
        };
        let edge = Edge {
            node: self.node.clone(),
            index: i,
        };
        Ok(kept.with_edge(self.create_graph.then_some(edge)))
    }

    /// Shape of output `i`.
    pub fn output_shape(&self, i: usize) -> &[usize] {
        &self.node.outputs[i].shape
    }
}

/// Outputs that a run starts from, with their gradients.
pub(super) type Roots = Vec<(Edge, Tensor)>;

/// Which gradients a run is asked for.
pub(super) enum Targets {
    Leaves,
    Nodes(HashSet<u64>),
}

pub(super) fn run(
    roots: Roots,
    targets: &Targets,
    stop: &HashSet<u64>,
    create_graph: bool,
) -> Result<Found> {
    // Every node below the roots, by id; then, in ascending order, whether it leads to a target.
    let mut nodes: HashMap<u64, Arc<Node>> = HashMap::new();
    let mut open: Vec<Arc<Node>> = roots.iter().map(|(e, _)| e.node.clone()).collect();
    while let Some(node) = open.pop() {
        if let Entry::Vacant(free) = nodes.entry(node.id) {
            if !stop.contains(&node.id) {
                open.extend(node.inputs.iter().flatten().map(|e| e.node.clone()));
            }
            free.insert(node);
        }
    }
    let mut order: Vec<Arc<Node>> = nodes.into_values().collect();
    order.sort_unstable_by_key(|n| n.id);
    let is_target = |n: &Node| match targets {
        Targets::Leaves => n.function.is_none() || stop.contains(&n.id),
        Targets::Nodes(ids) => ids.contains(&n.id),
    };
    let mut leads: HashSet<u64> = HashSet::new();
    for n in &order {
        let through = !stop.contains(&n.id)
            && n.inputs
                .iter()
                .flatten()
                .any(|e| leads.contains(&e.node.id));
        if through || is_target(n) || n.function.as_ref().is_some_and(|f| f.is_opaque()) {
            leads.insert(n.id);
        }
    }

    let mut found = Found(HashMap::new());
    for (edge, grad) in roots {
        found.add(&edge.node, edge.index, grad)?;
    }
    let strays = RefCell::new(Vec::new());
    for node in order.iter().rev() {
        let Some(function) = &node.function else {
            continue;
        };
        if stop.contains(&node.id) || !leads.contains(&node.id) {
            continue;
        }
        let grads = if is_target(node) {
            found.0.get(&node.id).cloned()
        } else {
            found.0.remove(&node.id)
        };
        let Some(grads) = grads else { continue };
        let needs = node
            .inputs
            .iter()
            .map(|e| e.as_ref().is_some_and(|e| leads.contains(&e.node.id)))
            .collect();
        let ctx = Context {
            node,
            needs,
            create_graph,
            strays: &strays,
        };
        let back = with_mode(create_graph, || function.backward(&ctx, &grads))?;
        drop(grads);
        if back.len() != node.inputs.len() {
            let (name, got, want) = (function.name(), back.len(), node.inputs.len());
            return Err(Error::Gradient(format!(
                "{name} gave {got} gradients for {want} inputs"
            )));
        }
        for (i, (edge, grad)) in node.inputs.iter().zip(back).enumerate() {
            if let (Some(edge), Some(grad), true) = (edge, grad, ctx.needs[i]) {
                let want = &edge.node.outputs[edge.index];
                if grad.shape() != want.shape || grad.dtype() != want.dtype {
                    return Err(Error::Gradient(format!(
                        "{} gave a gradient of shape {:?} {} for input {i} of shape {:?} {}",
                        function.name(),
                        grad.shape(),
                        grad.dtype(),
                        want.shape,
                        want.dtype
                    )));
                }
                found.add(&edge.node, edge.index, grad)?;
            }
        }
        for (leaf, grad) in strays.borrow_mut().drain(..) {
            found.add(&leaf, 0, grad)?;
        }
    }
    Ok(found)
}

/// Gradients by node and output.
pub(super) struct Found(pub(super) HashMap<u64, Vec<Option<Tensor>>>);

impl Found {
    fn add(&mut self, node: &Node, index: usize, grad: Tensor) -> Result<()> {
        let slots = self
            .0
            .entry(node.id)
            .or_insert_with(|| vec![None; node.outputs.len()]);
        slots[index] = Some(match slots[index].take() {
            Some(sum) => sum.accumulate(&grad)?,
            None => grad,
        });
        Ok(())
    }

    pub(super) fn get(&self, edge: &Edge) -> Option<Tensor> {
        self.0
            .get(&edge.node.id)
            .and_then(|g| g[edge.index].clone())
    }
}

fn roots(outputs: &[&Tensor], grads: Option<&[Tensor]>) -> Result<Roots> {
    let mut roots = Vec::new();
    for (i, t) in outputs.iter().enumerate() {
        let Some(edge) = t.edge() else { continue };
        let grad = match grads {
            Some(g) if g[i].shape() == t.shape() => g[i].to_dtype(t.dtype())?,
            Some(g) => {
                let (a, b) = (g[i].shape(), t.shape());
                return Err(Error::Gradient(format!(
                    "gradient {i} has shape {a:?}, its output {b:?}"
                )));
            }
            None if t.count() == 1 => t.ones_like(),
            None => {
                let s = t.shape();
                return Err(Error::Gradient(format!(
                    "output {i} has shape {s:?}: give its gradient, or sum it first"
                )));
            }
        };
        roots.push((edge.clone(), grad));
    }
    if roots.is_empty() {
        return Err(Error::Gradient(
            "no output depends on a tensor that needs a gradient".into(),
        ));
    }
    Ok(roots)
}

/// Gradients of `outputs` (weighted by `grad_outputs`, or of one-element outputs) with respect to `inputs`;
/// `None` where an input has no influence. With `create_graph` the gradients can be differentiated again.
pub fn grad(
    outputs: &[&Tensor],
    grad_outputs: Option<&[Tensor]>,
    inputs: &[&Tensor],
    create_graph: bool,
) -> Result<Vec<Option<Tensor>>> {
    let ids = inputs.iter().map(|t| match t.edge() {
        Some(e) => Ok(e.node.id),
        None => Err(Error::Gradient(format!(
            "an input of shape {:?} does not need a gradient",
            t.shape()
        ))),
    });
    let targets = Targets::Nodes(ids.collect::<Result<_>>()?);
    let found = run(
        roots(outputs, grad_outputs)?,
        &targets,
        &HashSet::new(),
        create_graph,
    )?;
    Ok(inputs
        .iter()
        .map(|t| t.edge().and_then(|e| found.get(e)))
        .collect())
}

/// Gradients of all leaves, from [`Tensor::backward`].
pub struct Gradients(Found);

impl Gradients {
    /// The gradient of a leaf, if it had influence.
    pub fn get(&self, leaf: &Tensor) -> Option<Tensor> {
        leaf.edge().and_then(|e| self.0.get(e))
    }

    /// Take the gradient of a leaf out, so that its memory can be reused.
    pub fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        leaf.edge()
            .and_then(|e| self.0.0.remove(&e.node.id))
            .and_then(|mut g| g.remove(0))
    }
}

impl Tensor {
    /// This value as a leaf: a new tensor whose gradient can be asked for. Only for float dtypes.
    pub fn requires_grad(&self) -> Result<Tensor> {
        crate::tensor::need_float("requires_grad", self)?;
        let info = OutputInfo {
            shape: self.shape().to_vec(),
            dtype: self.dtype(),
            kept: None,
        };
        let id = NEXT.fetch_add(1, Relaxed);
        let node = Arc::new(Node {
            id,
            function: None,
            inputs: vec![],
            outputs: vec![info],
        });
        Ok(self.with_edge(Some(Edge { node, index: 0 })))
    }

    /// Whether a gradient can flow through this tensor.
    pub fn is_tracked(&self) -> bool {
        self.edge().is_some()
    }

    /// The value without its history.
    pub fn detach(&self) -> Tensor {
        if self.is_tracked() {
            self.with_edge(None)
        } else {
            self.clone()
        }
    }

    /// Gradients of this one-element tensor with respect to every leaf it depends on.
    pub fn backward(&self) -> Result<Gradients> {
        Ok(Gradients(run(
            roots(&[self], None)?,
            &Targets::Leaves,
            &HashSet::new(),
            false,
        )?))
    }

    /// The same value behind a node of its own, at which a nested run can stop.
    pub(super) fn alias(&self) -> Tensor {
        record("alias", [self], self.detach(), |g, _| Ok([Some(g.clone())]))
    }
}
