//! `weft bench`: its rows, its JSON, and what it refuses.

mod common;

use common::{fail, json, succeed};
use serde_json::Value;

/// A positive number of an object.
fn number(object: &Value, key: &str) -> f64 {
    let number = object[key].as_f64();
    number
        .filter(|n| *n > 0.0)
        .unwrap_or_else(|| panic!("{key}: {object}"))
}

/// Measures on the CPU, quickly, and checks what all three have in common.
fn bench(args: &[&str]) -> Value {
    let quick = ["--device", "cpu", "--seconds", "0.01", "--json"];
    let args: Vec<&str> = ["bench"]
        .iter()
        .chain(args)
        .chain(&quick)
        .copied()
        .collect();
    let result = json(&args);
    assert_eq!(result["device"], "cpu");
    assert!(result["machine"].as_str().unwrap().contains("cores"));
    assert_eq!(result["versions"]["nvrtc"], Value::Null, "{result}");
    for ceiling in ["copy", "product_f32", "product_bf16"] {
        number(&result["ceilings"], ceiling);
    }
    assert_eq!(result["failed"], Value::Array(vec![]));
    result
}

#[test]
fn kernels_are_rows_with_two_numbers() {
    let result = bench(&["kernels", "--filter", "attention", "--filter", "T256"]);
    let rows = result["rows"].as_array().unwrap();
    let names: Vec<&Value> = rows.iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["attention", "attention back"]);
    for row in rows {
        let ms = number(row, "ms");
        let rate = number(row, "flops") / ms * 1e3;
        assert!(
            (rate / number(row, "flops_per_second") - 1.0).abs() < 1e-9,
            "{row}"
        );
        assert!(number(row, "bytes") > 0.0 && number(row, "share") > 0.0);
        assert_eq!(row["shape"], "B8 T256 H4 D64");
    }
    let table = succeed(&[
        "bench",
        "kernels",
        "--device",
        "cpu",
        "--filter",
        "small add",
        "--seconds",
        "0.01",
    ]);
    assert!(
        table.contains("small add") && table.contains("of ceiling"),
        "{table}"
    );
    assert!(
        table.lines().last().unwrap().starts_with("Ceilings"),
        "{table}"
    );
}

const TINY: [&str; 8] = [
    "--depth",
    "2",
    "--d-model",
    "64",
    "--vocab",
    "100",
    "--batch",
    "2",
];

#[test]
fn options_make_the_rows_of_train() {
    let tiny = |more: &[&'static str]| [&["train"], &TINY[..], &["--tokens", "32"], more].concat();
    let result = bench(&tiny(&[]));
    let rows = result["rows"].as_array().unwrap();
    let layers: Vec<&Value> = rows.iter().map(|r| &r["layers"]).collect();
    assert_eq!(layers, ["attention", "3*gdn2 + attention"]);
    for row in rows {
        let tokens = number(row, "tokens_per_second");
        assert!(
            (tokens * number(row, "ms") / 64e3 - 1.0).abs() < 1e-9,
            "{row}"
        );
        assert_eq!(
            (&row["mfu"], &row["driver_allocations"]),
            (&Value::Null, &Value::Null)
        );
    }
    let one = bench(&tiny(&["--layers", "swa", "--compute", "bf16"]));
    assert_eq!(
        one["rows"].as_array().unwrap().len(),
        1,
        "equal rows are measured once"
    );
    assert_eq!(one["rows"][0]["compute"], "bf16");
}

#[test]
fn decode_has_two_positions_and_several_batches() {
    let tiny = [&["decode"], &TINY[..6]].concat();
    let result = bench(&tiny);
    let rows = result["rows"].as_array().unwrap();
    let of = |layers: &str| -> Vec<(u64, u64)> {
        let rows = rows.iter().filter(|r| r["layers"] == layers);
        let key = |r: &Value, key: &str| r[key].as_u64().unwrap();
        rows.map(|r| (key(r, "batch"), key(r, "position")))
            .collect()
    };
    assert_eq!(of("gdn2"), [(1, 100), (1, 4096)]);
    assert_eq!(of("3*gdn2 + attention").len(), 4);
    let one = bench(
        &[
            &tiny[..],
            &[
                "--batch",
                "1",
                "--position",
                "7",
                "--layers",
                "gdn2",
                "--weights",
                "bf16",
            ],
        ]
        .concat(),
    );
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    assert_eq!(one["rows"][0]["weights"], "bf16");
}

#[test]
fn what_makes_no_sense_is_one_sentence() {
    for (args, part) in [
        (
            &[
                "bench",
                "kernels",
                "--device",
                "cpu",
                "--filter",
                "no such row",
            ][..],
            "no row contains 'no such row'",
        ),
        (
            &["bench", "train", "--device", "cpu", "--layers", "3*"],
            "layer pattern",
        ),
        (
            &[
                "bench",
                "train",
                "--device",
                "cpu",
                "--layers",
                "attentoin",
                "--depth",
                "1",
            ],
            "attentoin",
        ),
    ] {
        let text = fail(args);
        assert!(text.contains(part), "{text}");
    }
}
