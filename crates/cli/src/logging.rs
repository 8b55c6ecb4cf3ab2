//! The log: to stderr, chosen by `WEFT_LOG` (`info`, `weft_train=debug`, ...), warnings by default.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Starts the log. Colour only on a terminal and without `NO_COLOR`.
pub fn init() -> anyhow::Result<()> {
    let wanted = std::env::var("WEFT_LOG").unwrap_or_default();
    let wanted = if wanted.is_empty() { "warn" } else { &wanted };
    let filter = EnvFilter::try_new(wanted).with_context(|| {
        format!(
            "WEFT_LOG is '{wanted}', use a level (error, warn, info, debug, trace) or crate=level"
        )
    })?;
    let color = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(color)
        .without_time()
        .init();
    Ok(())
}
