//! The report as one page: the finding in words, the figures, the sortable tables, and what is needed to repeat it.
//!
//! Nothing is loaded from anywhere: plots are inline, style and script are part of the page.

use std::fmt::Write;

use super::format::{duration, short, spread};
use super::group::{Group, groups};
use super::metric::Metric;
use super::plot::{Figure, Style, css_variables, styles, themed};
use super::result::{RunResult, StudyResult};
use super::table::{Columns, best, columns, metric_keys};

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// From this ratio of parameters on, a comparison says that it is one of unequal sizes.
const UNEQUAL: f64 = 1.05;

/// The page. `figures` are those of [`super::plot::figures`].
pub fn html(study: &StudyResult, figures: &[Figure]) -> String {
    let groups = groups(study);
    let styles = styles(study, &groups);
    let title = escape(&study.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n:root {{\n  color-scheme: light dark;\n{}}}\n{STYLE}</style>\n<main>\n<h1>{title}</h1>\n",
        css_variables()
    );
    page += &summary(study, &groups);
    page += &configurations(&columns(study), &styles, &groups);
    for (number, figure) in figures.iter().enumerate() {
        page += &figure_element(number + 1, figure);
    }
    page += &single_runs(study, &groups);
    page += &reproduce(study);
    let _ = write!(page, "</main>\n<script>\n{SCRIPT}</script>\n</html>\n");
    page
}

/// The finding in two sentences, and how far the study is.
fn summary(study: &StudyResult, groups: &[Group]) -> String {
    let (runs, configurations) = (
        count(study.runs.len(), "run"),
        count(groups.len(), "configuration"),
    );
    let mut text = format!("{runs} of {configurations}");
    if study.planned > study.runs.len() {
        let _ = write!(
            text,
            ", {} of {} finished so far",
            study.runs.len(),
            study.planned
        );
    }
    let seconds: f64 = study
        .runs
        .iter()
        .map(|run| run.seconds)
        .filter(|s| s.is_finite())
        .sum();
    let _ = write!(text, ", {} of training in all.", duration(seconds));
    text += &sizes(study);
    format!("<p class=\"lead\">{} {text}</p>\n", finding(study, groups))
}

/// A warning where configurations of unequal size are compared.
fn sizes(study: &StudyResult) -> String {
    let sizes = study
        .runs
        .iter()
        .map(|run| run.parameters)
        .filter(|&n| n > 0);
    match (sizes.clone().min(), sizes.max()) {
        (Some(least), Some(most)) if most as f64 > UNEQUAL * least as f64 => format!(
            " Sizes differ: {} to {} parameters.",
            short(least as f64),
            short(most as f64)
        ),
        _ => String::new(),
    }
}

fn finding(study: &StudyResult, groups: &[Group]) -> String {
    let metric = Metric::of(&study.metric);
    let Some(winner) = best(study, groups) else {
        return String::new();
    };
    let first = groups[winner].metric(&study.metric);
    let next = (0..groups.len())
        .filter(|&i| i != winner && groups[i].metric(&study.metric).mean.is_finite())
        .reduce(|a, b| {
            let (x, y) = (
                groups[a].metric(&study.metric).mean,
                groups[b].metric(&study.metric).mean,
            );
            if metric.better(y, x) { b } else { a }
        });
    let mut text = format!(
        "<strong>{}</strong> is best with <strong>{}</strong> {}",
        escape(&groups[winner].label),
        spread(&first, metric.digits),
        escape(&metric.title)
    );
    if let Some(next) = next {
        let second = groups[next].metric(&study.metric);
        let share = (second.mean - first.mean).abs() / second.mean.abs() * 100.0;
        let overlap = first.low <= second.high && second.low <= first.high;
        let side = if second.mean > first.mean {
            "below"
        } else {
            "above"
        };
        let doubt = if overlap {
            ", but their seeds overlap"
        } else {
            ""
        };
        let _ = write!(
            text,
            ", {share:.1}% {side} the next, {}{doubt}",
            escape(&groups[next].label)
        );
    }
    text + "."
}

