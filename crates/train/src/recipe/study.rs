//! Studies: one recipe run with every combination of some values.
//!
//! ```toml
//! [study]
//! title = "Which mixer?"             # optional: the heading of the report
//! base = "small.toml"                # optional: a recipe beside this file; keys given here win over it
//!
//! [study.grid]
//! model.layers = ["attention", "gdn2", "3*gdn2 + attention"]
//! train.seed = [0, 1]
//!
//! [train]                            # the rest is a recipe
//! steps = 200
//! ```
//!
//! gives the six runs `layers-attention_seed-0` to `layers-3xgdn2+attention_seed-1`, the last key running fastest. Each
//! run's `out` is a folder of its name in the study's.
//!
//! A value may be a table, for keys that change together; it is joined with the recipe's, and its `label` names it:
//!
//! ```toml
//! [study.grid]
//! model = [
//!     { label = "reflecting", layers = "gdn", mixer.gdn.allow_neg_eigval = true },
//!     { label = "attention", layers = "attention" },
//! ]
//! ```

use std::path::{Path, PathBuf};

use super::node::{Node, Value};
use super::section::Section;
use super::{Recipe, default_out, read_file};
use crate::error::Result;

/// More runs than this are a slip of the finger.
const MAX_RUNS: usize = 10_000;

/// Characters of a value that go into a run's name.
const MAX_LABEL: usize = 40;

/// Some runs to compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    /// The heading of the report. Default the name of the file.
    pub title: String,
    /// The folder of the study; each run has its own in it.
    pub out: PathBuf,
    /// The runs in the order of the grid.
    pub runs: Vec<StudyRun>,
}

/// One combination of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyRun {
    /// What tells it from the others, usable as a file name.
    pub name: String,
    /// The keys of the grid and their values here, as `("train.seed", "0")`.
    pub settings: Vec<(String, String)>,
    /// The whole recipe.
    pub recipe: Recipe,
}

/// One key of the grid.
struct Axis {
    key: String,
    /// Each with its name in the report.
    values: Vec<(String, Node)>,
}

impl Study {
    /// Reads a study from a file.
    ///
    /// # Errors
    /// When a file is missing, or as [`Study::parse`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&read_file(path)?, path)
    }

    /// Reads a study from text; `path` names it in errors, and `study.base` is relative to its folder.
    ///
    /// # Errors
    /// When there is no grid, or one of the runs is no proper recipe; the error names file and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut root = Node::parse(text, &path.display().to_string())?;
        let Some(study) = root.remove("study") else {
            return Err(root
                .place
                .error("there is no [study] table: run it with `weft train`"));
        };
        let mut wrapper = Node {
            place: root.place.clone(),
            value: Value::Table(Vec::new()),
        };
        wrapper.set(&["study"], study);
        let mut table = Section::root(&wrapper).section("study")?;
        let grid = table.get("grid").ok_or_else(|| table.missing("grid"))?;
        if let Some(base) = table.text("base")? {
            let base = path.with_file_name(base);
            let mut recipe = Node::parse(&read_file(&base)?, &base.display().to_string())?;
            recipe.merge(root);
            root = recipe;
        }
        let title = table
            .text("title")?
            .map_or_else(|| default_title(path), str::to_owned);
        table.finish()?;
        Self::expand(title, &root, &axes(grid)?, path)
    }

    fn expand(title: String, base: &Node, axes: &[Axis], path: &Path) -> Result<Self> {
        let count = axes
            .iter()
            .try_fold(1usize, |count, axis| count.checked_mul(axis.values.len()));
        let Some(count) = count.filter(|&count| count <= MAX_RUNS) else {
            let reason = format!("the grid gives more than {MAX_RUNS} runs");
            return Err(axes[0].values[0].1.place.error(reason));
        };
        let labels: Vec<&str> = axes.iter().map(|axis| label(axis, axes)).collect();
        let mut study = Self {
            title,
            out: PathBuf::new(),
            runs: Vec::with_capacity(count),
        };
        for index in 0..count {
            let mut node = base.clone();
            let mut settings = Vec::new();
            let mut parts = Vec::new();
            let mut rest = index;
            for (axis, label) in axes.iter().zip(&labels).rev() {
                let (name, value) = &axis.values[rest % axis.values.len()];
                rest /= axis.values.len();
                node.set(&axis.key.split('.').collect::<Vec<_>>(), value.clone());
                parts.push(format!("{label}-{}", file_name(name)));
                settings.push((axis.key.clone(), name.clone()));
            }
            settings.reverse();
            parts.reverse();
            let mut recipe = Recipe::read(&node, default_out(path))?;
            let name = unique(parts.join("_"), &study.runs);
            study.out = recipe.out.clone();
            recipe.out.push(&name);
            study.runs.push(StudyRun {
                name,
                settings,
                recipe,
            });
        }
        Ok(study)
    }
}

