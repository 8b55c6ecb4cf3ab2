use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use super::task::Rendered;
use super::*;
use crate::example::Task;
use crate::registry::Knobs;

fn shape() -> Shape {
    Shape {
        symbols: 7,
        ambiguous: 4,
        depth: 5,
        starts: 3,
        density: 0.4,
    }
}

#[test]
fn a_drawn_grammar_is_one() {
    for seed in 0..20 {
        let grammar = Grammar::draw(&mut Rng::new(seed), &shape()).unwrap();
        assert_eq!(grammar.states(), 1 + 4 * 5 + 2);
        assert_eq!(grammar.starts().len(), 3);
        assert!(grammar.always_ends() && !grammar.starts().contains(&END));
        for state in 0..grammar.states() {
            for &to in grammar.successors(state) {
                let back = grammar.follow(state, grammar.symbol(to)).unwrap();
                // Only the starts may share a symbol.
                assert!(back == to || state == END);
            }
        }
    }
}

#[test]
fn edges_have_the_probability_of_their_kind() {
    // The end and letter 1 stand for one state each, letters 2 and 3 for five.
    let symbols: Vec<usize> = [0, 1].into_iter().chain([2; 5]).chain([3; 5]).collect();
    let (mut counts, mut rng, draws) = ([0; 4], Rng::new(1), 2000);
    for _ in 0..draws {
        for (from, to) in draw_edges(&mut rng, &symbols, &shape()) {
            assert!(from != END);
            counts[symbols[to]] += 1;
        }
    }
    let rates = counts.map(|n| f64::from(n) / f64::from(draws * 11));
    for (rate, want) in rates.into_iter().zip([0.08, 0.08, 0.4, 0.4]) {
        assert!((rate - want).abs() < 0.01, "{rate} is not {want}");
    }
}

#[test]
fn dead_ends_and_choices_of_one_symbol_are_refused() {
    let grammar = |edges: &[(usize, usize)]| Grammar::new(vec![0, 1, 1, 2], vec![1], edges);
    assert!(
        grammar(&[(1, 3), (3, 0)]).is_some_and(|g| !g.always_ends()),
        "state 2 is stuck"
    );
    assert!(grammar(&[(1, 3), (2, 0), (3, 0)]).is_some_and(|g| g.always_ends()));
    assert!(
        grammar(&[(3, 1), (3, 2)]).is_none(),
        "two ways for one symbol"
    );
    assert!(grammar(&[(0, 1)]).is_none(), "the end leads nowhere");
}

#[test]
fn the_entropy_of_a_full_shift_is_the_logarithm_of_its_symbols() {
    for n in [2, 5] {
        // n letters, each of which may follow each, the end among them.
        let letters = 1..n;
        let edges: Vec<_> = letters
            .clone()
            .flat_map(|i| (0..n).map(move |j| (i, j)))
            .collect();
        let grammar = Grammar::new((0..n).collect(), letters.collect(), &edges).unwrap();
        // The end leads to the n - 1 starts only: the eigenvalue solves x^2 = (n - 1) (x + 1).
        let b = (n - 1) as f64;
        let x = (b + (b * b + 4.0 * b).sqrt()) / 2.0;
        assert!((grammar.topological_entropy() - x.ln()).abs() < 1e-9);
    }
    // Without an end in reach: a full shift on the two letters.
    let edges = [(1, 1), (1, 2), (2, 1), (2, 2)];
    let shift = Grammar::new(vec![0, 1, 2], vec![1], &edges).unwrap();
    assert!((shift.topological_entropy() - 2f64.ln()).abs() < 1e-9);
}

fn rendered(knobs: GrammarTask, seed: u64) -> Rendered {
    let grammar = Grammar::draw(
        &mut Rng::new(seed),
        &Shape {
            symbols: knobs.symbols,
            ambiguous: knobs.ambiguous,
            depth: knobs.depth,
            starts: knobs.starts,
            density: knobs.density,
        },
    );
    Rendered {
        grammar: grammar.unwrap(),
        knobs,
    }
}

