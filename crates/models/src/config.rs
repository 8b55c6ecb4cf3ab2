//! The description of a language model, stored as the `config.json` of its folder:
//!
//! ```json
//! {
//!   "architectures": ["WeftForCausalLM"], "model_type": "weft", "dtype": "float32",
//!   "vocab_size": 257, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
//!   "layer_types": ["gdn2", "gdn2", "gdn2", "attention"],
//!   "mixers": {"attention": {"num_heads": 4}},
//!   "mlp": "swiglu", "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "initializer_range": 0.02
//! }
//! ```
//!
//! `layer_types` holds registry names of mixers, `mixers` the settings of each. A config is untrusted: unknown fields
//! are refused, and sizes are checked before anything is allocated.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_mixers::{Entry, Options, registry};
use weft_tensor::DType;

use crate::error::{Error, Result};
use crate::fields::{Fields, did_you_mean};
use crate::mlp::MlpKind;
use crate::pattern::MAX_LAYERS;
use crate::tokenizer::MAX_VOCAB;

/// The `model_type` of the models that [`Config`] describes.
pub const MODEL_TYPE: &str = "weft";
/// The name in `architectures`.
pub const ARCHITECTURE: &str = "WeftForCausalLM";
/// Widths (of the residual stream and inside MLPs) above this are refused.
pub const MAX_WIDTH: usize = 1 << 20;
/// Integers in the settings of a mixer above this are refused, so that products of two of them do not overflow.
pub const MAX_SETTING: u64 = 1 << 28;
/// Models of more parameters than this are refused.
pub const MAX_PARAMETERS: usize = 1 << 40;

/// A language model's shape and settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct Config {
    /// Class names that other tools look for.
    pub architectures: Vec<String>,
    /// The family: [`MODEL_TYPE`].
    pub model_type: String,
    /// The dtype that parameters are made in; those of a checkpoint keep the one they are stored in.
    #[serde(serialize_with = "write_dtype")]
    pub dtype: DType,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width D of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// The mixer of each block, by registry name.
    pub layer_types: Vec<String>,
    /// Settings by mixer; what is missing takes the mixer's default.
    pub mixers: BTreeMap<String, Map<String, Value>>,
    /// The kind of MLP.
    pub mlp: MlpKind,
    /// Added to the mean square in every norm of the blocks.
    pub rms_norm_eps: f64,
    /// Whether the head uses the embedding table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of a new embedding table (and of an untied head).
    pub initializer_range: f64,
}

impl Config {
    /// A model of the given sizes, one block per entry of `layer_types`, everything else at its default: SwiGLU of
    /// width 8/3 D (rounded up to a multiple of 64), tied head, f32.
    pub fn new(vocab_size: usize, hidden_size: usize, layer_types: Vec<String>) -> Config {
        Config {
            architectures: vec![ARCHITECTURE.into()],
            model_type: MODEL_TYPE.into(),
            dtype: DType::F32,
            vocab_size,
            hidden_size,
            intermediate_size: hidden_size
                .saturating_mul(8)
                .div_ceil(3)
                .div_ceil(64)
                .saturating_mul(64),
            num_hidden_layers: layer_types.len(),
            layer_types,
            mixers: BTreeMap::new(),
            mlp: MlpKind::Swiglu,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            initializer_range: 0.02,
        }
    }

