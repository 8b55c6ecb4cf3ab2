//! A grid of trainings side by side. Each run has a folder of its own below the study's; a finished one leaves
//! `run.json` there and is not run again, an interrupted one goes on from its checkpoint. With shards, several
//! processes share the runs and the last one to finish sees all of them in the report.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use weft_models::{explain, folder};
use weft_tensor::Device;

use crate::error::{Error, Result};
use crate::evaluate::Score;
use crate::files::write_atomic;
use crate::recipe::{Source, Study, StudyRun};
use crate::report::{AxisValue, RunResult, StudyResult};
use crate::run;
use crate::trainer::{LOG_FILE, Outcome, Start};

/// The file that a finished run leaves.
pub const RUN_FILE: &str = "run.json";

/// Shard `index` (from 1) of `count`: the runs whose position in the grid is `index - 1` modulo `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Default for Shard {
    /// Everything.
    fn default() -> Shard {
        Shard { index: 1, count: 1 }
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let parts = text
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index >= 1 && index <= count => Ok(Shard { index, count }),
            _ => Err(format!(
                "{text:?} is no shard: give i/n with 1 <= i <= n, such as 1/4"
            )),
        }
    }
}

/// Words for the report.
#[derive(Clone, Debug)]
pub struct Words {
    /// The heading.
    pub title: String,
    /// The command line.
    pub command: String,
    /// The recipe's text.
    pub recipe: String,
    /// Processor, cores and memory.
    pub machine: String,
    /// Version of the program.
    pub version: String,
}

/// Run what is left of the study's shard on a device and collect everything that is finished. `Ok(None)` when `stop` was set.
///
/// # Errors
/// When a run fails; those before it stay finished.
pub fn run(
    study: &Study,
    device: &Device,
    shard: Shard,
    words: Words,
    show: bool,
    stop: &AtomicBool,
) -> Result<Option<StudyResult>> {
    for (i, one) in study.runs.iter().enumerate() {
        if i % shard.count != shard.index - 1 || one.recipe.out.join(RUN_FILE).is_file() {
            continue;
        }
        let label = format!("{}/{} {}", i + 1, study.runs.len(), one.name);
        if stop.load(Ordering::Relaxed) || !run_one(one, device, show.then_some(label), stop)? {
            return Ok(None);
        }
    }
    let runs = study
        .runs
        .iter()
        .filter(|r| r.recipe.out.join(RUN_FILE).is_file());
    let runs = runs
        .map(|r| read(&r.recipe.out.join(RUN_FILE)))
        .collect::<Result<Vec<_>>>()?;
    Ok(Some(StudyResult {
        title: words.title,
        command: words.command,
        recipe: words.recipe,
        machine: words.machine,
        version: words.version,
        metric: study
            .runs
            .first()
            .map_or("", |run| metric(&run.recipe.source))
            .into(),
        planned: study.runs.len(),
        runs,
    }))
}

/// The number that decides about what is learned from a source.
fn metric(source: &Source) -> &'static str {
    match source {
        Source::Data(_) => "bits_per_byte",
        Source::Task(_) => "accuracy",
    }
}

/// Whether it was finished.
fn run_one(
    one: &StudyRun,
    device: &Device,
    show: Option<String>,
    stop: &AtomicBool,
) -> Result<bool> {
    let begin = Instant::now();
    run::write_recipe(&one.recipe, &one.recipe.out)?;
    let summary = match run::train(&one.recipe, device, Start::Continue, show, stop) {
        // A run that diverged is a result of the study, not its end.
        Err(Error::Diverged { .. }) => None,
        other => Some(other?),
    };
    if matches!(&summary, Some(s) if s.outcome == Outcome::Interrupted) {
        return Ok(false);
    }
    let summary = summary.as_ref();
    let score = summary.and_then(|s| s.progress.evaluation.as_ref());
    let mut metrics: BTreeMap<String, f64> =
        score.map(Score::metrics).into_iter().flatten().collect();
    if score.is_none() {
        // What diverged has no score, which is a result too.
        metrics.insert(metric(&one.recipe.source).into(), f64::NAN);
    }
    metrics.insert("loss".into(), summary.map_or(f64::NAN, |s| s.progress.loss));
    let (parameters, state_bytes) = match summary {
        Some(_) => {
            let model = folder::load(&one.recipe.out, &Device::Cpu)?;
            let told = explain(&model, one.recipe.source.sequence())?;
            (told.parameters, told.state_bytes)
        }
        None => (0, 0),
    };
    let result = RunResult {
        name: one.name.clone(),
        axes: one
            .settings
            .iter()
            .map(|(k, v)| (k.clone(), axis(v)))
            .collect(),
        parameters: parameters as u64,
        sequence: one.recipe.source.sequence() as u64,
        state_bytes: state_bytes as u64,
        steps: summary.map_or(0, |s| s.progress.step),
        tokens_per_second: summary.map_or(f64::NAN, |s| s.tokens_per_second),
        seconds: summary.map_or(begin.elapsed().as_secs_f64(), |s| s.progress.seconds),
        curves: curves(&one.recipe.out.join(LOG_FILE))?,
        metrics,
    };
    let path = one.recipe.out.join(RUN_FILE);
    let text =
        serde_json::to_string_pretty(&result).map_err(|e| Error::content(&path, e.to_string()))?;
    write_atomic(&path, |out| out.write_all(text.as_bytes()))?;
    Ok(true)
}

