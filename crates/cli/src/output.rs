//! Where words go: results to stdout, complaints to stderr, and what to do when nobody listens any more.

use std::io::{self, ErrorKind, Write};

/// Writes a result to stdout.
pub fn print(bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes.as_ref())?;
    Ok(stdout.flush()?)
}

/// Writes a result to stdout as one line of JSON.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(serde_json::to_string(value)? + "\n")
}

/// Writes `error: ...` to stderr.
pub fn complain(sentence: &str) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "error: {sentence}");
}

/// Whether the error only says that the reader of our output has left, as `weft ... | head -1` does.
pub fn is_closed(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
