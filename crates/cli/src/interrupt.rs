//! Ctrl-C: the first one asks the running loop to save and stop, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// The flag that a loop polls; set by Ctrl-C (and by a request to terminate) from now on.
pub fn flag() -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; once more to stop at once");
    })?;
    Ok(&STOP)
}
