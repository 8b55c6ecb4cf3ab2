//! The result of a bench: one JSON object, or a table and the ceilings.

use anyhow::bail;
use serde::Serialize;
use weft_train::bench::Ceilings;
use weft_train::machine::Versions;
use weft_train::report;

use crate::output;

/// What was measured, on what.
#[derive(Serialize)]
pub struct Report<R> {
    pub device: String,
    pub machine: String,
    pub versions: Versions,
    pub threads: usize,
    /// Bytes and operations per second.
    pub ceilings: Ceilings,
    pub rows: Vec<R>,
    pub failed: Vec<Failed>,
}

/// A row that could not be measured.
#[derive(Serialize)]
pub struct Failed {
    pub row: String,
    pub error: String,
}

impl<R: Serialize> Report<R> {
    /// Print it. Rows that failed are an error, after the others are printed.
    pub fn show(
        &self,
        json: bool,
        headings: &[(&str, bool)],
        cells: fn(&R) -> Vec<String>,
    ) -> anyhow::Result<()> {
        if json {
            output::json(self)?;
        } else {
            let mut text = report::plain(headings, self.rows.iter().map(cells));
            let Ceilings {
                copy,
                product_f32,
                product_bf16,
            } = self.ceilings;
            text += &format!(
                "\nCeilings, measured in this run on {}: copy {}, matrix products {} in f32, {} in bf16\n",
                self.machine,
                bytes_per_second(copy),
                flops_per_second(product_f32),
                flops_per_second(product_bf16),
            );
            output::print(text)?;
        }
        match self.failed.as_slice() {
            [] => Ok(()),
            [first, ..] => bail!(
                "{} of {} rows could not be measured, the first is {}: {}",
                self.failed.len(),
                self.rows.len() + self.failed.len(),
                first.row,
                first.error
            ),
        }
    }
}

/// Three significant digits where that matters.
pub fn ms(ms: f64) -> String {
    let digits = match ms {
        ms if ms >= 100.0 => 0,
        ms if ms >= 10.0 => 1,
        ms if ms >= 1.0 => 2,
        ms if ms >= 0.1 => 3,
        _ => 4,
    };
    format!("{ms:.digits$}")
}

/// `3.01 TB/s`
pub fn bytes_per_second(rate: f64) -> String {
    rate_in(rate, "B/s")
}

/// `780 TFLOP/s`; a dash where no products are counted.
pub fn flops_per_second(rate: f64) -> String {
    match rate > 0.0 {
        true => rate_in(rate, "FLOP/s"),
        false => "–".into(),
    }
}

fn rate_in(rate: f64, unit: &str) -> String {
    let number = report::short(rate);
    match number.contains(' ') {
        true => number + unit,
        false => format!("{number} {unit}"),
    }
}

/// `97%`
pub fn percent(part: f64) -> String {
    format!("{:.0}%", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0.0123, 0.25, 1.5, 25.0, 250.0].map(ms),
            ["0.0123", "0.250", "1.50", "25.0", "250"]
        );
        assert_eq!(bytes_per_second(3.014e12), "3.01 TB/s");
        assert_eq!(bytes_per_second(12.5), "12.5 B/s");
        assert_eq!([788e12, 0.0].map(flops_per_second), ["788 TFLOP/s", "–"]);
        assert_eq!(percent(0.966), "97%");
    }
}
