//! What a study found, and how it is shown.
//!
//! A study is a grid of small trainings side by side. Its outcome is plain data, [`StudyResult`], from which this
//! module makes everything a reader sees: a table for the terminal ([`table`]), `results.json` with every number,
//! learning curves and comparisons as SVG ([`plot`]), and `report.html`, one self-contained page ([`html`]).
//!
//! Runs that differ only in their seed are one configuration: tables show their mean and sample standard deviation,
//! plots show the mean, the single runs, and the span from the lowest to the highest.
//!
//! ```
//! use weft_train::report::{RunResult, StudyResult};
//!
//! let run = |mixer: &str, seed: i64, bits: f64| RunResult {
//!     name: format!("{mixer}-{seed}"),
//!     axes: [("model.layers".into(), mixer.into()), ("train.seed".into(), seed.into())].into(),
//!     metrics: [("bits_per_byte".into(), bits)].into(),
//!     ..RunResult::default()
//! };
//! let study = StudyResult {
//!     title: "Which mixer?".into(),
//!     metric: "bits_per_byte".into(),
//!     runs: vec![run("gdn2", 0, 1.82), run("gdn2", 1, 1.84), run("attention", 0, 1.95)],
//!     ..StudyResult::default()
//! };
//! assert!(weft_train::report::table(&study).contains("1.830 ± 0.014"));
//! ```

mod format;
mod group;
mod html;
mod metric;
pub mod plot;
mod result;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::write_atomic;

pub use format::{bytes, duration, short};
pub use group::{Group, Spread, groups};
pub use html::html;
pub use metric::{Direction, Metric, at_length, length_key};
pub use result::{AxisValue, RunResult, StudyResult};
pub use table::{plain, table};

/// Writes `results.json`, `report.html` and `plots/*.svg` into `dir`, which is created when missing.
///
/// Each file is replaced as a whole, so a reader never sees half of one. Returns the paths in the order they were
/// written.
///
/// # Errors
/// When a file cannot be written; it is named, and its old content stays.
pub fn write(study: &StudyResult, dir: &Path) -> Result<Vec<PathBuf>> {
    let plots = dir.join("plots");
    std::fs::create_dir_all(&plots).map_err(Error::io("write", &plots))?;
    let figures = plot::figures(study)?;
    let json = serde_json::to_vec_pretty(study)
        .map_err(|e| Error::content(&dir.join("results.json"), e.to_string()))?;
    let mut files = vec![
        (dir.join("results.json"), json),
        (dir.join("report.html"), html(study, &figures).into_bytes()),
    ];
    files.extend(
        figures
            .into_iter()
            .map(|f| (plots.join(f.file), f.svg.into_bytes())),
    );
    for (path, bytes) in &files {
        write_atomic(path, |out| out.write_all(bytes))?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}