fn configurations(columns: &Columns, styles: &[Style], groups: &[Group]) -> String {
    let mut out = String::from("<table class=\"sortable\">\n<thead><tr>");
    for (text, numeric) in &columns.headings {
        let class = if *numeric { " class=\"number\"" } else { "" };
        let _ = write!(out, "<th{class}><button>{}</button></th>", escape(text));
    }
    out += "</tr></thead>\n<tbody>\n";
    for (i, (row, style)) in columns.rows.iter().zip(styles).enumerate() {
        out += if columns.best == Some(i) {
            "<tr class=\"best\">"
        } else {
            "<tr>"
        };
        for (j, ((text, value), (_, numeric))) in row.iter().zip(&columns.headings).enumerate() {
            let class = if *numeric { " class=\"number\"" } else { "" };
            let swatch = match j {
                0 => format!("<i style=\"background:{}\"></i>", style.ink().variable()),
                _ => String::new(),
            };
            let sort = if value.is_nan() {
                String::new()
            } else {
                format!(" data-sort=\"{value}\"")
            };
            let _ = write!(out, "<td{class}{sort}>{swatch}{}</td>", escape(text));
        }
        out += "</tr>\n";
    }
    out += "</tbody>\n</table>\n";
    if groups.iter().any(|g| g.runs.len() > 1) {
        out += "<p class=\"note\">Mean ± sample standard deviation over seeds. Select a heading to sort.</p>\n";
    }
    out
}

fn figure_element(number: usize, figure: &Figure) -> String {
    format!(
        "<figure role=\"img\" aria-label=\"Figure {number}\">\n{}\n<figcaption><b>Figure {number}.</b> {}</figcaption>\n</figure>\n",
        themed(&figure.svg),
        escape(&figure.caption)
    )
}

/// Every run on its own line, folded away; only where configurations have several.
fn single_runs(study: &StudyResult, groups: &[Group]) -> String {
    if groups.iter().all(|g| g.runs.len() < 2) {
        return String::new();
    }
    let metrics = metric_keys(study);
    let mut out = String::from(
        "<details>\n<summary>Single runs</summary>\n<table class=\"sortable\">\n<thead><tr>",
    );
    let headings = ["run".to_string()]
        .into_iter()
        .chain(metrics.iter().map(|key| Metric::of(key).title));
    for (i, heading) in headings
        .chain(["tokens/s".into(), "time".into()])
        .enumerate()
    {
        let class = if i > 0 { " class=\"number\"" } else { "" };
        let _ = write!(out, "<th{class}><button>{}</button></th>", escape(&heading));
    }
    out += "</tr></thead>\n<tbody>\n";
    for run in &study.runs {
        out += &run_row(run, &metrics);
    }
    out + "</tbody>\n</table>\n</details>\n"
}

fn run_row(run: &RunResult, metrics: &[&str]) -> String {
    let mut out = format!("<tr><td>{}</td>", escape(&run.name));
    let metric = |key: &&str| {
        let value = run.metrics.get(*key).copied().unwrap_or(f64::NAN);
        (format!("{value:.*}", Metric::of(key).digits), value)
    };
    let speed = (short(run.tokens_per_second), run.tokens_per_second);
    let time = (duration(run.seconds), run.seconds);
    for (text, value) in metrics.iter().map(metric).chain([speed, time]) {
        let text = if value.is_nan() { "diverged" } else { &text };
        let _ = write!(
            out,
            "<td class=\"number\" data-sort=\"{value}\">{text}</td>"
        );
    }
    out + "</tr>\n"
}

/// What one needs to get these numbers again.
fn reproduce(study: &StudyResult) -> String {
    format!(
        "<h2>To run it again</h2>\n<pre>{}</pre>\n<p class=\"note\">{}{}. All numbers are in results.json beside this \
         page.</p>\n<details open>\n<summary>Recipe</summary>\n<pre>{}</pre>\n</details>\n",
        escape(&study.command),
        escape(&study.version),
        if study.machine.is_empty() {
            String::new()
        } else {
            format!(" on {}", escape(&study.machine))
        },
        escape(study.recipe.trim_end())
    )
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Text that is safe between tags and inside quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}
