//! Model folders: `config.json`, `model.safetensors` (or shards with `model.safetensors.index.json`) and
//! `tokenizer.json`. The only thing that passes between commands.
//!
//! A folder is untrusted: nothing is allocated for a tensor before its file, offsets, dtype and shape have been checked
//! against the config. Saving writes all files beside their places and then renames them, the config last, so that a
//! full disk or a crash leaves the old model or the new one.

mod save;
mod shards;
mod weights;

use std::io::Read;
use std::path::Path;

use weft_tensor::Device;

use crate::blueprint::{blueprint, check_memory};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lm::LanguageModel;
use crate::tokenizer::Tokenizer;

pub use save::save;

/// The description of the model.
pub const CONFIG_FILE: &str = "config.json";
/// The parameters, in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Which shard holds which parameter, where they are in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Configs above this size are refused.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
const CONTENTS: &str = "a model folder holds config.json, model.safetensors and tokenizer.json";

/// The config of a model folder.
///
/// # Errors
/// When the folder or the file is missing, or the config is wrong.
pub fn load_config(dir: &Path) -> Result<Config> {
    if !dir.is_dir() {
        let detail = format!("is not a folder: {CONTENTS}");
        return Err(Error::file(dir, detail));
    }
    let path = dir.join(CONFIG_FILE);
    let bytes = read_capped(&path, MAX_CONFIG_BYTES)?;
    Config::from_json(&bytes).map_err(|e| match e {
        Error::Config(detail) => Error::file(path, detail),
        other => other,
    })
}

/// The model of a folder. Parameters keep the dtype that they are stored in (f16 becomes f32).
///
/// # Errors
/// When a file is missing, damaged or lies, or does not hold exactly the tensors that the config describes.
pub fn load(dir: &Path, device: &Device) -> Result<LanguageModel> {
    let config = load_config(dir)?;
    let expected =
        blueprint(&config).map_err(|e| Error::file(dir.join(CONFIG_FILE), e.to_string()))?;
    let weights = shards::Weights::open(dir)?;
    check_memory("the parameters", weights.check(&expected)?)?;
    let source = |name: &str, _: &[usize]| weights.read(name, device);
    LanguageModel::from_source(&config, &source, device)
}

/// The tokenizer of a folder, for the model of that folder.
///
/// # Errors
/// When it is missing or damaged, or has tokens that the model has no embedding for.
pub fn load_tokenizer(dir: &Path, config: &Config) -> Result<Tokenizer> {
    let path = dir.join(TOKENIZER_FILE);
    if !path.is_file() {
        return Err(Error::file(path, format!("is missing: {CONTENTS}")));
    }
    let tokenizer = Tokenizer::load(&path)?;
    check_vocabulary(&tokenizer, config).map_err(|e| Error::file(path, e))?;
    Ok(tokenizer)
}

/// A model must have an embedding for every token; more embeddings than tokens are padding.
pub(crate) fn check_vocabulary(tokenizer: &Tokenizer, config: &Config) -> Result<(), String> {
    let (have, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if have <= rows {
        return Ok(());
    }
    Err(format!(
        "the tokenizer has {have} tokens, the model {rows}: they do not belong together"
    ))
}

/// A whole file of at most `max` bytes.
fn read_capped(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>| std::fs::File::open(path)?.take(max + 1).read_to_end(bytes);
    match read(&mut bytes) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::file(path, format!("is missing: {CONTENTS}")))
        }
        Err(e) => Err(Error::file(path, format!("cannot be read: {e}"))),
        Ok(_) if bytes.len() as u64 > max => {
            Err(Error::file(path, format!("is larger than {max} bytes")))
        }
        Ok(_) => Ok(bytes),
    }
}
