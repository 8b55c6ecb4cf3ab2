//! A reader per task that sees the tokens only, knows the rules, and must answer every question right. It is written
//! from the rules, not from the generators.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_tasks::{Generator, NOTHING};

/// Ids and targets of one held-out example.
fn example(
    name: &str,
    knobs: Value,
    length: usize,
    number: u64,
) -> (Vec<usize>, Vec<Option<usize>>) {
    let generator = Generator::new(name, knobs.as_object().unwrap(), 0).unwrap();
    let batch = generator.held_out(number, 1, length).unwrap();
    let ids = batch.ids.iter().map(|&id| id as usize).collect();
    let targets = batch
        .targets
        .iter()
        .map(|&t| (t != NOTHING).then_some(t as usize));
    (ids, targets.collect())
}

/// Pairs of `n` slots by number, as the documentation says: (0 1), (0 2), (1 2), (0 3), ...
fn pairs(n: usize) -> Vec<(usize, usize)> {
    (0..n).flat_map(|b| (0..b).map(move |a| (a, b))).collect()
}

proptest! {
    #[test]
    fn mqar(number: u64, pairs in 1usize..9, more in 0usize..60) {
        let (ids, targets) = example("mqar", json!({"vocab": 64, "pairs": pairs}), 4 * pairs + more, number);
        let (stored, rest) = ids.split_at(2 * pairs);
        let map: HashMap<usize, usize> = stored.chunks(2).map(|kv| (kv[0], kv[1])).collect();
        prop_assert_eq!(map.len(), pairs, "keys are different");
        prop_assert!(map.iter().all(|(&k, &v)| k < 32 && (32..64).contains(&v)));
        let mut asked = HashSet::new();
        for (i, id) in rest.iter().enumerate() {
            prop_assert_eq!(targets[2 * pairs + i], map.get(id).copied());
            if map.contains_key(id) {
                prop_assert!(i % 2 == 0 && asked.insert(*id));
            }
        }
        prop_assert_eq!(asked.len(), pairs);
        prop_assert!(targets[..2 * pairs].iter().all(Option::is_none));
    }

    #[test]
    fn recall(number: u64, more in 0usize..60, live in 1usize..8, answers: bool) {
        let knobs = json!({"keys": 10, "values": 6, "noise": 3, "pairs": 9, "live": live, "queries": 12, "answers": answers});
        let end = 12 * (1 + usize::from(answers));
        let length = 18 + end + more;
        let (ids, targets) = example("recall", knobs, length, number);
        let mut latest = HashMap::new();
        let mut writes = 0;
        for place in (0..length - end).step_by(2).filter(|&p| ids[p] < 10) {
            latest.insert(ids[place], ids[place + 1]);
            writes += 1;
        }
        prop_assert_eq!((writes, latest.len()), (9, live));
        let mut asked = HashSet::new();
        for i in 0..length {
            let question = i >= length - end && (!answers || (i - (length - end)).is_multiple_of(2));
            prop_assert_eq!(targets[i], question.then(|| latest[&ids[i]]));
            if question && asked.len() < live {
                prop_assert!(asked.insert(ids[i]), "every live key once before one comes again");
            }
            if answers && i > length - end && !question {
                prop_assert_eq!(Some(ids[i]), targets[i - 1]);
            }
        }
    }

    #[test]
    fn selective_copying(number: u64, copies in 1usize..12, more in 0usize..60) {
        let (ids, targets) = example("selective_copying", json!({"symbols": 5, "copies": copies}), 2 * copies + more, number);
        let symbols: Vec<usize> = ids.iter().copied().filter(|&id| id < 5).collect();
        prop_assert_eq!(symbols.len(), copies);
        let answers: Vec<usize> = targets.iter().flatten().copied().collect();
        prop_assert_eq!(answers, symbols);
        let questions = ids.iter().zip(&targets).filter(|(_, t)| t.is_some());
        prop_assert!(questions.map(|(id, _)| *id).all(|id| id == 6));
        prop_assert!(ids[ids.len() - copies..].iter().all(|&id| id == 6));
    }

    #[test]
    fn bit_recall(number: u64, bits in 1usize..40, more in 1usize..20) {
        let (ids, targets) = example("bit_recall", json!({"bits": bits}), bits + more, number);
        for (i, target) in targets.iter().enumerate() {
            prop_assert_eq!(*target, (i >= bits).then(|| ids[ids[i] - 2]));
        }
    }

    #[test]
    fn pointers(number: u64, p in 2usize..6, told in 0.0..=1.0, more in 0usize..60) {
        let bits = 12;
        let knobs = json!({"bits": bits, "pointers": p, "told": told});
        let (ids, targets) = example("pointers", knobs, bits + p + 2 + more, number);
        let mut at: Vec<usize> = ids[bits..bits + p].iter().map(|id| id - 2).collect();
        prop_assert_eq!(at.iter().collect::<HashSet<_>>().len(), p);
        let questions = 2 + bits;
        let mut swaps = 0;
        for (i, &id) in ids.iter().enumerate().skip(bits + p) {
            let mut want = None;
            match id {
                _ if id >= questions + 2 * p => {
                    let (a, b) = pairs(p)[id - questions - 2 * p];
                    at.swap(a, b);
                    swaps += 1;
                }
                _ if id >= questions + p => want = Some(ids[at[id - questions - p]]),
                _ if id >= questions => want = Some(2 + at[id - questions]),
                _ => prop_assert_eq!(Some(id), targets[i - 1], "an index is shown where it was asked for"),
            }
            prop_assert_eq!(targets[i], want);
        }
        prop_assert!(swaps > 0 && targets.last().unwrap().is_some_and(|bit| bit < 2));
    }

    #[test]
    fn swaps(number: u64, slots in 2usize..7, questions in 0.0..=1.0, more in 0usize..60) {
        let knobs = json!({"slots": slots, "questions": questions});
        let (ids, targets) = example("swaps", knobs, slots + 2 + more, number);
        let mut items: Vec<usize> = ids[..slots].to_vec();
        for (i, &id) in ids.iter().enumerate() {
            let want = (slots..2 * slots).contains(&id).then(|| items[id - slots]);
            prop_assert_eq!(targets[i], want);
            if id >= 2 * slots {
                let (a, b) = pairs(slots)[id - 2 * slots];
                items.swap(a, b);
            }
        }
        prop_assert!(targets.last().unwrap().is_some());
    }

    #[test]
    fn counters(number: u64, length in 1usize..200, cap in 1usize..6) {
        let (ids, targets) = example("counters", json!({"registers": 3, "cap": cap}), length, number);
        let mut counts = [0; 3];
        for (&id, target) in ids.iter().zip(targets) {
            let (kind, register) = ((id - cap - 1) / 3, (id - cap - 1) % 3);
            prop_assert_eq!(target, (kind == 2).then(|| counts[register].min(cap)));
            match kind {
                0 => counts[register] += 1,
                1 => counts[register] = 0,
                _ => (),
            }
        }
    }

    /// Permutations by number, found by counting in base n; products on arrays.
    #[test]
    fn state_tracking(number: u64, degree in 3usize..6, even: bool, all: bool, length in 1usize..50) {
        let elements: Vec<Vec<usize>> = (0..degree.pow(degree as u32))
            .map(|code| (0..degree).rev().map(|i| code / degree.pow(i as u32) % degree).collect::<Vec<_>>())
            .filter(|p| p.iter().collect::<HashSet<_>>().len() == degree)
            .filter(|p| !even || sign(p) > 0)
            .collect();
        let group = format!("{}{degree}", if even { "A" } else { "S" });
        let alphabet = if all { "all" } else { "generators" };
        let (ids, targets) = example("state_tracking", json!({"group": group, "alphabet": alphabet}), length, number);
        let mut product: Vec<usize> = (0..degree).collect();
        for (id, target) in ids.iter().zip(targets) {
            product = product.iter().map(|&i| elements[*id][i]).collect();
            prop_assert_eq!(&elements[target.unwrap()], &product);
        }
        prop_assert!(all || ids.iter().collect::<HashSet<_>>().len() <= 2);
    }

    #[test]
    fn modular_addition(number: u64, k in 2usize..9, length in 1usize..50) {
        let knobs = json!({"group": format!("Z{k}"), "alphabet": "all"});
        let (ids, targets) = example("state_tracking", knobs, length, number);
        let mut sum = 0;
        for (id, target) in ids.iter().zip(targets) {
            sum = (sum + id) % k;
            prop_assert_eq!(target, Some(sum));
        }
    }

    #[test]
    fn needle_in_bytes(number: u64, needles in 1usize..5, values in 1usize..4, more in 0usize..500) {
        let knobs = json!({"level": "byte", "needles": needles, "values": values, "queries": needles, "digits": 3});
        let generator = Generator::new("needle", knobs.as_object().unwrap(), 0).unwrap();
        let (ids, targets) = example("needle", knobs, generator.task().min_length() + more, number);
        let text = String::from_utf8(ids.iter().map(|&id| id as u8).collect()).unwrap();
        let mut spelt = text.clone().into_bytes();
        let mut questions = 0;
        for (at, _) in text.match_indices("what is the number of ") {
            let (subject, _) = text[at + 22..].split_once(" ? ").unwrap();
            let said = format!("the number of {subject} is ");
            prop_assert_eq!(text.matches(&said).count(), 1, "{}", text);
            let (_, rest) = text.split_once(&said).unwrap();
            let (numbers, _) = rest.split_once(" . ").unwrap();
            let answer = at + 22 + subject.len() + 3;
            prop_assert_eq!(&text[answer..][..numbers.len()], numbers);
            for (i, byte) in numbers.bytes().enumerate().filter(|(_, b)| b.is_ascii_digit()) {
                prop_assert_eq!(targets[answer + i - 1], Some(usize::from(byte)));
                spelt[answer + i] = b'!';
            }
            questions += 1;
        }
        prop_assert_eq!(questions, needles);
        prop_assert_eq!(targets.iter().flatten().count(), needles * values * 3);
        prop_assert_eq!(spelt.iter().filter(|&&b| b == b'!').count(), needles * values * 3);
    }
}

