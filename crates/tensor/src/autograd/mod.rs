//! Reverse-mode differentiation. A tensor that needs a gradient carries an [`Edge`]: the node that made it
//! and which of the node's outputs it is. A node holds a [`Function`], whose `backward` maps gradients of the
//! outputs to gradients of the inputs. Backward code is written with ordinary tensor operations, so with
//! `create_graph` it records a graph of its own: gradients of gradients, gradients inside a forward.

mod checkpoint;
mod engine;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

pub use checkpoint::{checkpoint, recompute};
pub use engine::{Context, Gradients, grad};

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
pub fn apply<const N: usize>(
    function: impl Function + 'static,
    inputs: &[&Tensor],
    outputs: [Tensor; N],
) -> [Tensor; N] {
    let node = node(function, inputs, &outputs);
    let mut index = 0..;
    outputs.map(|t| attach(node.as_ref(), index.next().unwrap_or(0), t))
}

/// [`apply`] for a number of outputs that is known when it runs.
pub(crate) fn apply_all(
    function: impl Function + 'static,
    inputs: &[&Tensor],
    outputs: Vec<Tensor>,
) -> Vec<Tensor> {
    let node = node(function, inputs, &outputs);
    let outputs = outputs.into_iter().enumerate();
    outputs.map(|(i, t)| attach(node.as_ref(), i, t)).collect()
}

/// The node of a function, if gradients are to flow through it.
fn node(
    function: impl Function + 'static,
    inputs: &[&Tensor],
    outputs: &[Tensor],
) -> Option<Arc<Node>> {
    if !grad_enabled() || !(function.is_opaque() || inputs.iter().any(|t| t.edge().is_some())) {
        return None;
    }
    let keep = function.keeps_outputs();
    let info = |t: &Tensor| OutputInfo {
        shape: t.shape().to_vec(),
        dtype: t.dtype(),
        kept: keep.then(|| t.clone()),
    };
    Some(Arc::new(Node {
        id: NEXT.fetch_add(1, Relaxed),
        function: Some(Box::new(function)),
        inputs: inputs.iter().map(|t| t.edge().cloned()).collect(),
        outputs: outputs.iter().map(info).collect(),
    }))
}

fn attach(node: Option<&Arc<Node>>, index: usize, t: Tensor) -> Tensor {
    match node {
        Some(node) if t.dtype().is_float() => t.with_edge(Some(Edge {
            node: node.clone(),
            index,
        })),
        _ => t,
    }
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
    let [output] = apply(f, &inputs, [output]);
    output
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
    let [output] = apply(f, &inputs, [output]);
    output
}
