//! The parameters of a folder, in one file or in shards that an index names:
//!
//! ```text
//! {"metadata": {..}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", ..}}
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use weft_mixers::{Error, Result};
use weft_tensor::{Device, Tensor};

use super::weights::TensorFile;
use super::{CONTENTS, INDEX_FILE, WEIGHTS_FILE, read_capped};
use crate::blueprint::Shape;
use crate::fields::Fields;

/// An index above this size is refused.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// All parameters of a folder.
pub struct Weights {
    /// What to name when a tensor is nowhere: the only file, or the index.
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Which of the files holds a tensor.
    place: HashMap<String, usize>,
}

impl Weights {
    /// Open the files of a folder and check their headers.
    pub fn open(dir: &Path) -> crate::Result<Weights> {
        let (whole, index) = (dir.join(WEIGHTS_FILE), dir.join(INDEX_FILE));
        if whole.exists() {
            let file = TensorFile::open(&whole)?;
            let place = file.names().map(|n| (n.to_string(), 0)).collect();
            return Ok(Weights {
                path: whole,
                files: vec![file],
                place,
            });
        }
        if !index.exists() {
            let detail = format!("is missing, and so is {INDEX_FILE}: {CONTENTS}");
            return Err(Error::file(whole, detail).into());
        }
        let bytes = read_capped(&index, MAX_INDEX_BYTES)?;
        let map = read_map(&bytes).map_err(|e| Error::file(&index, e))?;
        Ok(Weights::open_shards(dir, index, map)?)
    }

    fn open_shards(dir: &Path, index: PathBuf, map: BTreeMap<String, String>) -> Result<Weights> {
        let mut files: Vec<TensorFile> = Vec::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut place = HashMap::new();
        for (tensor, shard) in map {
            let number = match numbers.get(&shard) {
                Some(&n) => n,
                None => {
                    if !is_plain_name(&shard) {
                        let detail = format!(
                            "names the shard {shard:?} for tensor {tensor:?}: a shard must be a file in the same folder"
                        );
                        return Err(Error::file(index, detail));
                    }
                    files.push(TensorFile::open(&dir.join(&shard))?);
                    numbers.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            place.insert(tensor, number);
        }
        for (number, file) in files.iter().enumerate() {
            if let Some(stray) = file.names().find(|&n| place.get(n) != Some(&number)) {
                let detail =
                    format!("holds tensor {stray:?}, which {INDEX_FILE} does not place there");
                return Err(Error::file(file.path(), detail));
            }
        }
        Ok(Weights {
            path: index,
            files,
            place,
        })
    }

    /// Check that exactly the expected tensors are there, each of its shape and a float dtype; gives their bytes.
    pub fn check(&self, expected: &[Shape]) -> Result<usize> {
        let mut bytes = 0usize;
        for Shape { name, shape } in expected {
            bytes = bytes.saturating_add(self.file_of(name)?.check(name, shape)?);
        }
        let known: HashSet<&str> = expected.iter().map(|s| s.name.as_str()).collect();
        match self.place.iter().find(|(n, _)| !known.contains(n.as_str())) {
            None => Ok(bytes),
            Some((name, &number)) => Err(Error::file(
                self.files[number].path(),
                format!("holds tensor {name:?}, which a model of this config does not have"),
            )),
        }
    }

    /// Read a tensor.
    pub fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.file_of(name)?.read(name, device)
    }

    fn file_of(&self, name: &str) -> Result<&TensorFile> {
        match self.place.get(name) {
            Some(&number) => Ok(&self.files[number]),
            None => Err(Error::file(
                &self.path,
                format!("the tensor {name:?} is missing, the config needs it"),
            )),
        }
    }
}

fn read_map(bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("is no JSON: {e}"))?;
    let mut fields = Fields::new(value)?;
    fields.required("weight_map")
}

/// Whether a shard's name stays in the folder: one plain component.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!(parts.next(), Some(Component::Normal(p)) if p == name);
    one && parts.next().is_none() && !name.contains(['/', '\\', '\0'])
}
