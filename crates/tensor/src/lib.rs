//! Weft's tensors: immutable n-dimensional arrays with strided views, reverse-mode gradients of any order,
//! and CPU kernels that use every core and the widest vectors of the machine.
//!
//! Knows nothing of models. Operations are methods of [`Tensor`] (see `ops/`), each a primitive of
//! [`storage::Storage`] with a way back written in the same operations; fused ones bring their own.

pub mod cpu;
pub mod cuda;
pub mod fuse;
pub mod layout;
pub mod memory;
pub mod ops;
pub mod storage;

mod autograd;
mod dtype;
mod error;
mod random;
mod storage_fused;
mod tensor;

pub use autograd::{
    Context, Function, Gradients, apply, checkpoint, grad, grad_enabled, no_grad, recompute,
};
pub use cpu::gemm;
pub use cpu::parallel::in_pool;
pub use dtype::{DType, Element, Real};
pub use error::{Error, Result};
pub use half::bf16;
pub use memory::Buffer;
pub use random::Rng;
pub use storage::{Device, Stored};
pub use tensor::Tensor;
