//! `weft bench kernels`.

use weft_tensor::Device;
use weft_train::bench::{self, Ceiling, Row};

use super::Common;
use super::report::{bytes_per_second, flops_per_second, ms, percent};

const EXAMPLES: &str = "\
Examples:
  weft bench kernels
  weft bench kernels --filter matmul
  weft bench kernels --filter back --filter bf16 --json

B/s counts the bytes that the operation cannot avoid to move, FLOP/s the operations of its matrix products. The last \
column is the share of the ceiling that bounds it. More than 100% means that the operands stayed in a cache, or that \
fewer operations are done than the published form counts.";

/// Time primitives, attention, the delta rule and the optimiser
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: Common,
}

/// Seconds for a row.
const SECONDS: f64 = 0.3;

impl Args {
    pub fn run(self) -> anyhow::Result<()> {
        let device: Device = self.common.device.open()?;
        let title = |c: &bench::Case| format!("{} {} {}", c.name, c.shape, c.dtype);
        let cases = bench::kernels(&device).into_iter();
        let cases = cases.map(|c| (title(&c), c)).collect();
        let report = self
            .common
            .measure(device, SECONDS, cases, |case, clock, ceilings| {
                case.measure(&device, clock, ceilings)
            })?;
        let headings = [
            ("kernel", false),
            ("shape", false),
            ("dtype", false),
            ("ms", true),
            ("B/s", true),
            ("FLOP/s", true),
            ("of ceiling", true),
        ];
        report.show(self.common.json, &headings, cells)
    }
}

fn cells(row: &Row) -> Vec<String> {
    let ceiling = match row.ceiling {
        Ceiling::Copy => "copy",
        Ceiling::Product => "product",
    };
    vec![
        row.name.clone(),
        row.shape.clone(),
        row.dtype.clone(),
        ms(row.ms),
        bytes_per_second(row.bytes_per_second),
        flops_per_second(row.flops_per_second),
        format!("{} {ceiling}", percent(row.share)),
    ]
}