    /// The config in the text of a `config.json`.
    ///
    /// # Errors
    /// When it is no JSON, describes a family other than [`MODEL_TYPE`], has an unknown, missing or mistyped field,
    /// or does not pass [`Config::check`].
    pub fn from_json(text: &[u8]) -> Result<Config> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| Error::Config(format!("it is no JSON: {e}")))?;
        Config::try_from(value)
    }

    /// The text of a `config.json`.
    ///
    /// # Errors
    /// When a number cannot be written as JSON, which [`Config::check`] rules out.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Config(format!("cannot be written: {e}")))?;
        Ok(text + "\n")
    }

    /// The mixer of a block and its settings.
    ///
    /// # Errors
    /// When the registry has no such mixer.
    pub fn mixer(&self, layer: usize) -> Result<(&'static Entry, Options)> {
        let name = &self.layer_types[layer];
        let options = Options {
            d_model: self.hidden_size,
            table: self.mixers.get(name).cloned().unwrap_or_default(),
            layer,
            layers: self.num_hidden_layers,
        };
        Ok((registry::find(name)?, options))
    }

    /// Check every field on its own. [`crate::LanguageModel`] adds the checks that need the mixers.
    ///
    /// # Errors
    /// When a field is out of range or contradicts another; it is named.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
        ];
        for (name, value, max) in sizes {
            if value == 0 || value > max {
                return wrong(format!("{name} is {value}: use between 1 and {max}"));
            }
        }
        check_family(&self.model_type).map_err(Error::Config)?;
        if !self.dtype.is_float() {
            return wrong(format!("dtype is {}: use a float dtype", self.dtype));
        }
        if self.layer_types.len() != self.num_hidden_layers {
            return wrong(format!(
                "layer_types names {} layers, num_hidden_layers is {}: make them equal",
                self.layer_types.len(),
                self.num_hidden_layers
            ));
        }
        let mut used = self.layer_types.iter().map(String::as_str);
        if let Some(name) = self.mixers.keys().find(|&n| !self.layer_types.contains(n)) {
            return wrong(format!(
                "mixers has settings for {name:?}, which no layer uses{}",
                did_you_mean(name, &mut used)
            ));
        }
        for (mixer, settings) in &self.mixers {
            let above = |v: &Value| v.as_u64().is_some_and(|n| n > MAX_SETTING);
            if let Some((name, value)) = settings.iter().find(|(_, v)| above(v)) {
                return wrong(format!(
                    "mixers.{mixer}.{name} is {value}: use at most {MAX_SETTING}"
                ));
            }
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            let eps = self.rms_norm_eps;
            return wrong(format!("rms_norm_eps is {eps}: use a number in (0, 1)"));
        }
        if !(self.initializer_range > 0.0 && self.initializer_range <= 1.0) {
            let std = self.initializer_range;
            return wrong(format!(
                "initializer_range is {std}: use a number in (0, 1]"
            ));
        }
        Ok(())
    }
}

fn check_family(model_type: &str) -> Result<(), String> {
    if model_type == MODEL_TYPE {
        return Ok(());
    }
    Err(format!(
        "model_type is {model_type:?}: this program reads {MODEL_TYPE:?}"
    ))
}

fn wrong<T>(detail: String) -> Result<T> {
    Err(Error::Config(detail))
}

impl TryFrom<Value> for Config {
    type Error = Error;

    fn try_from(value: Value) -> Result<Config> {
        let config = read(value).map_err(Error::Config)?;
        config.check()?;
        Ok(config)
    }
}

fn read(value: Value) -> Result<Config, String> {
    let mut fields = Fields::new(value)?;
    let model_type: String = fields.required("model_type")?;
    // First, so that a model of another family is not accused of missing fields.
    check_family(&model_type)?;
    let layer_types = fields.required("layer_types")?;
    let start = Config::new(
        fields.required("vocab_size")?,
        fields.required("hidden_size")?,
        layer_types,
    );
    let dtype: Option<String> = fields.optional("dtype")?;
    let config = Config {
        architectures: fields.or("architectures", start.architectures)?,
        model_type,
        dtype: dtype.map_or(Ok(start.dtype), |name| read_dtype(&name))?,
        intermediate_size: fields.required("intermediate_size")?,
        num_hidden_layers: fields.required("num_hidden_layers")?,
        mixers: fields.or("mixers", start.mixers)?,
        mlp: fields.or("mlp", start.mlp)?,
        rms_norm_eps: fields.or("rms_norm_eps", start.rms_norm_eps)?,
        tie_word_embeddings: fields.or("tie_word_embeddings", start.tie_word_embeddings)?,
        initializer_range: fields.or("initializer_range", start.initializer_range)?,
        vocab_size: start.vocab_size,
        hidden_size: start.hidden_size,
        layer_types: start.layer_types,
    };
    fields.finish()?;
    Ok(config)
}

