//! Synthetic tasks: small worlds in which one ability of a sequence model can be seen alone.
//!
//! An example is T token ids and T targets. `targets[t]` is the class that the model is to name when it has read
//! `ids[..= t]`, or [`NOTHING`] where nothing is asked: loss and accuracy count the other positions only. Tokens and
//! classes share one vocabulary.
//!
//! | ability | tasks |
//! |---|---|
//! | recall | `mqar`, `recall`, `bit_recall`, `needle` |
//! | selection | `selective_copying`, `grammar`, `symbol_soup` |
//! | state tracking | `state_tracking`, `swaps` |
//! | both | `pointers`, `counters` |
//!
//! [`TASKS`] lists them with their papers. A [`Generator`] is a task with its knobs set and a seed; it gives batches
//! that are a function of seed and number, so that a run goes on where it stopped, and held-out draws from random
//! streams that training never touches.
//!
//! ```
//! use serde_json::{Map, json};
//! use weft_tasks::{Generator, NOTHING};
//!
//! let knobs = Map::from_iter([("group".to_string(), json!("S3"))]);
//! let words = Generator::new("state_tracking", &knobs, 0)?;
//! let batch = words.held_out(0, 4, 16)?;
//! assert_eq!((batch.ids.len(), batch.columns), (4 * 16, 16));
//! assert!(batch.targets.iter().all(|&class| class != NOTHING && class < 6));
//! # Ok::<(), weft_tasks::Error>(())
//! ```

mod bits;
mod copying;
mod counters;
mod error;
mod example;
mod generator;
pub mod grammar;
pub mod group;
mod mqar;
mod needle;
mod recall;
mod registry;
mod state_tracking;
mod swaps;
mod symbol_soup;

pub use bits::{BitRecall, Pointers};
pub use copying::SelectiveCopying;
pub use counters::Counters;
pub use error::{Error, Result};
pub use example::{Batch, Example, NOTHING, Task};
pub use generator::Generator;
pub use mqar::Mqar;
pub use needle::{Level, Needle};
pub use recall::Recall;
pub use registry::{Build, Entry, TASKS, find};
pub use state_tracking::{Alphabet, StateTracking};
pub use swaps::Swaps;
pub use symbol_soup::SymbolSoup;
