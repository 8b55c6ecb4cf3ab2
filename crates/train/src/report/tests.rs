use super::*;

fn run(layers: &str, lr: f64, seed: i64, bits: f64) -> RunResult {
    let curve = (0..=10)
        .map(|i| (i * 10, bits + 6.0 * (-0.6 * i as f64).exp()))
        .collect();
    RunResult {
        name: format!("{layers}-{lr}-{seed}"),
        axes: [
            ("model.layers".to_string(), AxisValue::from(layers)),
            ("optimizer.lr".to_string(), AxisValue::from(lr)),
            ("train.seed".to_string(), AxisValue::from(seed)),
        ]
        .into(),
        parameters: 3_214_848,
        sequence: 128,
        state_bytes: 4096,
        steps: 100,
        tokens_per_second: 10_000.0 + seed as f64,
        seconds: 61.0,
        curves: [("bits_per_byte".to_string(), curve)].into(),
        metrics: [("bits_per_byte".to_string(), bits)].into(),
    }
}

fn study(runs: Vec<RunResult>) -> StudyResult {
    StudyResult {
        title: "Weave <or> not?".into(),
        command: "weft study weave.toml".into(),
        recipe: "layers = \"a & b\"".into(),
        machine: "2 cores".into(),
        version: "weft 0".into(),
        metric: "bits_per_byte".into(),
        planned: runs.len(),
        runs,
    }
}

fn two_by_two() -> StudyResult {
    study(vec![
        run("gdn2", 1e-3, 0, 1.80),
        run("gdn2", 1e-3, 1, 1.90),
        run("gdn2", 3e-3, 0, 2.00),
        run("attention", 1e-3, 0, 2.10),
        run("attention", 3e-3, 0, 2.20),
    ])
}

#[test]
fn seeds_of_one_configuration_are_averaged() {
    let study = two_by_two();
    let groups = groups(&study);
    let labels: Vec<_> = groups.iter().map(|g| g.label.as_str()).collect();
    assert_eq!(
        labels,
        [
            "gdn2, lr 1e-3",
            "gdn2, lr 3e-3",
            "attention, lr 1e-3",
            "attention, lr 3e-3"
        ]
    );
    let spread = groups[0].metric("bits_per_byte");
    assert_eq!((spread.count, spread.low, spread.high), (2, 1.80, 1.90));
    assert!((spread.mean - 1.85).abs() < 1e-12);
    assert!((spread.deviation - 0.05 * 2f64.sqrt()).abs() < 1e-12);
}

#[test]
fn a_seed_that_stopped_early_shortens_the_mean_curve() {
    let mut study = two_by_two();
    study.runs[1]
        .curves
        .entry("bits_per_byte".into())
        .and_modify(|c| c.truncate(4));
    let curve = groups(&study)[0].curve("bits_per_byte");
    assert_eq!(curve.len(), 4);
    assert!(curve.iter().all(|(_, s)| s.count == 2));
}

