//! State files: safetensors with a metadata record that says what the state belongs to. Reading trusts
//! nothing: format, version, owner, names, shapes and dtypes are all checked before a state is built.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use weft_tensor::Device;

use crate::error::{Error, Result};
use crate::files::AtomicFile;
use crate::safetensor::{bytes_of, tensor_of};
use crate::state::State;

const FORMAT: &str = "weft-state";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    owner: String,
    /// Order of the axes in matrix states.
    layout: String,
    states: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    mixer: String,
    positions: Vec<usize>,
    tensors: Vec<String>,
}

/// Write states, one after another; a crash leaves the old file or the new one.
pub fn save(path: &Path, owner: &str, states: &[&State]) -> Result<()> {
    let record = |s: &&State| Record {
        mixer: s.mixer().into(),
        positions: s.positions().to_vec(),
        tensors: s.tensors().map(|(n, _)| n.to_string()).collect(),
    };
    let header = Header {
        format: FORMAT.into(),
        version: VERSION,
        owner: owner.into(),
        layout: "[batch, head, key, value]".into(),
        states: states.iter().map(record).collect(),
    };
    let mut data: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = vec![];
    for (i, state) in states.iter().enumerate() {
        for (name, t) in state.tensors() {
            let (dtype, bytes) = bytes_of(t)?;
            data.push((format!("{i}.{name}"), dtype, t.shape().to_vec(), bytes));
        }
    }
    let fail = |e: &dyn std::fmt::Display| Error::file(path, format!("cannot be written: {e}"));
    let views = data
        .iter()
        .map(|(n, d, s, b)| {
            Ok((
                n.as_str(),
                TensorView::new(*d, s.clone(), b).map_err(|e| fail(&e))?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let json = serde_json::to_string(&header).map_err(|e| fail(&e))?;
    let meta = HashMap::from([("weft".to_string(), json)]);
    let bytes = safetensors::serialize(views, Some(meta)).map_err(|e| fail(&e))?;
    let write = || {
        let mut file = AtomicFile::create(path)?;
        file.write_all(&bytes)?;
        file.commit()
    };
    write().map_err(|e: std::io::Error| fail(&e))
}

/// Read the states of a file that belongs to `owner`.
pub fn load(path: &Path, owner: &str, device: &Device) -> Result<Vec<State>> {
    let bytes =
        std::fs::read(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let bad = |e: String| Error::file(path, format!("is not a state file: {e}"));
    let (_, meta) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let Some(json) = meta.metadata().as_ref().and_then(|m| m.get("weft")) else {
        return Err(bad("it has no weft metadata".into()));
    };
    let header: Header = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
    if header.format != FORMAT || header.version != VERSION {
        let (f, v) = (header.format, header.version);
        return Err(bad(format!(
            "format {f} version {v}, this program reads {FORMAT} version {VERSION}"
        )));
    }
    if header.owner != owner {
        let detail = format!(
            "is a state of {}, not of {owner}: give the model it was saved with",
            header.owner
        );
        return Err(Error::file(path, detail));
    }
    let mut states = vec![];
    for (i, r) in header.states.iter().enumerate() {
        let mut tensors = BTreeMap::new();
        for name in &r.tensors {
            let view = file
                .tensor(&format!("{i}.{name}"))
                .map_err(|e| bad(format!("tensor {i}.{name}: {e}")))?;
            let t = tensor_of(&view, device).map_err(|e| bad(format!("tensor {i}.{name}: {e}")))?;
            if t.shape().first() != Some(&r.positions.len()) {
                let (s, n) = (t.shape(), r.positions.len());
                return Err(bad(format!(
                    "tensor {i}.{name} of shape {s:?} in a batch of {n}"
                )));
            }
            tensors.insert(name.clone(), t);
        }
        states.push(State::from_parts(
            r.mixer.clone(),
            tensors,
            r.positions.clone(),
        ));
    }
    Ok(states)
}