/// An automaton that reads tokens and knows where the gaps are tells every state but those of ambiguous starts.
#[test]
fn an_oracle_tells_the_states_from_the_symbols() {
    for (seed, distractors) in [(0, false), (1, true)] {
        let knobs = GrammarTask {
            gaps: [1, 4],
            gap_share: 0.6,
            gap_start: 3,
            distractors,
            ..GrammarTask::default()
        };
        let task = rendered(knobs, seed);
        let grammar = &task.grammar;
        let shared = |state: usize| {
            let symbol = grammar.symbol(state);
            grammar
                .starts()
                .iter()
                .filter(|&&s| grammar.symbol(s) == symbol)
                .count()
                > 1
        };
        let example = task.draw(&mut Rng::new(5), 400);
        let (mut state, mut gaps, mut elements) = (END, 0, 0);
        for (&id, &target) in example.ids.iter().zip(&example.targets) {
            let (id, target) = (id as usize, target as usize);
            match grammar.follow(state, id) {
                // A gap: the state stays, the symbol is the empty one or a wrong one.
                None => {
                    gaps += 1;
                    assert!(elements > 3);
                    assert_eq!(id == 7, !distractors);
                }
                Some(next) => {
                    elements += 1;
                    let known = state != END || !shared(target);
                    state = if known { next } else { target };
                }
            }
            assert_eq!(state, target);
        }
        assert!(gaps > 50 && elements > 50);
    }
}

#[test]
fn impossible_shapes_are_refused() {
    let refuse = |change: fn(&mut GrammarTask), part: &str| {
        let mut knobs = GrammarTask::default();
        change(&mut knobs);
        let error = knobs.build(0).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(|k| k.symbols = 1, "symbols");
    refuse(|k| k.ambiguous = 7, "ambiguous");
    refuse(|k| k.depth = 0, "depth");
    refuse(|k| k.starts = 37, "starts");
    refuse(|k| k.density = 0.0, "no grammar");
    refuse(|k| k.gaps = [3, 2], "gaps");
    refuse(|k| k.gap_share = 1.5, "gap_share");
}

/// The golden file of this benchmark, and the one of that name in the folder of `WEFT_GOLDEN_DIR`.
fn golden_files() -> Vec<PathBuf> {
    let name = "selectivbench.safetensors";
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let more = std::env::var_os("WEFT_GOLDEN_DIR").map(PathBuf::from);
    let files = [Some(here), more]
        .into_iter()
        .flatten()
        .map(|dir| dir.join(name));
    files.filter(|file| file.is_file()).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect()
}

fn numbers(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as usize)
        .collect()
}