fn axis(value: &str) -> AxisValue {
    serde_json::from_str(value).unwrap_or_else(|_| AxisValue::Text(value.into()))
}

/// The curves of a run, and where their values stand in a line of its log.
const CURVES: [(&str, &str); 3] = [
    ("loss", "/loss"),
    ("accuracy", "/evaluation/accuracy"),
    ("bits_per_byte", "/evaluation/bits_per_byte"),
];

/// The numbers of a run's log by name, as (step, value).
fn curves(path: &Path) -> Result<BTreeMap<String, Vec<(u64, f64)>>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut curves: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let Some(step) = line.get("step").and_then(serde_json::Value::as_u64) else {
            continue;
        };
        for (name, place) in CURVES {
            if let Some(value) = line.pointer(place).and_then(serde_json::Value::as_f64) {
                curves.entry(name.into()).or_default().push((step, value));
            }
        }
    }
    Ok(curves)
}

fn read(path: &Path) -> Result<RunResult> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::content(
            path,
            format!("it is no result of a run ({e}): remove it to run again"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Study;

    fn words() -> Words {
        Words {
            title: "t".into(),
            command: "c".into(),
            recipe: "r".into(),
            machine: "m".into(),
            version: "v".into(),
        }
    }

    /// Two widths, on this file's own text.
    fn study(out: &Path) -> Study {
        let text = r#"
            out = "OUT"
            model = { d_model = 16, layers = "gdn2" }
            data = { text = "TEXT", sequence = 16 }
            train = { steps = 4, batch = 2 }
            eval = { every = 2, batches = 2 }
            study.grid.model.d_model = [16, 24]
        "#;
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/src/study.rs");
        let text = text
            .replace("OUT", &out.display().to_string())
            .replace("TEXT", here);
        Study::parse(&text, Path::new("s.toml")).unwrap()
    }

    #[test]
    fn curves_and_metrics_come_from_what_the_runs_logged() {
        let out = tempfile::tempdir().unwrap();
        let never = AtomicBool::new(false);
        let study = study(out.path());
        let result = run(
            &study,
            &Device::Cpu,
            Shard::default(),
            words(),
            false,
            &never,
        )
        .unwrap()
        .unwrap();
        assert_eq!((result.planned, result.runs.len()), (2, 2));
        for one in &result.runs {
            let steps = |name: &str| -> Vec<u64> {
                one.curves[name].iter().map(|(step, _)| *step).collect()
            };
            assert_eq!(steps("loss"), [1, 2, 3, 4]);
            assert_eq!(steps("bits_per_byte"), [2, 4]);
            assert_eq!(
                one.curves["bits_per_byte"][1].1,
                one.metrics["bits_per_byte"]
            );
            assert_eq!(one.steps, 4);
        }
        assert_eq!(result.runs[0].axes["model.d_model"], AxisValue::Integer(16));
        assert!(result.runs[0].parameters < result.runs[1].parameters);
        assert!(result.runs[0].seconds > 0.0);
    }

    #[test]
    fn shards_share_the_runs_and_finished_ones_are_not_run_again() {
        let out = tempfile::tempdir().unwrap();
        let (go, stop) = (AtomicBool::new(false), AtomicBool::new(true));
        let study = study(out.path());
        assert!(
            run(
                &study,
                &Device::Cpu,
                Shard::default(),
                words(),
                false,
                &stop
            )
            .unwrap()
            .is_none()
        );
        let mut seen = Vec::new();
        for shard in ["2/2", "1/2", "1/1"] {
            let shard = shard.parse().unwrap();
            // When all is finished nothing is left to be stopped.
            let flag = if seen.len() < 2 { &go } else { &stop };
            let result = run(&study, &Device::Cpu, shard, words(), false, flag)
                .unwrap()
                .unwrap();
            seen.push(result.runs);
        }
        assert_eq!(seen[0].len(), 1);
        assert_eq!(seen[0][0], seen[1][1]);
        assert_eq!(seen[1], seen[2]);
    }

    #[test]
    fn a_shard_is_one_of_some() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for wrong in ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2"] {
            let error = wrong.parse::<Shard>().unwrap_err();
            assert!(error.contains("1/4"), "{error}");
        }
    }
}
