//! The `[task]` table: a synthetic task instead of data.
//!
//! ```toml
//! [task]
//! name = "mqar"
//! length = 128      # tokens of an example
//! pairs = 16        # a knob of this task; `weft tasks` lists them
//! ```

use serde::Serialize;
use serde_json::{Map, Value};
use weft_tasks::Generator;

use super::section::Section;
use super::train::MAX;
use crate::error::{Error, Result};

/// What is learned from, when it is a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskRecipe {
    /// Its name in the table of tasks.
    pub name: String,
    /// Seed of what the task draws once (a grammar, styles) and of the held-out examples. Training examples follow
    /// `train.seed`. Default 0.
    pub seed: u64,
    /// Tokens of an example. Default 64, or the fewest that hold one.
    pub length: usize,
    /// Each batch has a length of its own, from here to `length`. Default `length`.
    pub min_length: usize,
    /// The task's own knobs, all of them.
    #[serde(flatten)]
    pub knobs: Map<String, Value>,
}

/// Longer examples than this are a slip of the finger.
pub(super) const MAX_LENGTH: u64 = 1 << 20;

impl TaskRecipe {
    pub(super) fn read(mut table: Section<'_>) -> Result<Self> {
        let name = table
            .text("name")?
            .ok_or_else(|| table.missing("name"))?
            .to_owned();
        let entry = weft_tasks::find(&name).map_err(|e| table.wrong("name", e.to_string()))?;
        let seed = table.integer("seed", 0..=MAX)?.unwrap_or(0);
        let length = table.size("length", 1..=MAX_LENGTH)?;
        let least = table.size("min_length", 1..=MAX_LENGTH)?;
        let defaults = (entry.knobs)();
        let known: Vec<&str> = defaults.keys().map(String::as_str).collect();
        let (rest, place) = table.rest(&known)?;
        let mut knobs = defaults.clone();
        knobs.extend(rest);

        let wrong = |e: weft_tasks::Error| {
            let reason = e.to_string();
            let knob = defaults
                .keys()
                .find(|knob| reason.contains(&format!(": {knob} is")));
            place.wrong(knob.map_or("name", String::as_str), reason)
        };
        let generator = Generator::new(&name, &knobs, seed).map_err(wrong)?;
        let length = length.unwrap_or(generator.task().min_length().max(64));
        let min_length = least.unwrap_or(length);
        if min_length > length {
            let reason =
                format!("`task.min_length` ({min_length}) is more than `task.length` ({length})");
            return Err(place.wrong("min_length", reason));
        }
        let shortest = generator.check_length(min_length);
        shortest.map_err(|e| place.wrong("length", e.to_string()))?;
        Ok(Self {
            name,
            seed,
            length,
            min_length,
            knobs,
        })
    }

    /// The task.
    ///
    /// # Errors
    /// When there is none of that name or a knob is wrong, which reading the recipe rules out.
    pub fn generator(&self) -> Result<Generator> {
        Generator::new(&self.name, &self.knobs, self.seed).map_err(Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SMALL, parse, refused};
    use super::super::{Recipe, Source};
    use crate::error::Result;

    /// The small recipe with a task instead of data.
    fn with_task(task: &str) -> Result<Recipe> {
        parse(&SMALL.replace("[data]\ntext = \"docs\"", &format!("[task]\n{task}")))
    }

    #[test]
    fn a_task_stands_for_data() {
        let recipe = with_task("name = \"mqar\"\npairs = 4\nmin_length = 16").unwrap();
        let Source::Task(task) = &recipe.source else {
            panic!("{:?}", recipe.source)
        };
        assert_eq!((task.length, task.min_length, task.seed), (64, 16, 0));
        assert_eq!(
            (&task.knobs["pairs"], &task.knobs["vocab"]),
            (&4.into(), &256.into())
        );
        let long = with_task("name = \"mqar\"\npairs = 100").unwrap();
        assert_eq!(long.source.sequence(), 400, "as short as it can be");
    }

    #[test]
    fn tasks_are_refused_in_one_sentence() {
        let cases = [
            ("", "r.toml:5: the key `task.name` is missing"),
            (
                "name = \"mqra\"",
                "r.toml:6: there is no task \"mqra\", did you mean \"mqar\"?",
            ),
            (
                "name = \"mqar\"\npiars = 4",
                "r.toml:7: unknown key `task.piars`, did you mean `task.pairs`?",
            ),
            (
                "name = \"mqar\"\nlegnth = 4",
                "r.toml:7: unknown key `task.legnth`, did you mean `task.length`?",
            ),
            (
                "name = \"mqar\"\npairs = 0",
                "r.toml:7: task mqar: pairs is 0: give 1 to 128",
            ),
            (
                "name = \"mqar\"\npairs = \"four\"",
                "r.toml:6: task mqar: invalid type",
            ),
            (
                "name = \"mqar\"\nlength = 9",
                "r.toml:7: task mqar: 9 tokens are too few",
            ),
            (
                "name = \"swaps\"\nlength = 9\nmin_length = 10",
                "r.toml:8: `task.min_length` (10) is more than",
            ),
            (
                "name = \"swaps\"\n[eval]\nlengths = [6, 100]",
                "r.toml:8: task swaps: 6 tokens are too few",
            ),
            (
                "name = \"swaps\"\n[eval]\nlengths = [7.5]",
                "must be a list of whole numbers",
            ),
            (
                "name = \"swaps\"\n[data]\ntext = \"a\"",
                "cannot stand beside `data`",
            ),
        ];
        for (task, part) in cases {
            let error = with_task(task).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        let misspelt = SMALL.replace("[data]\ntext", "[tasks]\nname");
        let error = parse(&misspelt).unwrap_err().to_string();
        assert!(error.contains("did you mean `task`?"), "{error}");
        for line in ["lengths = [9]", "tail = 0.5"] {
            let error = refused("steps = 50", &format!("steps = 50\n[eval]\n{line}"));
            assert!(error.contains("needs a [task]"), "{error}");
        }
    }
}
