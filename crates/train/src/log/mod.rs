//! What a run tells: JSON lines for programs, TensorBoard event files for curves, and progress for the eye.
//!
//! A run that resumes from step s rewinds its logs to s, so that a curve holds every step once.

mod crc32c;
mod jsonl;
mod progress;
mod tensorboard;

pub use jsonl::JsonLines;
pub use progress::Progress;
pub use tensorboard::EventFile;