/// 1 for even permutations, -1 for odd ones.
fn sign(p: &[usize]) -> i32 {
    let mut sign = 1;
    for i in 0..p.len() {
        for j in 0..i {
            sign *= if p[j] > p[i] { -1 } else { 1 };
        }
    }
    sign
}

/// Where the first needle of many stands, as a share of the text before the question.
fn depths(depth: [f64; 2]) -> Vec<f64> {
    (0..200)
        .map(|number| {
            let (ids, _) = example("needle", json!({"depth": depth}), 300, number);
            let question = ids.iter().rposition(|&id| id == 11).unwrap();
            let subject = ids[question - 1];
            ids.iter().position(|&id| id == subject).unwrap() as f64 / question as f64
        })
        .collect()
}

#[test]
fn needles_stand_at_the_depth_that_is_asked_for() {
    let near = |depth: f64, wanted: f64| (depth - wanted).abs() < 0.06;
    assert!(depths([0.0, 0.0]).iter().all(|&d| near(d, 0.0)));
    assert!(depths([1.0, 1.0]).iter().all(|&d| near(d, 1.0)));
    let all = depths([0.0, 1.0]);
    for tenth in 0..10 {
        let share = |d: &&f64| (**d * 10.0) as usize == tenth;
        assert!(
            all.iter().filter(share).count() > 5,
            "few needles in tenth {tenth}"
        );
    }
}

#[test]
fn a_small_power_asks_early_and_one_asks_everywhere_alike() {
    let mean = |power: f64| {
        let mut places = Vec::new();
        for number in 0..200 {
            let (_, targets) = example(
                "mqar",
                json!({"vocab": 64, "pairs": 4, "power": power}),
                108,
                number,
            );
            places.extend(
                targets
                    .iter()
                    .enumerate()
                    .filter(|(_, t)| t.is_some())
                    .map(|(i, _)| i - 8),
            );
        }
        places.iter().sum::<usize>() as f64 / places.len() as f64
    };
    let (early, even) = (mean(0.01), mean(1.0));
    assert!((even - 49.0).abs() < 3.0, "{even}");
    assert!(early < 0.6 * even, "{early} and {even}");
}
