//! The table of a study for a terminal: one line per configuration, numbers right-aligned, no colour.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

use super::format::{bytes, duration, short, spread};
use super::group::{Group, groups, short_key, varying};
use super::metric::{Metric, at_length};
use super::result::StudyResult;

/// What a table of configurations shows, cell by cell; the HTML report has the same columns.
pub struct Columns {
    /// Heading, and whether the column holds numbers.
    pub headings: Vec<(String, bool)>,
    /// Per configuration, the text of each cell and the number to sort by.
    pub rows: Vec<Vec<(String, f64)>>,
    /// The configuration with the best mean of the deciding metric.
    pub best: Option<usize>,
}

/// Columns of a study: the axes that vary, size of model and state, length, every final metric (the deciding one first), speed and time.
pub fn columns(study: &StudyResult) -> Columns {
    let (groups, varying) = (groups(study), varying(study));
    let metrics = metric_keys(study);
    let mut headings: Vec<(String, bool)> = match varying.is_empty() {
        true => vec![("run".into(), false)],
        false => varying
            .iter()
            .map(|key| (short_key(key).to_string(), false))
            .collect(),
    };
    headings.extend(["parameters", "state", "steps"].map(|h| (h.to_string(), true)));
    headings.extend(metrics.iter().map(|key| (Metric::of(key).title, true)));
    headings.extend(["tokens/s", "time"].map(|h| (h.to_string(), true)));
    let rows = groups
        .iter()
        .map(|group| row(group, &varying, &metrics))
        .collect();
    Columns {
        headings,
        rows,
        best: best(study, &groups),
    }
}

fn row(group: &Group, varying: &[&str], metrics: &[&str]) -> Vec<(String, f64)> {
    let mut cells: Vec<(String, f64)> = match varying.is_empty() {
        true => vec![(group.label.clone(), f64::NAN)],
        false => varying
            .iter()
            .map(|key| match group.axes.get(key) {
                Some(value) => (value.to_string(), value.number().unwrap_or(f64::NAN)),
                None => ("–".into(), f64::NAN),
            })
            .collect(),
    };
    let parameters = group.spread(|run| Some(run.parameters as f64));
    let state = group.spread(|run| Some(run.state_bytes as f64).filter(|&n| n > 0.0));
    let steps = group.spread(|run| Some(run.steps as f64));
    cells.push((short(parameters.mean), parameters.mean));
    let size = match state.count {
        0 => "–".into(),
        _ => bytes(state.mean.round() as usize),
    };
    cells.push((size, state.mean));
    cells.push((short(steps.mean), steps.mean));
    cells.extend(metrics.iter().map(|key| {
        let value = group.metric(key);
        (spread(&value, Metric::of(key).digits), value.mean)
    }));
    let speed = group.spread(|run| Some(run.tokens_per_second));
    let time = group.spread(|run| Some(run.seconds));
    cells.extend([
        (short(speed.mean), speed.mean),
        (duration(time.mean), time.mean),
    ]);
    cells
}

/// Every final metric, the deciding one first.
pub fn metric_keys(study: &StudyResult) -> Vec<&str> {
    let mut keys: Vec<&str> = Vec::new();
    for key in study.runs.iter().flat_map(|run| run.metrics.keys()) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    // Lengths by size, behind the metric that they are of.
    keys.sort_by_key(|key| {
        let (base, length) = at_length(key).unwrap_or((key, 0));
        (base != study.metric, base, length)
    });
    keys
}

/// The configuration with the best mean, when the metric has a direction and some configuration has a number.
pub fn best(study: &StudyResult, groups: &[Group]) -> Option<usize> {
    let metric = Metric::of(&study.metric);
    let means: Vec<f64> = groups
        .iter()
        .map(|g| g.metric(&study.metric).mean)
        .collect();
    let beats_all = |i: usize| {
        means
            .iter()
            .enumerate()
            .any(|(j, &m)| j != i && metric.better(means[i], m))
            && !means.iter().any(|&m| metric.better(m, means[i]))
    };
    (0..groups.len()).find(|&i| beats_all(i))
}

/// The table as text. The best configuration says so in the last column.
pub fn table(study: &StudyResult) -> String {
    let columns = columns(study);
    let headings: Vec<(&str, bool)> = columns
        .headings
        .iter()
        .map(|(h, n)| (h.as_str(), *n))
        .chain([("", false)])
        .collect();
    let rows = columns.rows.into_iter().enumerate().map(|(i, row)| {
        let mark = if columns.best == Some(i) { "best" } else { "" };
        row.into_iter()
            .map(|(text, _)| text)
            .chain([mark.to_string()])
            .collect()
    });
    plain(&headings, rows)
}

/// Columns under a ruled heading, without colour; `true` beside a heading marks numbers, which stand on the right.
pub fn plain(headings: &[(&str, bool)], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(headings.iter().map(|(text, _)| text));
    table.add_rows(rows);
    for (column, (_, numeric)) in headings.iter().enumerate() {
        if let (true, Some(column)) = (*numeric, table.column_mut(column)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_string() + "\n")
        .collect()
}
