//! The `[model]` table.

use serde::Serialize;
use weft_models::pattern::{MAX_LAYERS, Pattern};

use super::node::Value;
use super::section::Section;
use crate::error::Result;

/// What is built.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelRecipe {
    /// Width of the residual stream.
    pub d_model: usize,
    /// The mixers of one period of layers; a text or a list.
    pub layers: Pattern,
    /// How many layers, the period repeated as needed. Instead, `repeat` counts whole periods; default one.
    pub depth: usize,
    /// Heads of each mixer. Default `d_model / 64`, at least 1.
    pub heads: usize,
    /// Width of a head. Default `d_model / heads`.
    pub head_dim: usize,
    /// The channel mixer behind each sequence mixer. Default SwiGLU.
    pub mlp: Mlp,
    /// How wide it is: `mlp_hidden` or `parameters`. Default 8/3 of `d_model` for SwiGLU and 4 for GELU, rounded up to
    /// a multiple of 32.
    #[serde(flatten)]
    pub mlp_width: MlpWidth,
    /// Rows of the embedding. Default the tokenizer's vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Input and output embedding are one. Default true.
    pub tie_embeddings: bool,
    /// Type of the parameters. Default f32.
    pub dtype: Dtype,
    /// Options of mixers by name, `[model.mixer.NAME]`; each mixer reads its own.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub mixer: serde_json::Map<String, serde_json::Value>,
}

/// The channel mixers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// Gated with SiLU, three matrices (Shazeer 2020).
    Swiglu,
    /// Two matrices with GELU between.
    Gelu,
    /// The same with the tanh form of GELU.
    GeluTanh,
}

/// The hidden width of the channel mixers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MlpWidth {
    /// As it is.
    #[serde(rename = "mlp_hidden")]
    Hidden(usize),
    /// As wide as it takes to give the model about this many parameters, so that mixers are compared at equal size.
    #[serde(rename = "parameters")]
    Parameters(usize),
}

/// Types of stored parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 64 bits, for checking.
    F64,
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
}

const MLPS: [(&str, Mlp); 3] = [
    ("swiglu", Mlp::Swiglu),
    ("gelu", Mlp::Gelu),
    ("gelu_tanh", Mlp::GeluTanh),
];
const DTYPES: [(&str, Dtype); 3] = [
    ("f32", Dtype::F32),
    ("bf16", Dtype::Bf16),
    ("f64", Dtype::F64),
];

/// Widths beyond this are a slip of the finger.
const MAX_WIDTH: u64 = 1 << 20;

impl ModelRecipe {
    pub(super) fn read(mut table: Section<'_>) -> Result<Self> {
        let d_model = table
            .size("d_model", 1..=MAX_WIDTH)?
            .ok_or_else(|| table.missing("d_model"))?;
        let layers = read_layers(&mut table)?;
        let depth = read_depth(&mut table, &layers)?;
        let heads = table
            .size("heads", 1..=MAX_WIDTH)?
            .unwrap_or((d_model / 64).max(1));
        let head_dim = match table.size("head_dim", 1..=MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None if d_model.is_multiple_of(heads) => d_model / heads,
            None => {
                let reason = format!("does not divide d_model {d_model}: set head_dim too");
                return Err(table.error("heads", &format!("({heads}) {reason}")));
            }
        };
        let mlp = table.choice("mlp", &MLPS)?.unwrap_or(Mlp::Swiglu);
        let hidden = match mlp {
            Mlp::Swiglu => (d_model * 8).div_ceil(3).next_multiple_of(32),
            Mlp::Gelu | Mlp::GeluTanh => (d_model * 4).next_multiple_of(32),
        };
        let given = table.size("mlp_hidden", 1..=MAX_WIDTH)?;
        let parameters = table.size("parameters", 1..=1 << 40)?;
        let mlp_width = match (given, parameters) {
            (Some(_), Some(_)) => {
                let reason = "chooses `model.mlp_hidden`: give one of them";
                return Err(table.error("parameters", reason));
            }
            (None, Some(parameters)) => MlpWidth::Parameters(parameters),
            (given, None) => MlpWidth::Hidden(given.unwrap_or(hidden)),
        };
        let recipe = Self {
            d_model,
            layers,
            depth,
            heads,
            head_dim,
            mlp,
            mlp_width,
            vocab: table.size("vocab", 2..=1 << 22)?,
            tie_embeddings: table.flag("tie_embeddings")?.unwrap_or(true),
            dtype: table.choice("dtype", &DTYPES)?.unwrap_or(Dtype::F32),
            mixer: read_mixers(&mut table)?,
        };
        table.finish()?;
        Ok(recipe)
    }
}

fn read_layers(table: &mut Section<'_>) -> Result<Pattern> {
    let parts = table
        .texts("layers")?
        .ok_or_else(|| table.missing("layers"))?;
    let pattern = parts.join(" + ").parse::<Pattern>();
    pattern.map_err(|error| table.error("layers", &format!("cannot be read: {error}")))
}

fn read_depth(table: &mut Section<'_>, layers: &Pattern) -> Result<usize> {
    let period = layers.period().len();
    let depth = table.size("depth", 1..=MAX_LAYERS as u64)?;
    let repeat = table.size("repeat", 1..=(MAX_LAYERS / period) as u64)?;
    match (depth, repeat) {
        (Some(_), Some(_)) => {
            Err(table.error("repeat", "says the same as `model.depth`: give one of them"))
        }
        (None, repeat) => Ok(period * repeat.unwrap_or(1)),
        (Some(depth), None) => Ok(depth),
    }
}

fn read_mixers(table: &mut Section<'_>) -> Result<serde_json::Map<String, serde_json::Value>> {
    let Some(node) = table.get("mixer") else {
        return Ok(serde_json::Map::new());
    };
    let tables = node.entries().unwrap_or_default();
    let proper = tables
        .iter()
        .all(|(_, node)| matches!(node.value, Value::Table(_)));
    match node.to_json() {
        Some(serde_json::Value::Object(map)) if proper => Ok(map),
        Some(_) => Err(table.error(
            "mixer",
            "must hold a table for each mixer, as [model.mixer.gdn2]",
        )),
        None => Err(table.error("mixer", "holds a number that is not finite")),
    }
}
