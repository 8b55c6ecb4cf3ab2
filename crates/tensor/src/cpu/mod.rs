//! CPU kernels. Those in this folder implement the primitives of [`crate::storage::Storage`]; [`gemm`],
//! [`simd`], [`math`] and [`parallel`] are the tools that kernels of other crates use too.

pub mod copy;
pub mod elementwise;
pub mod fused;
pub mod gemm;
pub mod index;
pub mod linalg;
pub mod linear;
pub mod math;
pub mod matmul;
pub mod parallel;
pub mod reduce;
pub mod scan;
pub mod simd;
pub mod softmax;
pub mod sort;

/// Elementwise functions of one operand.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum UnaryOp {
    Abs,
    Sign,
    Floor,
    Round,
    Exp,
    Ln,
    Sin,
    Cos,
    Sqrt,
    Rsqrt,
    Recip,
    Square,
    Powf(f64),
    Sigmoid,
    Tanh,
    Silu,
    Relu,
    Softplus,
    Erf,
    Clamp(f64, f64),
}

/// Elementwise functions of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Maximum,
    Minimum,
}

/// Elementwise comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
}

/// Reductions of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReduceOp {
    Sum,
    Max,
    Min,
    ArgMax,
    ArgMin,
}

/// Running reductions along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ScanOp {
    Sum,
    Max,
}
