//! Fused operations: one pass forward and one back where the plain composition would make many. Each keeps
//! its plain form beside it, which is what second-order gradients are taken through.

mod cross_entropy;
mod gated;
mod norm;
mod short_conv;