#[test]
fn the_table_marks_the_best_and_says_what_diverged() {
    let mut study = two_by_two();
    study.runs[4]
        .metrics
        .insert("bits_per_byte".into(), f64::NAN);
    let text = table(&study);
    let line = |what: &str| {
        text.lines()
            .filter(|l| l.contains(what))
            .map(str::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(line("best").len(), 1);
    assert!(
        line("best")[0].contains("gdn2") && line("best")[0].contains("1.850 ± 0.071"),
        "{text}"
    );
    assert!(line("diverged")[0].contains("attention"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour codes");
}

#[test]
fn nothing_is_best_among_equals_or_in_unknown_directions() {
    assert!(!table(&study(vec![run("a", 1e-3, 0, 2.0), run("b", 1e-3, 0, 2.0)])).contains("best"));
    let mut unknown = two_by_two();
    unknown.metric = "gradient_norm".into();
    assert!(!table(&unknown).contains("best"));
}

#[test]
fn results_survive_json_even_when_a_run_diverged() {
    let mut study = two_by_two();
    study.runs[0]
        .metrics
        .insert("bits_per_byte".into(), f64::NAN);
    study.runs[0]
        .curves
        .insert("loss".into(), vec![(1, 2.5), (2, f64::INFINITY)]);
    let text = serde_json::to_string(&study).unwrap();
    let back: StudyResult = serde_json::from_str(&text).unwrap();
    assert!(back.runs[0].metrics["bits_per_byte"].is_nan());
    assert!(back.runs[0].curves["loss"][1].1.is_nan());
    assert_eq!(back.runs[1..], study.runs[1..]);
}

#[test]
fn figures_cover_comparison_curves_axis_and_speed() {
    let figures = plot::figures(&two_by_two()).unwrap();
    let files: Vec<_> = figures.iter().map(|f| f.file.as_str()).collect();
    let expected = [
        "bits_per_byte.svg",
        "bits_per_byte-curves.svg",
        "bits_per_byte-optimizer-lr.svg",
        "bits_per_byte-speed.svg",
    ];
    assert_eq!(files, expected);
    for figure in &figures {
        assert!(
            figure.svg.starts_with("<svg width=\"860\""),
            "{}",
            figure.file
        );
        assert!(figure.svg.trim_end().ends_with("</svg>"), "{}", figure.file);
        assert!(!figure.svg.contains("NaN"), "{}", figure.file);
    }
    assert!(
        figures[0].caption.contains("means over 1 to 2 seeds"),
        "{}",
        figures[0].caption
    );
}

/// Two mixers of different states, measured at three lengths.
fn recall() -> StudyResult {
    let mut study = two_by_two();
    study.metric = "accuracy".into();
    for run in &mut study.runs {
        let attends = run.name.starts_with("attention");
        run.state_bytes = if attends { 65_536 } else { 4096 };
        let at = |n: usize| (length_key("accuracy", n), 1.0 - n as f64 / 1e4);
        run.metrics = [64, 1024, 256].map(at).into();
        run.metrics.insert("accuracy".into(), 0.99);
    }
    study
}

#[test]
fn accuracy_is_shown_against_length_and_state() {
    let study = recall();
    let figures = plot::figures(&study).unwrap();
    let figure = |name: &str| figures.iter().find(|f| f.file == name).unwrap();
    let length = figure("accuracy-length.svg");
    for text in ["\n64\n", "\n128\n", "\n1024\n", "tokens of an example"] {
        assert!(length.svg.contains(text), "{text}");
    }
    let state = figure("accuracy-state.svg");
    for text in ["\n4 KiB\n", "\n64 KiB\n"] {
        assert!(state.svg.contains(text), "{text}");
    }
    let text = table(&study);
    let heading = text.lines().next().unwrap();
    let at = |part: &str| heading.find(part).unwrap_or_else(|| panic!("{heading}"));
    assert!(at("at 64 ") < at("at 256 ") && at("at 256 ") < at("at 1024 "));
    assert!(text.contains("64 KiB"), "{text}");
}

#[test]
fn empty_and_diverged_studies_still_make_a_page() {
    let mut diverged = two_by_two();
    for run in &mut diverged.runs {
        run.metrics.insert("bits_per_byte".into(), f64::NAN);
        run.curves
            .insert("bits_per_byte".into(), vec![(0, f64::NAN)]);
        run.tokens_per_second = f64::NAN;
    }
    for study in [
        study(vec![]),
        diverged,
        study(vec![RunResult {
            name: "one".into(),
            ..RunResult::default()
        }]),
    ] {
        let page = html(&study, &plot::figures(&study).unwrap());
        assert!(page.contains("To run it again"));
        assert!(!table(&study).contains("NaN"));
    }
}

#[test]
fn the_page_is_self_contained_and_escaped() {
    let study = two_by_two();
    let page = html(&study, &plot::figures(&study).unwrap());
    assert!(page.contains("Weave &lt;or&gt; not?") && page.contains("a &amp; b"));
    let links = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http", "src=", "href=", "@import", "url("] {
        assert!(!links.contains(outside), "{outside}");
    }
    assert!(
        page.contains("var(--s0)") && !page.contains("#FFFFFF"),
        "plots follow the colour scheme"
    );
    assert!(page.contains("7.5% below the next"), "1.85 against 2.00");
}

#[test]
fn unequal_sizes_are_told() {
    let mut study = two_by_two();
    assert!(!html(&study, &[]).contains("Sizes differ"));
    study.runs[0].parameters = 4_000_000;
    assert!(html(&study, &[]).contains("Sizes differ: 3.21 M to 4.00 M parameters."));
}

#[test]
fn an_unfinished_study_says_so() {
    let study = StudyResult {
        planned: 9,
        ..two_by_two()
    };
    assert!(html(&study, &[]).contains("5 of 9 finished so far"));
}

#[test]
fn files_are_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let study = two_by_two();
    let written = write(&study, dir.path()).unwrap();
    assert_eq!(written.len(), 6);
    write(&study, dir.path()).unwrap();
    let read: StudyResult =
        serde_json::from_slice(&std::fs::read(dir.path().join("results.json")).unwrap()).unwrap();
    assert_eq!(read, study);
    let left = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["plots", "report.html", "results.json"]);
}

#[test]
fn a_directory_in_the_way_is_one_sentence_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("report.html").join("full")).unwrap();
    let error = write(&two_by_two(), dir.path()).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot write ") && error.contains("report.html"),
        "{error}"
    );
    let partial = std::fs::read_dir(dir.path()).unwrap().any(|e| {
        e.unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".tmp-")
    });
    assert!(!partial);
}
