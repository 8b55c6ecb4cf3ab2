//! One safetensors file: 8 bytes with the header's length n, n bytes of JSON, then the elements.
//!
//! ```text
//! {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, .., "__metadata__": {..}}
//! ```
//!
//! Offsets count from the end of the header and must cover the rest of the file without gap or overlap. Everything is
//! checked when the file is opened; tensors are then read one by one, straight from their place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use safetensors::tensor::{Dtype, TensorInfo, TensorView};
use serde_json::{Map, Value};
use weft_mixers::safetensor::tensor_of;
use weft_mixers::{Error, Result};
use weft_tensor::{Device, Tensor};

/// A longer header is refused, as the format demands.
const MAX_HEADER: u64 = 100_000_000;
/// The dtypes that parameters may be stored in.
const FLOATS: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::BF16, Dtype::F16];

/// An open file whose header has been checked.
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Where the elements begin.
    start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Open a file and check its header.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let fail = |detail: String| Error::file(path, detail);
        let io = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound => fail("is missing".into()),
            _ => fail(format!("cannot be read: {e}")),
        };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let Some(body) = size.checked_sub(8) else {
            return Err(fail(format!(
                "is no safetensors file: it has {size} bytes, the header's length alone takes 8"
            )));
        };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > body || length > MAX_HEADER {
            return Err(fail(format!(
                "its header claims {length} bytes, the file has {body} after the length (and {MAX_HEADER} are allowed)"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let tensors = parse(&header).map_err(fail)?;
        check_offsets(&tensors, body - length).map_err(fail)?;
        Ok(TensorFile {
            path: path.to_owned(),
            file: Mutex::new(file),
            start: 8 + length,
            tensors,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Check that a tensor is there, of a float dtype and a shape; gives its bytes.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<usize> {
        let info = self.info(name)?;
        if !FLOATS.contains(&info.dtype) {
            return Err(self.fail(format!(
                "tensor {name:?} has dtype {}: expected F32, BF16, F16 or F64",
                info.dtype
            )));
        }
        if info.shape != shape {
            return Err(self.fail(format!(
                "tensor {name:?} has shape {:?}: the config needs {shape:?}",
                info.shape
            )));
        }
        Ok(info.data_offsets.1 - info.data_offsets.0)
    }

    /// Read a tensor.
    pub fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.info(name)?;
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        // A poisoned lock still holds an open file; its position is set before every read.
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(self.start + begin as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| self.fail(format!("tensor {name:?} cannot be read: {e}")))?;
        TensorView::new(info.dtype, info.shape.clone(), &bytes)
            .map_err(|e| e.to_string())
            .and_then(|view| tensor_of(&view, device))
            .map_err(|e| self.fail(format!("tensor {name:?}: {e}")))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.fail(format!("the tensor {name:?} is missing")))
    }

    fn fail(&self, detail: String) -> Error {
        Error::file(&self.path, detail)
    }
}

fn parse(header: &[u8]) -> Result<BTreeMap<String, TensorInfo>, String> {
    let map: Map<String, Value> = serde_json::from_slice(header)
        .map_err(|e| format!("is no safetensors file: its header is no JSON object: {e}"))?;
    let entry = |(name, value): (String, Value)| match serde_json::from_value(value) {
        Ok(info) => Ok((name, info)),
        Err(e) => Err(format!("tensor {name:?} is described wrongly: {e}")),
    };
    map.into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(entry)
        .collect()
}

/// Check that the tensors lie one after another and fill `body` bytes.
fn check_offsets(tensors: &BTreeMap<String, TensorInfo>, body: u64) -> Result<(), String> {
    let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut at = 0;
    for (name, info) in order {
        let (begin, end) = info.data_offsets;
        let (shape, dtype) = (&info.shape, info.dtype);
        let bits = shape
            .iter()
            .try_fold(dtype.bitsize(), |n, &d| n.checked_mul(d));
        let Some(bits) = bits else {
            return Err(format!("tensor {name:?} has the absurd shape {shape:?}"));
        };
        if end < begin || end - begin != bits.div_ceil(8) {
            return Err(format!(
                "tensor {name:?} of shape {shape:?} and dtype {dtype} needs {} bytes, its offsets {begin}..{end} are others",
                bits.div_ceil(8)
            ));
        }
        if begin < at {
            return Err(format!(
                "tensor {name:?} at {begin}..{end} overlaps the one before it, which ends at {at}"
            ));
        }
        if begin > at {
            return Err(format!(
                "no tensor covers the bytes {at}..{begin} before tensor {name:?}"
            ));
        }
        if end as u64 > body {
            return Err(format!(
                "is truncated: tensor {name:?} ends at {end}, the file has {body} bytes of elements"
            ));
        }
        at = end;
    }
    if (at as u64) < body {
        return Err(format!(
            "has {} bytes behind its last tensor",
            body - at as u64
        ));
    }
    Ok(())
}
