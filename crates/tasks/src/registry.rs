//! The table of tasks. A task's line here is all that recipes and the command line need to know it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::example::Task;
use crate::grammar::GrammarTask;
use crate::{
    BitRecall, Counters, Mqar, Needle, Pointers, Recall, SelectiveCopying, StateTracking, Swaps,
    SymbolSoup,
};

/// How a task is made from knobs and a seed.
pub type Build = fn(&Map<String, Value>, u64) -> Result<Box<dyn Task>>;

/// A line of the table.
pub struct Entry {
    /// The name in a recipe.
    pub name: &'static str,
    /// What is asked, in a few words.
    pub title: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// Every knob with its default.
    pub knobs: fn() -> Map<String, Value>,
    /// The task with some knobs set, the others at their defaults; the seed is for what the task itself draws once.
    pub build: Build,
}

/// Settings of a task that know how to become it.
pub(crate) trait Knobs: Serialize + DeserializeOwned + Default {
    /// Its name in the table.
    const NAME: &'static str;

    /// Check them and build the task.
    fn build(self, seed: u64) -> Result<Box<dyn Task>>;
}

/// Every task of the house.
pub static TASKS: &[Entry] = &[
    entry::<Mqar>(
        "multi-query associative recall",
        "Arora et al. 2023, arXiv 2312.04927",
    ),
    entry::<Recall>(
        "keys written, overwritten and asked for, among noise",
        "Arora et al. 2023, arXiv 2312.04927, with overwriting",
    ),
    entry::<BitRecall>(
        "bits of an array by index",
        "Olmo Hybrid 2026, arXiv 2604.03444",
    ),
    entry::<Needle>(
        "a sentence found again in a long text",
        "Hsieh et al. 2024 (RULER), arXiv 2404.06654",
    ),
    entry::<SelectiveCopying>(
        "tokens scattered in noise, repeated in order",
        "Gu, Dao 2023, arXiv 2312.00752",
    ),
    entry::<GrammarTask>(
        "states of a random grammar",
        "Bouhadjar et al. 2026 (SelectivBench), arXiv 2601.12598",
    ),
    entry::<SymbolSoup>(
        "styles of two passages in noise",
        "Horbatko 2026 (Sessa), arXiv 2604.18580",
    ),
    entry::<StateTracking>(
        "word problems of a finite group",
        "Merrill, Petty, Sabharwal 2024, arXiv 2404.08819",
    ),
    entry::<Swaps>(
        "items that change places",
        "Olmo Hybrid 2026, arXiv 2604.03444",
    ),
    entry::<Pointers>(
        "bits behind pointers that change places",
        "Olmo Hybrid 2026, arXiv 2604.03444",
    ),
    entry::<Counters>(
        "registers counted up, reset and read",
        "a test of Gated DeltaNet-2, Hatamizadeh, Choi, Kautz 2026, arXiv 2605.22791",
    ),
];

const fn entry<K: Knobs + 'static>(title: &'static str, paper: &'static str) -> Entry {
    Entry {
        name: K::NAME,
        title,
        paper,
        knobs: defaults::<K>,
        build: build::<K>,
    }
}

fn defaults<K: Knobs>() -> Map<String, Value> {
    match serde_json::to_value(K::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn build<K: Knobs>(knobs: &Map<String, Value>, seed: u64) -> Result<Box<dyn Task>> {
    let knobs: K =
        serde_json::from_value(Value::Object(knobs.clone())).map_err(|e| Error::Knob {
            task: K::NAME,
            reason: e.to_string(),
        })?;
    knobs.build(seed)
}

/// A task by name.
///
/// # Errors
/// When there is none of that name; the nearest one is named.
pub fn find(name: &str) -> Result<&'static Entry> {
    if let Some(entry) = TASKS.iter().find(|e| e.name == name) {
        return Ok(entry);
    }
    let distance = |e: &&Entry| strsim::damerau_levenshtein(e.name, name);
    let nearest = TASKS.iter().min_by_key(distance);
    Err(Error::Unknown {
        name: name.to_owned(),
        hint: nearest.map_or(String::new(), |e| format!(", did you mean {:?}?", e.name)),
    })
}
