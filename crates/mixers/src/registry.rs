//! The table of mixers. A mixer's line here is all that recipes, model configs, the command line, the laws and
//! the benchmarks need to know it.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::mixer::{Form, Mixer};
use crate::params::Scope;
use crate::{attention, gated_deltanet, gated_deltanet2, kda, sliding_window};
use crate::{delta_net, gla, hgrn, hgrn2, lightning, mamba2, mamba3, retnet};
use crate::{m2rnn, rnn, softmax_as_rnn};

/// The width of a mixer and its own settings, as they stand in a recipe or a config.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Width D of inputs and outputs.
    pub d_model: usize,
    /// The mixer's settings; what is missing takes its default.
    pub table: Map<String, Value>,
    /// Which layer of the model it is, from 0, and how many there are (0: it stands alone). Some decays depend on it.
    pub layer: usize,
    /// See [`Options::layer`].
    pub layers: usize,
}

impl Options {
    /// Settings from a JSON object, of a layer that stands alone.
    pub fn new(d_model: usize, table: Value) -> Options {
        let table = if let Value::Object(m) = table {
            m
        } else {
            Map::new()
        };
        Options {
            d_model,
            table,
            ..Options::default()
        }
    }

    /// The same as layer `layer` of `layers`.
    pub fn at(self, layer: usize, layers: usize) -> Options {
        Options {
            layer,
            layers,
            ..self
        }
    }

    /// The settings as the mixer's typed config, which must refuse unknown fields.
    pub fn parse<C: DeserializeOwned>(&self, mixer: &str) -> Result<C> {
        serde_json::from_value(Value::Object(self.table.clone()))
            .map_err(|e| Error::config(mixer, e.to_string()))
    }
}

/// A line of the table.
pub struct Entry {
    /// Short name used in layer patterns: `gdn2`.
    pub name: &'static str,
    /// The name in the literature.
    pub title: &'static str,
    /// Authors, year and where to find it.
    pub paper: &'static str,
    /// Its page in the docs folder.
    pub page: &'static str,
    /// The forms it has.
    pub forms: &'static [Form],
    /// Build it with its parameters.
    pub build: fn(&Options, &mut Scope) -> Result<Box<dyn Mixer>>,
    /// Small settings that between them reach every option: the laws run on each.
    pub samples: fn() -> Vec<Options>,
}

/// Every mixer of the house.
pub static MIXERS: &[&Entry] = &[
    &attention::ENTRY,
    &sliding_window::ENTRY,
    &gated_deltanet2::ENTRY,
    &kda::ENTRY,
    &gated_deltanet::ENTRY,
    &delta_net::ENTRY,
    &mamba2::ENTRY,
    &mamba3::ENTRY,
    &gla::ENTRY,
    &hgrn2::ENTRY,
    &hgrn::ENTRY,
    &retnet::ENTRY,
    &lightning::ENTRY,
    &rnn::elman::ENTRY,
    &rnn::jordan::ENTRY,
    &rnn::lstm::ENTRY,
    &rnn::gru::ENTRY,
    &m2rnn::ENTRY,
    &softmax_as_rnn::ENTRY,
];

/// A mixer by its short name; an unknown one is refused with the nearest known name.
pub fn find(name: &str) -> Result<&'static Entry> {
    if let Some(entry) = MIXERS.iter().find(|e| e.name == name) {
        return Ok(entry);
    }
    let nearest = MIXERS
        .iter()
        .min_by_key(|e| strsim::damerau_levenshtein(e.name, name));
    let hint = nearest.map_or(String::new(), |e| format!(", did you mean {:?}?", e.name));
    Err(Error::config(name, format!("no such mixer{hint}")))
}
