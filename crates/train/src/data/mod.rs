//! Data: from text files or token shards to batches of token ids.
//!
//! ```text
//! text files ── TextSource ── Tokenizer ─┐
//!                                        ├─ Corpus ── Windows [T + 1] ── Batches [B, T + 1]
//! .bin and .npy shards, memory-mapped ───┘   train | held out
//! ```
//!
//! A window is T + 1 neighbouring tokens: the first T are the input, the last T the targets. Windows start every T
//! tokens, so each token is a target once per epoch. [`Batches`] visits the windows in an order that is a function of
//! seed and epoch, so that a run resumes from a [`Cursor`] of four numbers.

mod batches;
mod corpus;
mod npy;
mod permutation;
mod shard;
mod text;
mod tokens;

pub use batches::{Batch, Batches, Cursor};
pub use corpus::{Corpus, Windows};
pub use permutation::Permutation;
pub use shard::ShardWriter;
pub use text::{Document, TextSource};
pub use tokens::TokenStream;