/// The names that config files use for float dtypes.
const DTYPES: [(&str, DType); 3] = [
    ("float32", DType::F32),
    ("bfloat16", DType::BF16),
    ("float64", DType::F64),
];

fn read_dtype(name: &str) -> Result<DType, String> {
    match DTYPES.iter().find(|(n, _)| *n == name) {
        Some((_, dtype)) => Ok(*dtype),
        None => Err(format!(
            "dtype is {name:?}{}",
            did_you_mean(name, DTYPES.iter().map(|(n, _)| *n))
        )),
    }
}

fn write_dtype<S: serde::Serializer>(dtype: &DType, s: S) -> Result<S::Ok, S::Error> {
    let name = DTYPES.iter().find(|(_, d)| d == dtype);
    s.serialize_str(name.map_or(dtype.name(), |(n, _)| *n))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn small() -> Config {
        Config::new(16, 8, vec!["a".into(), "b".into()])
    }

    #[test]
    fn a_config_survives_its_file() {
        let mut config = small();
        config.dtype = DType::BF16;
        config.mlp = MlpKind::GeluTanh;
        config.tie_word_embeddings = false;
        config
            .mixers
            .insert("a".into(), Map::from_iter([("heads".into(), json!(2))]));
        let text = config.to_json().unwrap();
        assert!(text.contains("\"dtype\": \"bfloat16\""), "{text}");
        assert!(text.contains("\"mlp\": \"gelu_tanh\""), "{text}");
        assert_eq!(Config::from_json(text.as_bytes()).unwrap(), config);
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn the_default_mlp_width_is_a_multiple_of_64() {
        assert_eq!(Config::new(1, 256, vec![]).intermediate_size, 704);
        assert_eq!(Config::new(1, 512, vec![]).intermediate_size, 1408);
    }

    #[test]
    fn each_wrong_field_is_named() {
        let cases = [
            (json!({"vocab_size": 0}), "vocab_size is 0"),
            (json!({"vocab_size": -1}), "\"vocab_size\" is wrong"),
            (
                json!({"vocab_size": u64::MAX}),
                "vocab_size is 18446744073709551615",
            ),
            (
                json!({"hidden_size": 1u64 << 60}),
                "hidden_size is 1152921504606846976",
            ),
            (json!({"hidden_size": "8"}), "\"hidden_size\" is wrong"),
            (json!({"intermediate_size": 0}), "intermediate_size is 0"),
            (
                json!({"num_hidden_layers": 3}),
                "layer_types names 2 layers",
            ),
            (
                json!({"num_hidden_layers": null}),
                "\"num_hidden_layers\" is missing",
            ),
            (json!({"layer_types": []}), "layer_types names 0 layers"),
            (
                json!({"mixers": {"c": {}}}),
                "settings for \"c\", which no layer uses",
            ),
            (json!({"mixers": {"a": 3}}), "\"mixers\" is wrong"),
            (
                json!({"mixers": {"a": {"window": u64::MAX}}}),
                "mixers.a.window is 18446744073709551615",
            ),
            (json!({"mlp": "swiglo"}), "\"mlp\" is wrong"),
            (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
            (json!({"rms_norm_eps": 1e300}), "rms_norm_eps is 1"),
            (
                json!({"initializer_range": -0.1}),
                "initializer_range is -0.1",
            ),
            (json!({"dtype": "float23"}), "did you mean \"float32\"?"),
            (json!({"model_type": "lama"}), "model_type is \"lama\""),
            (
                json!({"tie_word_embedding": true}),
                "no field \"tie_word_embedding\", did you mean \"tie_word_embeddings\"?",
            ),
        ];
        for (change, part) in cases {
            let mut value = serde_json::to_value(small()).unwrap();
            let fields = value.as_object_mut().unwrap();
            fields.extend(change.as_object().unwrap().clone());
            let error = Config::try_from(value).unwrap_err().to_string();
            assert!(
                error.starts_with("config: ") && error.contains(part),
                "{error}"
            );
        }
        for text in ["", "[]", "{", "nul", "{\"model_type\": 3}"] {
            assert!(Config::from_json(text.as_bytes()).is_err(), "{text}");
        }
    }
}
