//! The classical recurrent networks (Lipton, Berkowitz, Elkan 2015, arXiv 1506.00019, and the works it reviews).
//!
//! ```text
//! Elman   h_t = act(W x_t + U h_{t-1} + b)
//! Jordan  h_t = act(W x_t + C c_t + b),  y_t = softmax(V h_t + b_y),  c_t = mu c_{t-1} + y_{t-1}
//! LSTM    s_t = i . g + f . s_{t-1},  h_t = o . tanh(s_t)       i, f, g, o from x_t and h_{t-1}
//! GRU     h_t = z . h_{t-1} + (1 - z) . n                       r, z, n from x_t and h_{t-1}
//! ```
//!
//! Each is one file with its equations, its plain form and its elementwise kernels; [`layer`] puts the input and
//! output projections around them, and [`crate::shared::recurrent`] runs the tokens. States are f32 (f64 for f64
//! activations).
//!
//! [`Bidirectional`] is no [`crate::Mixer`]: it reads the future, so it has neither a state nor a place in the
//! registry. [`truncated`] is truncated back-propagation through time, [`jacobian_norms`] shows what vanishes.

mod activation;
mod bidirectional;
pub mod elman;
#[cfg(test)]
mod golden_tests;
pub mod gru;
mod jacobian;
pub mod jordan;
mod layer;
pub mod lstm;
mod tbptt;
#[cfg(test)]
mod tests;

pub use activation::Activation;
pub use bidirectional::Bidirectional;
pub use jacobian::jacobian_norms;
pub use layer::RecurrentInit;
pub use tbptt::truncated;
