//! The model of a recipe: layers, heads, and the width of the MLPs that gives it its size.

use serde_json::{Map, Value, json};
use weft_models::blueprint::{Shape, blueprint};
use weft_models::{Config, MlpKind};
use weft_tensor::DType;

use crate::error::{Error, Result};
use crate::recipe::{Dtype, Mlp, MlpWidth, ModelRecipe};

/// The model that a recipe describes. Every mixer is told the heads; its own table has the last word.
///
/// # Errors
/// When a table is for a mixer that no layer uses.
pub fn model_config(recipe: &ModelRecipe, vocab: usize) -> Result<Config> {
    let layers = recipe
        .layers
        .layers(recipe.depth)
        .map_err(|e| Error::Data(format!("model.layers: {e}")))?;
    if let Some(name) = recipe.mixer.keys().find(|name| !layers.contains(name)) {
        return Err(Error::Data(format!(
            "[model.mixer.{name}] is for a mixer that no layer uses: the layers are {:?}",
            recipe.layers.to_string()
        )));
    }
    let mut config = Config::new(vocab, recipe.d_model, layers);
    for name in &config.layer_types {
        let mut table = Map::new();
        table.insert("num_heads".into(), json!(recipe.heads));
        table.insert("head_dim".into(), json!(recipe.head_dim));
        if let Some(Value::Object(own)) = recipe.mixer.get(name) {
            table.extend(own.clone());
        }
        config.mixers.insert(name.clone(), table);
    }
    config.mlp = match recipe.mlp {
        Mlp::Swiglu => MlpKind::Swiglu,
        Mlp::Gelu => MlpKind::Gelu,
        Mlp::GeluTanh => MlpKind::GeluTanh,
    };
    if let MlpWidth::Hidden(width) = recipe.mlp_width {
        config.intermediate_size = width;
    }
    config.tie_word_embeddings = recipe.tie_embeddings;
    config.dtype = match recipe.dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    };
    match recipe.mlp_width {
        MlpWidth::Hidden(_) => Ok(config),
        MlpWidth::Parameters(count) => of_size(config, count),
    }
}

/// A config whose MLPs are as wide as it takes to give the model `count` parameters, to the nearest unit.
///
/// # Errors
/// When everything but the MLPs has more parameters already, or the config is wrong.
pub fn of_size(mut config: Config, count: usize) -> Result<Config> {
    let mut size = |width: usize| -> Result<f64> {
        config.intermediate_size = width;
        let shapes = blueprint(&config)?;
        Ok(shapes.iter().map(Shape::count).sum::<usize>() as f64)
    };
    // The number of parameters is linear in the width.
    let (one, two) = (size(1)?, size(2)?);
    let width = 1.0 + ((count as f64 - one) / (two - one)).round();
    if width < 1.0 {
        return Err(Error::Data(format!(
            "model.parameters is {count}, but without its MLPs the model has {:.0} already: give more",
            one - (two - one)
        )));
    }
    config.intermediate_size = width as usize;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn recipe(model: &str) -> ModelRecipe {
        let text =
            format!("model = {{ d_model = 16, {model} }}\ndata.text = \".\"\ntrain.steps = 1");
        Recipe::parse(&text, "r.toml").unwrap().model
    }

    #[test]
    fn each_mixer_is_told_the_heads_unless_its_table_says_otherwise() {
        let recipe = recipe("layers = \"gdn2\", heads = 2, mixer.gdn2 = { head_dim = 4 }");
        let config = model_config(&recipe, 257).unwrap();
        let table = &config.mixers["gdn2"];
        assert_eq!(
            (&table["num_heads"], &table["head_dim"]),
            (&json!(2), &json!(4))
        );
    }

    #[test]
    fn mixers_are_compared_at_equal_parameters() {
        let size = |layers: &str, parameters: usize| {
            let text = format!("layers = {layers:?}, parameters = {parameters}, mlp = \"gelu\"");
            let config = model_config(&recipe(&text), 257)?;
            Ok::<_, Error>(blueprint(&config)?.iter().map(Shape::count).sum::<usize>())
        };
        for layers in ["gdn2", "attention", "kda"] {
            let got = size(layers, 20_000).unwrap();
            // A unit of a gelu MLP has two rows of 16.
            assert!(got.abs_diff(20_000) <= 16, "{layers}: {got}");
        }
        let error = size("gdn2", 4000).unwrap_err().to_string();
        assert!(error.contains("model.parameters is 4000"), "{error}");
    }
}
