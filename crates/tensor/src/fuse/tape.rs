//! Elementwise expressions as a list of operations, each on results of earlier ones. Equal operations are one entry, so
//! what an expression and its derivative share is computed once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::rc::Rc;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// -x
    Neg,
    /// e^x
    Exp,
    /// ln x
    Ln,
    /// The square root.
    Sqrt,
    /// 1 / x
    Recip,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// ln(1 + e^x)
    Softplus,
    /// |x|
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// 1 where x >= 0, else 0.
    NotNegative,
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a b
    Mul,
    /// a / b
    Div,
    /// The larger one.
    Max,
    /// The smaller one.
    Min,
}

/// An entry: numbers are those of earlier entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// An input.
    Input(usize),
    /// A constant, by its bits as f64.
    Const(u64),
    /// A function of one entry.
    Unary(Unary, usize),
    /// A function of two.
    Binary(Binary, usize, usize),
}

/// Expressions over `inputs` inputs; `outputs` are the entries that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tape {
    /// How many inputs there are, used or not.
    pub inputs: usize,
    /// All entries.
    pub ops: Vec<Op>,
    /// What is asked for.
    pub outputs: Vec<usize>,
}

impl Tape {
    /// The expression that `f` makes of its inputs.
    pub fn of(inputs: usize, f: impl FnOnce(&[Expr]) -> Expr) -> Tape {
        let builder = Builder::new(inputs);
        let output = f(&builder.inputs()).at;
        builder.finish(vec![output])
    }

    /// From the inputs of this tape and then the gradients of some of its outputs to the gradients of the inputs
    /// `wanted`.
    pub fn derivative(&self, outputs: &[usize], wanted: &[usize]) -> Tape {
        let builder = Builder::new(self.inputs + outputs.len());
        let inputs = builder.inputs();
        let mut values: Vec<Expr> = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            values.push(match *op {
                Op::Input(i) => inputs[i].clone(),
                Op::Const(bits) => builder.constant(f64::from_bits(bits)),
                Op::Unary(f, a) => values[a].unary(f),
                Op::Binary(f, a, b) => values[a].binary(f, &values[b]),
            });
        }
        let mut grads: Vec<Option<Expr>> = vec![None; self.ops.len()];
        let add = |to: &mut Option<Expr>, g: Expr| {
            *to = Some(match to.take() {
                Some(sum) => sum + g,
                None => g,
            });
        };
        for (i, &output) in outputs.iter().enumerate() {
            let g = inputs[self.inputs + i].clone();
            add(&mut grads[self.outputs[output]], g);
        }
        let zero = builder.constant(0.0);
        let mut found = vec![zero; self.inputs];
        for (at, op) in self.ops.iter().enumerate().rev() {
            let Some(g) = grads[at].take() else { continue };
            let y = &values[at];
            match *op {
                Op::Const(_) => {}
                Op::Input(i) => found[i] = g,
                Op::Unary(f, a) => {
                    let x = &values[a];
                    if let Some(slope) = slope(f, x, y) {
                        add(&mut grads[a], g * slope);
                    }
                }
                Op::Binary(f, a, b) => {
                    let (p, q) = (&values[a], &values[b]);
                    let (da, db) = match f {
                        Binary::Add => (g.clone(), g),
                        Binary::Sub => (g.clone(), -g),
                        Binary::Mul => (g.clone() * q.clone(), g * p.clone()),
                        Binary::Div => {
                            let da = g / q.clone();
                            (da.clone(), -(da * y.clone()))
                        }
                        // Where both are equal the gradient goes to the left one.
                        Binary::Max | Binary::Min => {
                            let ahead = match f {
                                Binary::Max => p.clone() - q.clone(),
                                _ => q.clone() - p.clone(),
                            };
                            let left = ahead.unary(Unary::NotNegative);
                            let da = g.clone() * left;
                            (da.clone(), g - da)
                        }
                    };
                    add(&mut grads[a], da);
                    add(&mut grads[b], db);
                }
            }
        }
        builder.finish(wanted.iter().map(|&i| found[i].at).collect())
    }
}

/// dy/dx of a function y of x; `None` where it is 0.
fn slope(f: Unary, x: &Expr, y: &Expr) -> Option<Expr> {
    let (x, y) = (x.clone(), y.clone());
    Some(match f {
        Unary::Neg => y.constant(-1.0),
        Unary::Exp => y,
        Unary::Ln => x.recip(),
        Unary::Sqrt => y.recip() * 0.5,
        Unary::Recip => -(y.clone() * y),
        Unary::Sigmoid => y.clone() - y.clone() * y,
        Unary::Tanh => y.constant(1.0) - y.clone() * y,
        Unary::Softplus => x.sigmoid(),
        Unary::Abs => x.unary(Unary::Sign),
        Unary::Sign | Unary::NotNegative => return None,
    })
}

/// Entries that are being gathered.
#[derive(Default)]
struct Builder(Rc<RefCell<Entries>>);

#[derive(Default)]
struct Entries {
    tape: Tape,
    known: HashMap<Op, usize>,
}

impl Builder {
    fn new(inputs: usize) -> Builder {
        let builder = Builder::default();
        builder.0.borrow_mut().tape.inputs = inputs;
        builder
    }

