//! What runs inside a model, layer by layer, and why: no silent slow path.

use serde::Serialize;
use weft_mixers::{Form, registry};
use weft_tensor::DType;

use crate::error::Result;
use crate::lm::LanguageModel;

/// What runs where.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The family of the model.
    pub model_type: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of the parameters.
    pub parameter_bytes: usize,
    /// Dtype of activations in prefill and decoding.
    pub dtype: DType,
    /// Where it runs.
    pub device: String,
    /// The number of tokens that the numbers below are for.
    pub context: usize,
    /// Each layer, first to last.
    pub layers: Vec<Layer>,
    /// Bytes of one sequence's state after `context` tokens.
    pub state_bytes: usize,
    /// Multiply-adds of one token behind `context` others, the head included.
    pub cost_per_token: usize,
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Its number, from 0.
    pub layer: usize,
    /// The mixer's registry name.
    pub mixer: &'static str,
    /// The mixer's name in the literature.
    pub title: &'static str,
    /// Parameters of the mixer.
    pub mixer_parameters: usize,
    /// A forward over `context` tokens with gradients.
    pub training: Plan,
    /// A forward over `context` tokens without gradients.
    pub prefill: Plan,
    /// One token.
    pub decode: Plan,
    /// Bytes of one sequence's state after `context` tokens.
    pub state_bytes: usize,
    /// Multiply-adds of one token behind `context` others: the mixer and the MLP.
    pub cost_per_token: usize,
}

/// The form that a mixer takes, and its reason.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The form.
    pub form: Form,
    /// Why this one, in a sentence.
    pub why: String,
}

/// Explain a model for sequences of `context` tokens.
///
/// # Errors
/// When a mixer is not in the registry, which a model that could be built rules out.
pub fn explain(model: &LanguageModel, context: usize) -> Result<Explanation> {
    let dtype = model.dtype();
    let layers = (0..model.blocks().len())
        .map(|i| layer(model, i, context))
        .collect::<Result<Vec<_>>>()?;
    Ok(Explanation {
        model_type: model.config().model_type.clone(),
        parameters: model.params().count(),
        parameter_bytes: model.params().iter().map(|p| p.get().bytes()).sum(),
        dtype,
        device: model.device().to_string(),
        context,
        state_bytes: layers.iter().map(|l| l.state_bytes).sum(),
        cost_per_token: model.cost_per_token(context),
        layers,
    })
}

fn layer(model: &LanguageModel, number: usize, context: usize) -> Result<Layer> {
    let block = &model.blocks()[number];
    let mixer = block.mixer();
    let plan = |tokens, training| {
        let (form, why) = mixer.plan(tokens, training);
        Plan { form, why }
    };
    let prefix = format!("model.layers.{number}.mixer.");
    let own = model
        .params()
        .iter()
        .filter(|p| p.name().starts_with(&prefix));
    Ok(Layer {
        layer: number,
        mixer: mixer.name(),
        title: registry::find(mixer.name())?.title,
        mixer_parameters: own.map(|p| p.shape().iter().product::<usize>()).sum(),
        training: plan(context, true),
        prefill: plan(context, false),
        decode: plan(1, false),
        state_bytes: mixer.state_bytes(context, model.dtype()),
        cost_per_token: mixer.cost_per_token(context) + block.mlp().cost_per_token(),
    })
}