/// The grammar of a case, its states in the order of their ids; symbols are `#` and the letters from A on.
fn golden_grammar(case: &Value) -> (Grammar, Vec<String>) {
    let ids = case["state_ids"].as_object().unwrap();
    let mut names = vec![String::new(); ids.len()];
    for (name, id) in ids {
        names[id.as_u64().unwrap() as usize] = name.clone();
    }
    let id = |name: &str| ids[name].as_u64().unwrap() as usize;
    let symbol = |name: &String| match name.as_bytes()[0] {
        b'#' => END,
        letter => (letter - b'A') as usize + 1,
    };
    let edges: Vec<(usize, usize)> = case["transitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|edge| edge[0] != "#")
        .map(|edge| (id(edge[0].as_str().unwrap()), id(edge[1].as_str().unwrap())))
        .collect();
    let starts = strings(&case["start_states"]).into_iter().map(id).collect();
    let symbols = names.iter().map(symbol).collect();
    (Grammar::new(symbols, starts, &edges).unwrap(), names)
}

fn floats(file: &SafeTensors, name: &str) -> Option<Vec<f64>> {
    let view = file.tensor(name).ok()?;
    let bytes = view.data();
    Some(match view.dtype() {
        safetensors::Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
            .collect(),
        safetensors::Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        safetensors::Dtype::I64 => bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
            .collect(),
        other => panic!("{name} is {other:?}"),
    })
}

#[test]
fn golden_grammars_strings_and_renderings() {
    for path in golden_files() {
        let bytes = std::fs::read(&path).unwrap();
        let (_, meta) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let cases = &meta.metadata().as_ref().unwrap()["cases"];
        let cases: Value = serde_json::from_str(cases).unwrap();
        for (name, case) in cases.as_object().unwrap() {
            let (grammar, names) = golden_grammar(case);
            assert!(grammar.always_ends(), "{name}");
            for sequence in case["sequences"].as_array().unwrap() {
                // Where the next symbol is to be predicted, the ids are those of symbols.
                let states = case["options"]["classify"] != false;
                golden_sequence(&grammar, &names, sequence, states);
            }
            golden_rendering(name, &file, case, &grammar);
        }
    }
}

fn golden_sequence(grammar: &Grammar, names: &[String], sequence: &Value, classify: bool) {
    let symbols = numbers(&sequence["symbols"]);
    let states = strings(&sequence["states"]);
    let ids = classify.then(|| numbers(&sequence["target_ids"]));
    let mut state = END;
    for (i, (&symbol, &want)) in symbols.iter().zip(&states).enumerate() {
        let want = names.iter().position(|n| n == want).unwrap();
        assert!(grammar.successors(state).contains(&want), "element {i}");
        if state != END {
            assert_eq!(grammar.follow(state, symbol), Some(want), "element {i}");
        }
        assert_eq!(grammar.symbol(want), symbol, "element {i}");
        if let Some(ids) = &ids {
            assert_eq!(ids[i], want, "element {i}");
        }
        state = want;
    }
}

/// Data rows are one-hot symbols, or empty; the state of the last element is the target of each, or it gives the
/// distribution of the next symbol.
fn golden_rendering(name: &str, file: &SafeTensors, case: &Value, grammar: &Grammar) {
    let width = case["vocab"].as_u64().unwrap() as usize;
    let data = floats(file, &format!("{name}/data")).unwrap();
    let targets = floats(file, &format!("{name}/target")).unwrap();
    let next = floats(file, &format!("{name}/target_probs"));
    let index = &case["rendered_item_index"];
    let sequences = case["sequences"].as_array().unwrap();
    let item = sequences.iter().find(|s| s["index"] == *index).unwrap();
    let symbols = numbers(&item["symbols"]);
    let ids = case["state_ids"].as_object().unwrap();
    let states: Vec<usize> = strings(&item["states"])
        .into_iter()
        .map(|state| ids[state].as_u64().unwrap() as usize)
        .collect();
    let mask = floats(file, &format!("{name}/gap_mask")).unwrap();
    let steps = data.len() / width;
    let mut element = 0;
    for step in 0..steps {
        if mask.len() == symbols.len() * steps {
            element = (0..symbols.len())
                .find(|e| mask[e * steps + step] > 0.0)
                .unwrap();
        } else if step > 0 && data[step * width..][..width].iter().any(|&x| x > 0.0) {
            element += 1;
        }
        let row = &data[step * width..][..width];
        let state = states[element];
        let first = step == 0 || mask.get(element * steps + step - 1) != Some(&1.0);
        if let Some(hot) = row.iter().position(|&x| x > 0.0) {
            let wrong = grammar.ungrammatical(state).contains(&hot);
            assert!(
                (first && hot == symbols[element]) || wrong,
                "{name}: step {step}"
            );
        }
        let want = match (&next, state) {
            (None, _) => state,
            // Behind the end of a string the benchmark expects the end again.
            (Some(_), END) => END,
            (Some(_), _) => symbols.get(element + 1).copied().unwrap_or(END),
        };
        assert_eq!(targets[step], want as f64, "{name}: step {step}");
        if let Some(next) = next.as_ref().filter(|_| state != END) {
            let to = grammar.successors(state);
            let mut want = vec![0.0; width];
            to.iter()
                .for_each(|&s| want[grammar.symbol(s)] += 1.0 / to.len() as f64);
            let got = &next[step * width..][..width];
            assert!(
                got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6),
                "{name}: step {step}"
            );
        }
    }
}
