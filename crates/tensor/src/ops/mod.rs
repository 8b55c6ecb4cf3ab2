//! The operations: methods of [`crate::Tensor`], by kind. Each computes through one primitive of
//! [`crate::storage::Storage`] and records a way back that is written with the same operations.

mod compare;
mod conv;
mod elementwise;
pub mod fused;
mod index;
mod linalg;
mod matmul;
mod reduce;
mod scan;
mod shape;
mod sort;
