//! Writing a model folder so that it is never half new: all files are written into a hidden folder inside it and
//! flushed to the disk, then each is renamed to its place.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use weft_mixers::Params;
use weft_mixers::safetensor::bytes_of;
use weft_tensor::DType;

use super::{CONFIG_FILE, WEIGHTS_FILE, check_vocabulary};
use crate::error::{Error, Result};
use crate::lm::LanguageModel;
use crate::tokenizer::Tokenizer;

const BESIDE: &str = ".partial";

/// Write a model (and its tokenizer) into a folder, which is made if it does not exist. Other files in it stay.
///
/// # Errors
/// When a file cannot be written; what the folder held before is then still there, or when the tokenizer has more
/// tokens than the model.
pub fn save(dir: &Path, model: &LanguageModel, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let fail = |e: &dyn std::fmt::Display| Error::file(dir, format!("cannot be written: {e}"));
    if let Some(t) = tokenizer {
        check_vocabulary(t, model.config()).map_err(|e| Error::file(dir, e))?;
    }
    let beside = Beside::new(dir).map_err(|e| fail(&e))?;
    if let Some(t) = tokenizer {
        t.save(&beside.path)?;
    }
    let mut file =
        BufWriter::new(File::create(beside.path.join(WEIGHTS_FILE)).map_err(|e| fail(&e))?);
    write_weights(&mut file, model.params()).map_err(|e| fail(&e))?;
    file.flush().map_err(|e| fail(&e))?;
    let config = model.stored_config().to_json()?;
    fs::write(beside.path.join(CONFIG_FILE), config).map_err(|e| fail(&e))?;
    beside.publish(dir).map_err(|e| fail(&e))
}

/// A hidden folder that disappears with everything in it unless it is published.
struct Beside {
    path: PathBuf,
}

impl Beside {
    fn new(dir: &Path) -> io::Result<Beside> {
        fs::create_dir_all(dir)?;
        let path = dir.join(BESIDE);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir(&path)?,
        }
        Ok(Beside { path })
    }

    /// Flush every file and move it to its place, the config last.
    fn publish(self, dir: &Path) -> io::Result<()> {
        let mut names = fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_by_key(|name| (name == CONFIG_FILE, name.clone()));
        for name in &names {
            File::open(self.path.join(name))?.sync_all()?;
        }
        for name in &names {
            fs::rename(self.path.join(name), dir.join(name))?;
        }
        File::open(dir)?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Nothing is lost if this fails: the next save starts by removing it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The parameters as safetensors, one at a time; elements of wider dtypes first, so that all are aligned.
fn write_weights(out: &mut impl Write, params: &Params) -> io::Result<()> {
    let mut list: Vec<_> = params.iter().map(|p| (p, p.get().detach())).collect();
    list.sort_by_key(|(p, t)| (std::cmp::Reverse(t.dtype().size()), p.name().to_string()));
    let mut at = 0;
    let mut infos = Vec::with_capacity(list.len());
    for (p, t) in &list {
        let info = TensorInfo {
            dtype: float_tag(t.dtype())?,
            shape: t.shape().to_vec(),
            data_offsets: (at, at + t.bytes()),
        };
        at += t.bytes();
        infos.push((p.name().to_string(), info));
    }
    let note = HashMap::from([("format".to_string(), "pt".to_string())]);
    let header = Metadata::new(Some(note), infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, t) in &list {
        let (_, bytes) = bytes_of(t).map_err(io::Error::other)?;
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn float_tag(dtype: DType) -> io::Result<Dtype> {
    match dtype {
        DType::F64 => Ok(Dtype::F64),
        DType::F32 => Ok(Dtype::F32),
        DType::BF16 => Ok(Dtype::BF16),
        other => Err(io::Error::other(format!("a parameter has dtype {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use weft_mixers::{Init, Scope};
    use weft_tensor::Device;

    use super::*;

    /// A disk of a few bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_reported_wherever_it_fills_up() {
        let mut params = Params::new();
        let mut scope = Scope::random(&mut params, 1, DType::F32, &Device::Cpu);
        scope.weight("w", &[4, 4], Init::Const(1.0)).unwrap();
        let mut whole = vec![];
        write_weights(&mut whole, &params).unwrap();
        for space in [0, 8, 20, whole.len() - 1] {
            let e = write_weights(&mut Full(space), &params).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        }
        write_weights(&mut Full(whole.len()), &params).unwrap();
    }
}
