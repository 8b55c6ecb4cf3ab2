//! Golden vectors: numbers from reference implementations in `tests/golden/<slug>.safetensors`, the cases and
//! their settings described by the metadata (`json` or `cases`). The same runner reads every file of that name in
//! the folder that `WEFT_GOLDEN_DIR` names, so that a mixer's test also covers cases it has never seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::SafeTensors;
use serde_json::{Value, json};
use weft_tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::safetensor::tensor_of;

/// One case of a golden file.
pub struct Case {
    /// `file:case`, for messages.
    pub label: String,
    /// What the metadata says about it: kind, sizes, tolerance.
    pub info: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Case {
    /// The kind of case, such as `op` or `layer:kda_kimi`.
    pub fn kind(&self) -> &str {
        self.info.get("kind").and_then(Value::as_str).unwrap_or("")
    }

    /// A number of the description.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.info.get(key).and_then(Value::as_f64).ok_or_else(|| {
            Error::config(
                &self.label,
                format!("the description has no number {key:?}"),
            )
        })
    }

    /// A tensor of the case.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::config(&self.label, format!("has no tensor {name:?}")))
    }

    /// A tensor that only some cases have.
    pub fn optional(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensors whose names start with `prefix`, without it.
    pub fn with_prefix(&self, prefix: &str) -> BTreeMap<&str, &Tensor> {
        self.tensors
            .iter()
            .filter_map(|(n, t)| Some((n.strip_prefix(prefix)?, t)))
            .collect()
    }
}

/// Every case of `tests/golden/<slug>.safetensors` and of the files of that name below `WEFT_GOLDEN_DIR`.
pub fn cases(slug: &str) -> Result<Vec<Case>> {
    let name = format!("{slug}.safetensors");
    let mut files = vec![
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden")
            .join(&name),
    ];
    if let Some(dir) = std::env::var_os("WEFT_GOLDEN_DIR") {
        let more = PathBuf::from(dir).join(&name);
        if more.is_file() {
            files.push(more);
        }
    }
    let mut all = vec![];
    for file in files {
        all.extend(read(&file)?);
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<Case>> {
    let bytes =
        std::fs::read(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let bad = |e: String| Error::file(path, format!("is not a golden file: {e}"));
    let (_, meta) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    // The description is a table `cases` in the string `json`, or stands under `cases` itself.
    let text = |key: &str| meta.metadata().as_ref().and_then(|m| m.get(key));
    let parse = |json: &String| serde_json::from_str::<Value>(json).map_err(|e| bad(e.to_string()));
    let info: Value = match (text("json"), text("cases")) {
        (Some(json), _) => parse(json)?,
        (None, Some(cases)) => json!({ "cases": parse(cases)? }),
        (None, None) => return Err(bad("no json metadata".into())),
    };
    let described = info
        .get("cases")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("no cases described".into()))?;
    let mut cases: Vec<Case> = described
        .iter()
        .map(|(name, info)| Case {
            label: format!("{}:{name}", path.display()),
            info: info.clone(),
            tensors: BTreeMap::new(),
        })
        .collect();
    for (key, view) in file.tensors() {
        let Some((case, name)) = key.split_once('/') else {
            return Err(bad(format!("{key} belongs to no case")));
        };
        let Some(i) = described.keys().position(|k| k == case) else {
            return Err(bad(format!(
                "{key} belongs to a case that is not described"
            )));
        };
        let tensor = tensor_of(&view, &Device::Cpu).map_err(|e| bad(format!("{key}: {e}")))?;
        cases[i].tensors.insert(name.to_string(), tensor);
    }
    if cases.is_empty() {
        return Err(bad("it holds no case".into()));
    }
    Ok(cases)
}

/// The largest difference of two tensors, relative to the largest element of `want` (or 1e-30).
pub fn relative_error(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.shape() != want.shape() {
        return Err(Error::config(
            "golden",
            format!("shape {:?} against {:?}", got.shape(), want.shape()),
        ));
    }
    let (g, w) = (
        got.detach().to_dtype(DType::F64)?.to_vec::<f64>()?,
        want.detach().to_dtype(DType::F64)?.to_vec::<f64>()?,
    );
    let size = w.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    Ok(g.iter().zip(&w).fold(0.0f64, |m, (a, b)| {
        if (a - b).is_nan() {
            f64::INFINITY
        } else {
            m.max((a - b).abs())
        }
    }) / size)
}

/// Panic with the label and the numbers unless `got` is within `tolerance` of `want`: for tests.
#[track_caller]
pub fn assert_close(label: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    match relative_error(got, want) {
        Ok(e) if e <= tolerance => {}
        Ok(e) => panic!("{label}: relative error {e:.3e} is above {tolerance:.1e}"),
        Err(e) => panic!("{label}: {e}"),
    }
}