/// `quick-study.toml` is "quick study".
fn default_title(path: &Path) -> String {
    let name = path.file_stem().unwrap_or("study".as_ref());
    name.to_string_lossy().replace(['-', '_'], " ")
}

/// The keys of the grid in the order of the file, written as `train.seed = [...]` or as tables in tables.
fn axes(grid: &Node) -> Result<Vec<Axis>> {
    let mut axes = Vec::new();
    collect(grid, "", &mut axes)?;
    if axes.is_empty() {
        return Err(grid
            .place
            .error("`study.grid` names no key, as in train.seed = [0, 1]"));
    }
    Ok(axes)
}

fn collect(node: &Node, key: &str, axes: &mut Vec<Axis>) -> Result<()> {
    match &node.value {
        Value::Table(entries) => entries.iter().try_for_each(|(name, inner)| {
            let dot = if key.is_empty() { "" } else { "." };
            collect(inner, &format!("{key}{dot}{name}"), axes)
        }),
        Value::List(_) if key == "out" => {
            Err(node.place.error("`out` is set for each run by its name"))
        }
        Value::List(values) if !values.is_empty() => {
            axes.push(Axis {
                key: key.to_owned(),
                values: values
                    .iter()
                    .map(|value| named(value.clone()))
                    .collect::<Result<_>>()?,
            });
            Ok(())
        }
        _ => Err(node.place.error(format!(
            "`study.grid.{key}` must be a list of values, not {node}"
        ))),
    }
}

/// A value and its name: the `label` that a table may carry, else what it says.
fn named(mut value: Node) -> Result<(String, Node)> {
    let name = match value.remove("label") {
        None => plain(&value),
        Some(Node {
            value: Value::Text(label),
            ..
        }) => label,
        Some(other) => {
            let reason = format!("a `label` in the grid must be a text, not {other}");
            return Err(other.place.error(reason));
        }
    };
    Ok((name, value))
}

/// The last part of an axis's key, or all of it where two axes end alike.
fn label<'a>(axis: &'a Axis, axes: &[Axis]) -> &'a str {
    let last = |key: &'a str| key.rsplit('.').next().unwrap_or(key);
    let short = last(&axis.key);
    let alike = axes
        .iter()
        .filter(|other| other.key.rsplit('.').next() == Some(short))
        .count();
    if alike > 1 { &axis.key } else { short }
}

/// A value as a person would write it, lists joined by plus signs.
fn plain(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => text.clone(),
        Value::List(items) => items.iter().map(plain).collect::<Vec<_>>().join(" + "),
        Value::Table(entries) => {
            let entries = entries
                .iter()
                .map(|(key, node)| format!("{key}={}", plain(node)));
            entries.collect::<Vec<_>>().join(",")
        }
        _ => node.to_string(),
    }
}

/// A value as part of a file name, of bounded length; what becomes alike is told apart by [`unique`].
fn file_name(text: &str) -> String {
    let spoken = text.replace('*', "x").replace(char::is_whitespace, "");
    let safe = |c: char| {
        if c.is_alphanumeric() || matches!(c, '.' | '+' | '_') {
            c
        } else {
            '-'
        }
    };
    spoken.chars().take(MAX_LABEL).map(safe).collect()
}

