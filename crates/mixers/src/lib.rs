//! Sequence mixers: causal maps x [B, T, D] -> y [B, T, D] with a state that can be split, forked and saved.
//!
//! One folder per mixer, each with its plain reference, its fast form and its step; [`registry`] lists them,
//! [`laws`] is the suite that every one of them must pass, [`golden`] reads numbers of reference
//! implementations. Machinery that several mixers share is in [`shared`].

pub mod attention;
pub mod delta_net;
pub mod error;
pub mod files;
pub mod gated_deltanet;
pub mod gated_deltanet2;
pub mod gla;
pub mod golden;
pub mod hgrn;
pub mod hgrn2;
pub mod kda;
pub mod laws;
pub mod lightning;
pub mod m2rnn;
pub mod mamba2;
pub mod mamba3;
pub mod mixer;
pub mod padding;
pub mod params;
pub mod registry;
pub mod retnet;
pub mod rnn;
pub mod safetensor;
pub mod shared;
pub mod sliding_window;
pub mod softmax_as_rnn;
pub mod state;
pub mod state_file;

/// The CUDA kernels of this crate, for `weft kernels`.
pub static KERNELS: &[&weft_tensor::cuda::Source] = &[
    &shared::cache_rows::KERNELS,
    &shared::delta_rule::gpu::backward::SCAN,
    &shared::delta_rule::gpu::backward::VALUES,
    &shared::delta_rule::gpu::backward::KEYS,
    &shared::delta_rule::gpu::backward::SCALAR_KEYS,
    &shared::delta_rule::gpu::kernels::PREPARE,
    &shared::delta_rule::gpu::kernels::SCALAR,
    &shared::delta_rule::gpu::kernels::SCAN,
    &shared::delta_rule::gpu::layer_step::KERNEL,
    &shared::delta_rule::step_gpu::KERNELS,
    &shared::rope_gpu::KERNELS,
    &shared::flash::gpu::FORWARD,
    &shared::flash::gpu::BACKWARD,
    &shared::flash::gpu::FORWARD_HOPPER,
    &shared::flash::gpu::BACKWARD_HOPPER,
    &shared::flash::gpu::DECODE,
    &shared::flash::gpu::DECODE_F32,
];

pub use error::{Error, Result};
pub use mixer::{Call, Form, Mixer};
pub use params::{Init, Linear, Param, Params, Scope};
pub use registry::{Entry, Options};
pub use state::State;