    fn push(&self, op: Op) -> Expr {
        let mut entries = self.0.borrow_mut();
        let next = entries.tape.ops.len();
        let at = *entries.known.entry(op).or_insert(next);
        if at == next {
            entries.tape.ops.push(op);
        }
        Expr {
            builder: Builder(self.0.clone()),
            at,
        }
    }

    fn inputs(&self) -> Vec<Expr> {
        let count = self.0.borrow().tape.inputs;
        (0..count).map(|i| self.push(Op::Input(i))).collect()
    }

    fn constant(&self, value: f64) -> Expr {
        self.push(Op::Const(value.to_bits()))
    }

    /// The entries that the outputs need.
    fn finish(&self, outputs: Vec<usize>) -> Tape {
        let entries = self.0.borrow();
        let ops = &entries.tape.ops;
        let mut needed = vec![false; ops.len()];
        outputs.iter().for_each(|&at| needed[at] = true);
        for at in (0..ops.len()).rev() {
            if needed[at] {
                match ops[at] {
                    Op::Unary(_, a) => needed[a] = true,
                    Op::Binary(_, a, b) => (needed[a], needed[b]) = (true, true),
                    Op::Input(_) | Op::Const(_) => {}
                }
            }
        }
        let mut place = vec![0; ops.len()];
        let mut tape = Tape {
            inputs: entries.tape.inputs,
            ..Tape::default()
        };
        for (at, op) in ops.iter().enumerate().filter(|&(at, _)| needed[at]) {
            place[at] = tape.ops.len();
            tape.ops.push(match *op {
                Op::Unary(f, a) => Op::Unary(f, place[a]),
                Op::Binary(f, a, b) => Op::Binary(f, place[a], place[b]),
                other => other,
            });
        }
        tape.outputs = outputs.iter().map(|&at| place[at]).collect();
        tape
    }
}

/// A number that an expression makes for every element.
pub struct Expr {
    builder: Builder,
    at: usize,
}

impl Clone for Expr {
    fn clone(&self) -> Expr {
        Expr {
            builder: Builder(self.builder.0.clone()),
            at: self.at,
        }
    }
}

impl Expr {
    fn op(&self) -> Op {
        self.builder.0.borrow().tape.ops[self.at]
    }

    /// A constant beside this expression.
    pub fn constant(&self, value: f64) -> Expr {
        self.builder.constant(value)
    }

    fn unary(&self, f: Unary) -> Expr {
        self.builder.push(Op::Unary(f, self.at))
    }

    fn binary(&self, f: Binary, other: &Expr) -> Expr {
        let is = |e: &Expr, v: f64| e.op() == Op::Const(v.to_bits());
        match f {
            Binary::Mul if is(self, 1.0) => return other.clone(),
            Binary::Mul | Binary::Div if is(other, 1.0) => return self.clone(),
            Binary::Add if is(self, 0.0) => return other.clone(),
            Binary::Add | Binary::Sub if is(other, 0.0) => return self.clone(),
            _ => {}
        }
        self.builder.push(Op::Binary(f, self.at, other.at))
    }

    /// e^x
    pub fn exp(&self) -> Expr {
        self.unary(Unary::Exp)
    }
    /// Natural logarithm.
    pub fn ln(&self) -> Expr {
        self.unary(Unary::Ln)
    }
    /// Square root.
    pub fn sqrt(&self) -> Expr {
        self.unary(Unary::Sqrt)
    }
    /// 1 / x
    pub fn recip(&self) -> Expr {
        self.unary(Unary::Recip)
    }
    /// 1 / (1 + e^-x)
    pub fn sigmoid(&self) -> Expr {
        self.unary(Unary::Sigmoid)
    }
    /// x sigmoid(x)
    pub fn silu(&self) -> Expr {
        self.clone() * self.sigmoid()
    }
    /// Hyperbolic tangent.
    pub fn tanh(&self) -> Expr {
        self.unary(Unary::Tanh)
    }
    /// ln(1 + e^x)
    pub fn softplus(&self) -> Expr {
        self.unary(Unary::Softplus)
    }
    /// |x|
    pub fn abs(&self) -> Expr {
        self.unary(Unary::Abs)
    }
    /// The larger of two.
    pub fn max(&self, other: &Expr) -> Expr {
        self.binary(Binary::Max, other)
    }
    /// The smaller of two.
    pub fn min(&self, other: &Expr) -> Expr {
        self.binary(Binary::Min, other)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:ident) => {
        impl $trait for Expr {
            type Output = Expr;
            fn $method(self, other: Expr) -> Expr {
                self.binary(Binary::$op, &other)
            }
        }
        impl $trait<f64> for Expr {
            type Output = Expr;
            fn $method(self, other: f64) -> Expr {
                let other = self.constant(other);
                self.binary(Binary::$op, &other)
            }
        }
    };
}
operator!(Add, add, Add);
operator!(Sub, sub, Sub);
operator!(Mul, mul, Mul);
operator!(Div, div, Div);

impl Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        self.unary(Unary::Neg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_parts_are_one_entry_and_unused_ones_none() {
        let tape = Tape::of(3, |x| {
            let unused = x[2].exp();
            drop(unused);
            x[0].sigmoid() * x[0].sigmoid() + x[1].clone() * 1.0
        });
        assert_eq!(tape.ops.len(), 5, "{tape:?}");
        assert_eq!(tape.outputs, [4]);
        let back = tape.derivative(&[0], &[1]);
        assert_eq!((back.inputs, back.ops.len()), (4, 1), "{back:?}");
    }
}