fn unique(name: String, runs: &[StudyRun]) -> String {
    let taken = |name: &str| runs.iter().any(|run| run.name == name);
    if !taken(&name) {
        return name;
    }
    (2..)
        .map(|n| format!("{name}-{n}"))
        .find(|name| !taken(name))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::super::Budget;
    use super::super::tests::SMALL;
    use super::*;

    fn study(grid: &str) -> Result<Study> {
        Study::parse(
            &format!("{SMALL}\n[study.grid]\n{grid}"),
            Path::new("dir/s.toml"),
        )
    }

    #[test]
    fn a_grid_gives_every_combination_by_name() {
        let grid = "model.layers = [\"attention\", \"3*gdn2 + attention\"]\ntrain.seed = [0, 1]";
        let study = study(grid).unwrap();
        assert_eq!(study.out, Path::new("runs/s"));
        assert_eq!(study.title, "s");
        let names: Vec<&str> = study.runs.iter().map(|run| run.name.as_str()).collect();
        let expected = [
            "layers-attention_seed-0",
            "layers-attention_seed-1",
            "layers-3xgdn2+attention_seed-0",
            "layers-3xgdn2+attention_seed-1",
        ];
        assert_eq!(names, expected);
        let run = &study.runs[2];
        assert_eq!(
            run.recipe.out,
            Path::new("runs/s/layers-3xgdn2+attention_seed-0")
        );
        assert_eq!((run.recipe.model.depth, run.recipe.train.seed), (4, 0));
        assert_eq!(study.runs[1].recipe.model.depth, 1);
        let settings = [("model.layers", "3*gdn2 + attention"), ("train.seed", "0")];
        assert!(
            run.settings
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .eq(settings)
        );
    }

    #[test]
    fn grids_take_any_key_and_names_stay_apart() {
        let mixers = "\"model.mixer.swa.window\" = [16, 32]\nmodel.mixer.gdn2.window = [1.5]";
        let runs = study(mixers).unwrap().runs;
        assert_eq!(
            runs[1].name,
            "model.mixer.swa.window-32_model.mixer.gdn2.window-1.5"
        );
        assert_eq!(runs[1].recipe.model.mixer["swa"]["window"], 32);
        let lists = study("model.layers = [[\"a\", \"b\"], \"a + b\", [\"a+b\"]]")
            .unwrap()
            .runs;
        let names: Vec<&str> = lists.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["layers-a+b", "layers-a+b-2", "layers-a+b-3"]);
        let path = study("data.text = [\"../secret/a b\"]").unwrap();
        assert_eq!(path.runs[0].name, "text-..-secret-ab");
        let long = study(&format!("data.text = [\"{0}\", \"{0}b\"]", "a".repeat(300))).unwrap();
        assert!(long.runs[0].name.len() < 60 && long.runs[0].name != long.runs[1].name);
    }

    #[test]
    fn tables_in_a_grid_are_joined_with_the_recipe_and_named_by_their_label() {
        let grid = "model = [{ label = \"narrow\", d_model = 64 }, { layers = \"swa\", mixer.swa.window = 8 }]";
        let runs = study(grid).unwrap().runs;
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(
            names,
            ["model-narrow", "model-layers-swa-mixer-swa-window-8"]
        );
        let narrow = &runs[0].recipe.model;
        assert_eq!((narrow.d_model, narrow.depth), (64, 4));
        let other = &runs[1].recipe.model;
        assert_eq!(
            (other.d_model, &other.mixer["swa"]["window"]),
            (128, &8.into())
        );
        let error = study("model = [{ label = 3 }]").unwrap_err().to_string();
        assert!(error.contains("must be a text, not 3"), "{error}");
    }

    #[test]
    fn a_study_may_stand_on_another_recipe() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.toml"), SMALL).unwrap();
        let path = folder.path().join("s.toml");
        let text = "out = \"o\"\n[study]\nbase = \"base.toml\"\ntitle = \"Why?\"\n[study.grid]\ntrain.lr = [1e-3]\n[train]\nseed = 4";
        std::fs::write(&path, text).unwrap();
        let study = Study::load(&path).unwrap();
        assert_eq!(study.title, "Why?");
        let recipe = &study.runs[0].recipe;
        assert_eq!(
            (recipe.train.seed, recipe.train.budget),
            (4, Budget::Steps(50))
        );
        assert_eq!(
            (study.out.as_path(), recipe.model.d_model),
            (Path::new("o"), 128)
        );
        std::fs::write(folder.path().join("base.toml"), "[model]\nd_modell = 3").unwrap();
        let error = Study::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("base.toml:2: unknown key `model.d_modell`"),
            "{error}"
        );
        std::fs::remove_file(folder.path().join("base.toml")).unwrap();
        assert!(
            Study::load(&path)
                .unwrap_err()
                .to_string()
                .contains("base.toml")
        );
    }

    #[test]
    fn studies_refuse_what_they_cannot_run() {
        let many = format!("train.seed = {:?}\ntrain.lr = {:?}", [1; 101], [0.1; 101]);
        let cases = [
            ("", "names no key"),
            (
                "train.seed = 3",
                "s.toml:11: `study.grid.train.seed` must be a list of values, not 3",
            ),
            ("train.seed = []", "must be a list"),
            ("out = [\"a\"]", "by its name"),
            (
                "train.sede = [1]",
                "s.toml:11: unknown key `train.sede`, did you mean `train.seed`?",
            ),
            ("train.seed = [1,\n -1]", "s.toml:12: `train.seed` must be"),
            ("train = [1]", "must be a table, not 1"),
            (&many, "more than 10000 runs"),
        ];
        for (grid, part) in cases {
            let error = study(grid).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.starts_with("dir/s.toml:"),
                "{grid}: {error}"
            );
        }
        let error = Study::parse(SMALL, Path::new("s.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("weft train"), "{error}");
        let error = Study::parse("study = 3", Path::new("s.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("must be a table"), "{error}");
        let extra = format!("{SMALL}\n[study]\ngird.train.seed = [1]");
        let error = Study::parse(&extra, Path::new("s.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean `study.grid`"), "{error}");
    }
}
