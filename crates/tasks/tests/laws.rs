//! What every task must obey, whatever its knobs.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use weft_tasks::{Generator, NOTHING, TASKS, find};

/// Knobs away from the defaults, at least one setting per task.
fn samples() -> Vec<(&'static str, Value)> {
    let mut all: Vec<(&str, Value)> = TASKS.iter().map(|e| (e.name, json!({}))).collect();
    all.extend([
        ("mqar", json!({"vocab": 9, "pairs": 4, "power": 1.0})),
        ("recall", json!({"keys": 5, "values": 3, "noise": 1, "pairs": 5, "live": 2, "queries": 7, "answers": false})),
        ("bit_recall", json!({"bits": 1})),
        ("needle", json!({"level": "byte", "needles": 5, "values": 2, "queries": 3, "digits": 3, "depth": [0.2, 0.7]})),
        ("needle", json!({"needles": 4, "queries": 4, "depth": [1.0, 1.0]})),
        ("selective_copying", json!({"symbols": 1, "copies": 1})),
        ("grammar", json!({"symbols": 4, "ambiguous": 1, "depth": 2, "starts": 1, "gaps": [0, 9], "density": 0.7})),
        ("grammar", json!({"distractors": true, "gap_share": 0.3, "gap_start": 5})),
        ("symbol_soup", json!({"least": 0.5})),
        ("state_tracking", json!({"group": "Z2"})),
        ("state_tracking", json!({"group": "A5", "alphabet": "all"})),
        ("swaps", json!({"slots": 2, "questions": 0.0})),
        ("pointers", json!({"bits": 2, "pointers": 2, "told": 1.0, "strict": 0.0})),
        ("counters", json!({"registers": 1, "cap": 1, "resets": 0.5, "queries": 0.5})),
    ]);
    all
}

fn generator(name: &str, knobs: &Value, seed: u64) -> Generator {
    let map: &Map<String, Value> = knobs.as_object().unwrap();
    Generator::new(name, map, seed).unwrap_or_else(|e| panic!("{name} {knobs}: {e}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn examples_fit_their_length_and_vocabulary(seed: u64, more in 0usize..200, first: u64) {
        for (name, knobs) in samples() {
            let generator = generator(name, &knobs, seed % 7);
            let task = generator.task();
            let (vocab, length) = (task.vocab() as i64, task.min_length() + more);
            let batch = generator.held_out(first, 3, length).unwrap();
            prop_assert_eq!((batch.rows, batch.columns), (3, length));
            prop_assert_eq!((batch.ids.len(), batch.targets.len()), (3 * length, 3 * length));
            prop_assert!(batch.ids.iter().all(|id| (0..vocab).contains(id)), "{} {}", name, knobs);
            prop_assert!(batch.targets.iter().all(|t| (NOTHING..vocab).contains(t)), "{} {}", name, knobs);
            for row in batch.targets.chunks(length) {
                prop_assert!(row.iter().any(|&t| t != NOTHING), "{} {}: nothing is asked", name, knobs);
            }
        }
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_number(seed: u64, number in 0u64..1 << 40) {
        for (name, knobs) in samples() {
            let generator = generator(name, &knobs, 1);
            let low = generator.task().min_length();
            let draw = |seed, number| generator.train(seed, number, 4, low..=low + 40).unwrap();
            let batch = draw(seed, number);
            prop_assert!((low..=low + 40).contains(&batch.columns));
            prop_assert_eq!(&batch, &draw(seed, number));
        }
    }
}

/// Training, held-out draws and other seeds share no stream: in worlds that are large enough nothing comes twice.
#[test]
fn held_out_draws_are_not_those_of_training() {
    for entry in TASKS {
        let generator = generator(entry.name, &json!({}), 3);
        let length = generator.task().min_length() + 40;
        let mut rows = std::collections::HashSet::new();
        let mut add = |ids: Vec<i64>| {
            ids.chunks(length)
                .for_each(|row| assert!(rows.insert(row.to_vec()), "{}", entry.name))
        };
        for number in 0..10 {
            add(generator.train(3, number, 8, length..=length).unwrap().ids);
            add(generator.train(4, number, 8, length..=length).unwrap().ids);
            add(generator.held_out(8 * number, 8, length).unwrap().ids);
        }
    }
}

#[test]
fn lengths_of_a_run_are_drawn_from_the_range() {
    let generator = generator("state_tracking", &json!({}), 0);
    let lengths: std::collections::BTreeSet<usize> = (0..200)
        .map(|n| generator.train(0, n, 1, 2..=6).unwrap().columns)
        .collect();
    assert_eq!(lengths, (2..=6).collect());
}

#[test]
fn too_few_tokens_are_refused() {
    for entry in TASKS {
        let generator = generator(entry.name, &json!({}), 0);
        let least = generator.task().min_length();
        let error = generator.held_out(0, 1, least - 1).unwrap_err().to_string();
        assert!(
            error.contains(entry.name) && error.contains(&format!("it takes {least}")),
            "{error}"
        );
        assert!(generator.train(0, 0, 1, least - 1..=least + 5).is_err());
    }
}

#[test]
fn names_and_knobs_that_do_not_exist_are_refused() {
    let error = find("mqra").err().unwrap().to_string();
    assert!(error.contains("did you mean \"mqar\""), "{error}");
    for entry in TASKS {
        let refuse = |knobs: Value| {
            let error = Generator::new(entry.name, knobs.as_object().unwrap(), 0).err();
            let error = error
                .unwrap_or_else(|| panic!("{}: {knobs} is taken", entry.name))
                .to_string();
            assert!(
                error.starts_with(&format!("task {}: ", entry.name)) && !error.contains('\n'),
                "{error}"
            );
        };
        refuse(json!({"size": 3}));
        for (knob, default) in (entry.knobs)() {
            refuse(json!({knob.clone(): {"a": 1}}));
            if default.is_u64() && !["gap_start", "ambiguous"].contains(&knob.as_str()) {
                refuse(json!({knob.clone(): 0}));
            }
            if default.is_f64() {
                refuse(json!({knob.clone(): -0.5}));
                refuse(json!({knob: f64::MAX}));
            }
        }
    }
}

#[test]
fn the_defaults_written_out_are_the_defaults() {
    for entry in TASKS {
        let written = (entry.knobs)();
        let (a, b) = (
            generator(entry.name, &json!({}), 0),
            generator(entry.name, &Value::Object(written), 0),
        );
        let length = a.task().min_length() + 9;
        assert_eq!(
            a.held_out(0, 2, length).unwrap(),
            b.held_out(0, 2, length).unwrap()
        );
    }
}
