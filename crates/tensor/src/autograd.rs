//! Reverse-mode differentiation. A tensor that needs a gradient carries an [`Edge`]: the node that made it
//! and which of the node's outputs it is. A node holds a [`Function`], whose `backward` maps gradients of the
//! outputs to gradients of the inputs. Backward code is written with ordinary tensor operations, so with
//! `create_graph` it records a graph of its own: gradients of gradients, gradients inside a forward.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// An operation's way back.
pub trait Function: Send + Sync {
    /// The operation's name, for messages.
    fn name(&self) -> &'static str;

    /// Gradients of the inputs (in the order given to [`apply`]) from gradients of the outputs. `None` stands
    /// for zero in both. Entries for which [`Context::needs`] is false may be skipped (given as `None`).
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>>;

    /// Whether `backward` reads the outputs through [`Context::output`].
    fn keeps_outputs(&self) -> bool {
        false
    }

    /// Whether gradients may flow to tensors that are not among the inputs (a checkpointed closure's captures).
    fn is_opaque(&self) -> bool {
        false
    }
}

/// Where a tensor came from.
#[derive(Clone)]
pub(crate) struct Edge {
    node: Arc<Node>,
    index: usize,
}

struct OutputInfo {
    shape: Vec<usize>,
    dtype: DType,
    /// The value without its history; putting the history back needs the node, so there is no cycle.
    kept: Option<Tensor>,
}

struct Node {
    /// Grows with time: an input's id is smaller than its consumer's, so descending order is topological.
    id: u64,
    /// `None` for a leaf.
    function: Option<Box<dyn Function>>,
    inputs: Vec<Option<Edge>>,
    outputs: Vec<OutputInfo>,
}

type Garbage = (Option<Box<dyn Function>>, Vec<Option<Edge>>);

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(true) };
    static DROPPING: RefCell<Option<Vec<Garbage>>> = const { RefCell::new(None) };
}
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Drop for Node {
    /// A graph is dropped by a loop: recursion would overflow the stack on a recurrence of many steps.
    fn drop(&mut self) {
        let mine = (self.function.take(), std::mem::take(&mut self.inputs));
        let first = DROPPING.try_with(|d| match &mut *d.borrow_mut() {
            Some(queue) => {
                queue.push(mine);
                false
            }
            none => {
                *none = Some(vec![mine]);
                true
            }
        });
        if first == Ok(true) {
            while let Ok(Some(garbage)) =
                DROPPING.try_with(|d| d.borrow_mut().as_mut().and_then(Vec::pop))
            {
                drop(garbage);
            }
            let _ = DROPPING.try_with(|d| *d.borrow_mut() = None);
        }
    }
}

struct Restore(bool);
impl Drop for Restore {
    fn drop(&mut self) {
        ENABLED.with(|e| e.set(self.0));
    }
}

fn with_mode<R>(enabled: bool, f: impl FnOnce() -> R) -> R {
    let _restore = Restore(ENABLED.with(|e| e.replace(enabled)));
    f()
}

/// Run `f` without recording a graph.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    with_mode(false, f)
}

/// Whether operations on this thread record a graph.
pub fn grad_enabled() -> bool {
    ENABLED.with(Cell::get)
}

/// Attach outputs, computed by any means, to the graph: `function` will send their gradients to `inputs`.
/// Without an input that needs a gradient, or inside [`no_grad`], the outputs come back as they are.
pub fn apply(
    function: impl Function + 'static,
    inputs: &[&Tensor],
    outputs: Vec<Tensor>,
) -> Vec<Tensor> {
    if !grad_enabled() || !(function.is_opaque() || inputs.iter().any(|t| t.edge().is_some())) {
        return outputs;
    }
    let keep = function.keeps_outputs();
    let info = |t: &Tensor| OutputInfo {
        shape: t.shape().to_vec(),
        dtype: t.dtype(),
        kept: keep.then(|| t.clone()),
    };
    let node = Arc::new(Node {
        id: NEXT.fetch_add(1, Relaxed),
        function: Some(Box::new(function)),
        inputs: inputs.iter().map(|t| t.edge().cloned()).collect(),
        outputs: outputs.iter().map(info).collect(),
    });
    let attach = |(index, t): (usize, Tensor)| {
        if t.dtype().is_float() {
            t.with_edge(Some(Edge {
                node: node.clone(),
                index,
            }))
        } else {
            t
        }
    };
    outputs.into_iter().enumerate().map(attach).collect()
}

/// A primitive: one output, its way back a closure from the output's gradient to the inputs' gradients.
struct Primitive<F> {
    name: &'static str,
    keeps_output: bool,
    backward: F,
}

impl<F, const N: usize> Function for Primitive<F>
where
    F: Fn(&Tensor, &Context) -> Result<[Option<Tensor>; N]> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }
    fn keeps_outputs(&self) -> bool {
        self.keeps_output
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        match &grads[0] {
            Some(g) => Ok((self.backward)(g, ctx)?.into()),
            None => Ok(vec![None; N]),
        }
    }
}

/// Attach the only output of a primitive to the graph.
pub(crate) fn record<const N: usize>(
    name: &'static str,
    inputs: [&Tensor; N],
    output: Tensor,
    backward: impl Fn(&Tensor, &Context) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Tensor {
    let f = Primitive {
        name,
        keeps_output: false,
        backward,
    };
    apply(f, &inputs, vec![output]).remove(0)
}

/// Like [`record`], for a way back that reads the output (`ctx.output(0)`).
pub(crate) fn record_with_output<const N: usize>(
    name: &'static str,
    inputs: [&Tensor; N],
    output: Tensor,
    backward: impl Fn(&Tensor, &Context) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Tensor {
    let f = Primitive {
        name,
        keeps_output: true,
        backward,
    };
    apply(f, &inputs, vec![output]).remove(0)
}

/// What a [`Function`] may ask during its backward.
pub struct Context<'a> {
    node: &'a Arc<Node>,
    needs: Vec<bool>,
    create_graph: bool,
    strays: &'a RefCell<Vec<(Arc<Node>, Tensor)>>,
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
type Roots = Vec<(Edge, Tensor)>;

/// Which gradients a run is asked for.
enum Targets {
    Leaves,
    Nodes(HashSet<u64>),
}

fn run(roots: Roots, targets: &Targets, stop: &HashSet<u64>, create_graph: bool) -> Result<Found> {
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
struct Found(HashMap<u64, Vec<Option<Tensor>>>);

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

    fn get(&self, edge: &Edge) -> Option<Tensor> {
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
    fn alias(&self) -> Tensor {
        record("alias", [self], self.detach(), |g, _| Ok([Some(g.clone())]))
    }
}

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
                (false, _) => Ok(t.detach()),
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

struct Checkpoint<F> {
    inputs: Vec<Tensor>,
    f: F,
}

impl<F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync> Function for Checkpoint<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }
    fn is_opaque(&self) -> bool {
        true
    }
    fn backward(&self, ctx: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let (fresh, roots) = nested(ctx, &inputs, grads, &self.f)?;
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
pub fn checkpoint(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Result<Vec<Tensor>> {
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let outputs = no_grad(|| f(&detached))?;
    let kept = inputs.iter().map(|&t| t.clone()).collect();
    Ok(apply(Checkpoint { inputs: kept, f }, inputs, outputs))
}
