//! Recipes: one TOML file describes a run completely.
//!
//! ```toml
//! out = "runs/first"
//!
//! [model]
//! d_model = 256
//! layers = "3*gdn2 + attention"
//! depth = 8
//!
//! [data]
//! text = ["docs", "book.txt"]
//! tokenizer = "bpe:4096"
//! sequence = 256
//!
//! [train]
//! steps = 1000
//! lr = 3e-3
//! ```
//!
//! A `[task]` table stands for `[data]` where the model is to learn a synthetic task ([`TaskRecipe`]).
//!
//! Only `model.d_model`, `model.layers`, the data or task and a length of the run are required; the fields below say the other
//! keys and their defaults. Paths are relative to the folder that the command runs in. Whatever is not known is
//! refused: a misspelt key never trains a different model in silence.

mod data;
mod model;
mod node;
mod section;
#[cfg(test)]
mod settings_tests;
mod study;
mod task;
#[cfg(test)]
mod tests;
mod train;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use data::{DataRecipe, DataSource, TokenizerRecipe};
pub use model::{Dtype, Mlp, MlpWidth, ModelRecipe};
pub use study::{Study, StudyRun};
pub use task::TaskRecipe;
pub use train::{AdamW, Budget, EvalRecipe, Muon, Optimizer, TrainRecipe};

use crate::error::{Error, Result};
use node::Node;
use section::Section;

/// A recipe larger than this is no recipe.
const MAX_BYTES: u64 = 1 << 20;

/// A whole run, with all defaults filled in.
///
/// ```
/// use weft_train::recipe::{Budget, Recipe};
///
/// let recipe = Recipe::parse(
///     r#"
///     model = { d_model = 64, layers = "3*gdn2 + attention" }
///     data.text = "README.md"
///     train.steps = 100
///     "#,
///     "tiny.toml",
/// )?;
/// assert_eq!(recipe.model.depth, 4);
/// assert_eq!(recipe.train.budget, Budget::Steps(100));
/// # Ok::<(), weft_train::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// The folder of the run. Default `runs/` and the recipe's name.
    pub out: PathBuf,
    /// What is built.
    pub model: ModelRecipe,
    /// What is learned from: the table `data` or `task`.
    #[serde(flatten)]
    pub source: Source,
    /// How it is trained.
    pub train: TrainRecipe,
    /// How it is evaluated.
    pub eval: EvalRecipe,
}

/// What is learned from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Text or tokens.
    Data(DataRecipe),
    /// A synthetic task.
    Task(TaskRecipe),
}

impl Source {
    /// Tokens of the longest training sequence.
    pub fn sequence(&self) -> usize {
        match self {
            Source::Data(data) => data.sequence,
            Source::Task(task) => task.length,
        }
    }

    fn read(file: &mut Section<'_>) -> Result<Self> {
        match (file.get("data").is_some(), file.get("task").is_some()) {
            (true, true) => Err(file.error("task", "cannot stand beside `data`: give one of them")),
            (false, true) => Ok(Source::Task(TaskRecipe::read(file.section("task")?)?)),
            (has_data, false) => match file.misspelt("task").filter(|_| !has_data) {
                Some(error) => Err(error),
                None => Ok(Source::Data(DataRecipe::read(file.section("data")?)?)),
            },
        }
    }
}

impl Recipe {
    /// Reads a recipe from a file.
    ///
    /// # Errors
    /// When the file is missing, or as [`Recipe::parse`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(path, &[] as &[&str])
    }

    /// Reads a recipe from a file and then settings such as `train.lr=3e-4`, which win over it, the last one most.
    ///
    /// # Errors
    /// As [`Recipe::load`]; what is wrong with a setting is told as of `--set` with its text.
    pub fn load_with<S: AsRef<str>>(path: impl AsRef<Path>, settings: &[S]) -> Result<Self> {
        let path = path.as_ref();
        let mut root = Node::parse(&read_file(path)?, &path.display().to_string())?;
        for setting in settings {
            root.merge(Node::parse_setting(setting.as_ref())?);
        }
        Self::from_node(root, path)
    }

    /// Reads a recipe from text; `name` is what errors call it.
    ///
    /// # Errors
    /// One sentence with file and line: bad TOML, an unknown key (with the nearest known one), a missing key, a wrong
    /// type, a value out of range, or keys that contradict each other.
    pub fn parse(text: &str, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        Self::from_node(Node::parse(text, &name.display().to_string())?, name)
    }

    fn from_node(mut root: Node, name: &Path) -> Result<Self> {
        if let Some(study) = root.remove("study") {
            return Err(study
                .place
                .error("this is a study of several runs: use `weft study`"));
        }
        Self::read(&root, default_out(name))
    }

    /// The recipe as TOML with every default written out; parsing it gives the same recipe.
    ///
    /// # Errors
    /// When a value has no TOML form, such as a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|error| Error::Data(format!("cannot write the recipe: {error}")))
    }

    fn read(root: &Node, out: PathBuf) -> Result<Self> {
        let mut file = Section::root(root);
        let out = file.text("out")?.map_or(out, PathBuf::from);
        let model = ModelRecipe::read(file.section("model")?)?;
        let source = Source::read(&mut file)?;
        let recipe = Self {
            out,
            model,
            train: TrainRecipe::read(file.section("train")?)?,
            eval: EvalRecipe::read(file.section("eval")?, &source)?,
            source,
        };
        file.finish()?;
        Ok(recipe)
    }
}

fn default_out(name: &Path) -> PathBuf {
    Path::new("runs").join(name.file_stem().unwrap_or("run".as_ref()))
}

fn read_file(path: &Path) -> Result<String> {
    let failed = Error::io("read", path);
    if path.metadata().map_err(&failed)?.len() > MAX_BYTES {
        return Err(Error::content(
            path,
            "it is larger than 1 MiB, which no recipe is",
        ));
    }
    std::fs::read_to_string(path).map_err(failed)
}
