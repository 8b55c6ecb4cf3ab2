use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use weft_models::tokenizer::{END_OF_TEXT, Tokenizer};
use weft_models::{LanguageModel, folder};
use weft_tensor::{DType, Device, Rng};

use crate::{config, ids, model, run, tokenizer};

const WEIGHTS: &str = "model.safetensors";
const NORM: &str = "model.norm.weight";

fn saved(dtype: DType) -> (TempDir, LanguageModel) {
    let dir = tempfile::tempdir().unwrap();
    let m = model(dtype, 1);
    folder::save(dir.path(), &m, Some(&tokenizer())).unwrap();
    (dir, m)
}

fn refused(dir: &Path) -> String {
    let e = folder::load(dir, &Device::Cpu)
        .err()
        .expect("must be refused");
    e.to_string()
}

/// The header and the elements of a safetensors file.
fn open(path: &Path) -> (Map<String, Value>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    (header, bytes[8 + n..].to_vec())
}

fn write(path: &Path, header: &Map<String, Value>, body: &[u8]) {
    let header = serde_json::to_vec(header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, header.as_slice(), body].concat()).unwrap();
}

#[test]
fn a_folder_brings_back_every_bit() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let (dir, m) = saved(dtype);
        let loaded = folder::load(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(loaded.config(), m.config());
        assert_eq!(loaded.params().len(), m.params().len());
        for (a, b) in m.params().iter().zip(loaded.params().iter()) {
            assert_eq!(
                (a.name(), a.shape(), a.decays()),
                (b.name(), b.shape(), b.decays())
            );
            assert_eq!(a.get().dtype(), b.get().dtype());
            assert_eq!(a.get().to_f64_vec().unwrap(), b.get().to_f64_vec().unwrap());
        }
        assert_eq!(loaded.fingerprint().unwrap(), m.fingerprint().unwrap());
        let ids = ids(2, 5, 1);
        let logits = |m: &LanguageModel| {
            run(m, &ids, &mut m.init_state(2).unwrap())
                .to_f64_vec()
                .unwrap()
        };
        assert_eq!(logits(&loaded), logits(&m));
        let t = folder::load_tokenizer(dir.path(), loaded.config()).unwrap();
        assert_eq!(t.encode("abc").unwrap(), [97, 98, 99]);
    }
}

#[test]
fn other_programs_can_read_the_weights() {
    let (dir, m) = saved(DType::F32);
    let bytes = fs::read(dir.path().join(WEIGHTS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), m.params().len());
    for p in m.params().iter() {
        let view = file.tensor(p.name()).unwrap();
        assert_eq!(view.shape(), p.shape());
        assert_eq!(
            view.data().as_ptr() as usize % 4,
            bytes.as_ptr() as usize % 4
        );
    }
    let meta = safetensors::SafeTensors::read_metadata(&bytes).unwrap().1;
    assert_eq!(meta.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn saving_over_a_folder_replaces_the_model_and_keeps_other_files() {
    let (dir, _) = saved(DType::F32);
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let second = model(DType::F32, 2);
    folder::save(dir.path(), &second, None).unwrap();
    let loaded = folder::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(loaded.fingerprint().unwrap(), second.fingerprint().unwrap());
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            WEIGHTS,
            "notes.txt",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}

#[test]
fn a_save_that_fails_leaves_the_old_model_and_no_rubbish() {
    let (dir, old) = saved(DType::F32);
    // The weights cannot be moved over a folder that is not empty.
    fs::rename(dir.path().join(WEIGHTS), dir.path().join("kept")).unwrap();
    fs::create_dir(dir.path().join(WEIGHTS)).unwrap();
    fs::write(dir.path().join(WEIGHTS).join("in the way"), "").unwrap();
    let mut c = config(DType::F32);
    c.rms_norm_eps = 0.25;
    let new = LanguageModel::new(&c, 1, &Device::Cpu).unwrap();
    let e = folder::save(dir.path(), &new, None)
        .unwrap_err()
        .to_string();
    assert!(e.contains("cannot be written"), "{e}");
    assert_eq!(folder::load_config(dir.path()).unwrap(), *old.config());
    assert!(!dir.path().join(".partial").exists());

    let file = dir.path().join("a file");
    fs::write(&file, "").unwrap();
    let e = folder::save(&file, &new, None).unwrap_err().to_string();
    assert!(e.contains("a file: cannot be written"), "{e}");
    let larger = Tokenizer::byte_level(&[END_OF_TEXT, "<|pad|>"]).unwrap();
    let e = folder::save(dir.path(), &new, Some(&larger))
        .unwrap_err()
        .to_string();
    assert!(e.contains("258 tokens, the model 257"), "{e}");
}

#[test]
fn what_is_missing_is_said() {
    let (dir, m) = saved(DType::F32);
    let e = refused(&dir.path().join("nowhere"));
    assert!(
        e.contains("nowhere: is not a folder: a model folder holds config.json"),
        "{e}"
    );
    let e = refused(&dir.path().join("config.json"));
    assert!(e.contains("is not a folder"), "{e}");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let e = folder::load_tokenizer(dir.path(), m.config())
        .unwrap_err()
        .to_string();
    assert!(e.contains("tokenizer.json: is missing"), "{e}");
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let e = refused(dir.path());
    assert!(
        e.contains("model.safetensors: is missing, and so is model.safetensors.index.json"),
        "{e}"
    );
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(refused(dir.path()).contains("config.json: is missing"));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (dir, m) = saved(DType::F32);
    Tokenizer::byte_level(&[END_OF_TEXT, "<|pad|>"])
        .unwrap()
        .save(dir.path())
        .unwrap();
    let e = folder::load_tokenizer(dir.path(), m.config())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("tokenizer.json: the tokenizer has 258 tokens, the model 257"),
        "{e}"
    );
}

#[test]
fn hostile_configs_are_refused_with_the_file_and_the_field() {
    let (dir, m) = saved(DType::F32);
    let path = dir.path().join("config.json");
    let changes = [
        (
            json!({"hidden_size": 1u64 << 40}),
            "hidden_size is 1099511627776",
        ),
        (json!({"hidden_size": 32}), "has shape"),
        (
            json!({"layer_types": ["gdn2", "gdn2", "nonsense"]}),
            "nonsense",
        ),
        (json!({"vocab_sise": 3}), "did you mean \"vocab_size\"?"),
    ];
    for (change, part) in changes {
        let mut value = serde_json::to_value(m.config()).unwrap();
        value
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        fs::write(&path, value.to_string()).unwrap();
        let e = refused(dir.path());
        assert!(
            e.contains(part) && e.starts_with(dir.path().to_str().unwrap()),
            "{e}"
        );
    }
    let deep = "[".repeat(100_000);
    for text in ["", "{}", "[1]", "\u{0}", &deep] {
        fs::write(&path, text).unwrap();
        assert!(refused(dir.path()).contains("config.json"), "{text:.10}");
    }
    fs::write(&path, vec![b' '; 5 << 20]).unwrap();
    assert!(refused(dir.path()).contains("is larger than"));
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let (dir, _) = saved(DType::F32);
    let path = dir.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for cut in [
        0,
        1,
        7,
        8,
        9,
        8 + n / 2,
        8 + n - 1,
        8 + n,
        8 + n + 1,
        whole.len() - 1,
    ] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(refused(dir.path()).contains(WEIGHTS), "{cut}");
    }
    fs::write(&path, [whole.as_slice(), b"more"].concat()).unwrap();
    let e = refused(dir.path());
    assert!(e.contains("has 4 bytes behind its last tensor"), "{e}");
}

#[test]
fn lying_headers_are_refused_with_the_tensor() {
    let (dir, _) = saved(DType::F32);
    let path = dir.path().join(WEIGHTS);
    let (header, body) = open(&path);
    let end = body.len();
    let [begin, stop] = [0, 1].map(|i| header[NORM]["data_offsets"][i].as_u64().unwrap());
    let changes = [
        (json!({"dtype": "I64", "shape": [8]}), "has dtype I64"),
        (
            json!({"dtype": "F16", "shape": [32]}),
            "has shape [32]: the config needs [16]",
        ),
        (json!({"dtype": "F99"}), "is described wrongly"),
        (json!({"dtype": "F64"}), "needs 128 bytes"),
        (json!({"shape": [4, 4]}), "has shape [4, 4]"),
        (
            json!({"shape": [u64::MAX, u64::MAX]}),
            "has the absurd shape",
        ),
        (json!({"shape": [1u64 << 62]}), "has the absurd shape"),
        (json!({"shape": [-16]}), "is described wrongly"),
        (json!({"shape": "16"}), "is described wrongly"),
        (json!({"data_offsets": [stop, begin]}), "needs 64 bytes"),
        (json!({"data_offsets": [begin]}), "is described wrongly"),
        (json!({"data_offsets": [begin, stop + 4]}), "needs 64 bytes"),
        (
            json!({"data_offsets": [begin + 4, stop + 4]}),
            "no tensor covers",
        ),
        (
            json!({"data_offsets": [u64::MAX - 64, u64::MAX]}),
            "no tensor covers",
        ),
        (json!({"data_offsets": [0, 64]}), "overlaps"),
        (json!(null), "is described wrongly"),
    ];
    for (change, part) in changes {
        let mut lying = header.clone();
        match change {
            Value::Object(fields) => lying[NORM].as_object_mut().unwrap().extend(fields),
            other => lying[NORM] = other,
        }
        write(&path, &lying, &body);
        let e = refused(dir.path());
        assert!(e.contains(part) && e.contains(WEIGHTS), "{e}");
        assert!(e.contains("model."), "no tensor named: {e}");
    }
    let mut long = header.clone();
    long.insert(
        "extra".into(),
        json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}),
    );
    write(&path, &long, &body);
    let e = refused(dir.path());
    assert!(e.contains("is truncated: tensor \"extra\""), "{e}");
    write(&path, &long, &[body.as_slice(), &[0; 4]].concat());
    let e = refused(dir.path());
    assert!(
        e.contains("holds tensor \"extra\", which a model of this config does not have"),
        "{e}"
    );
    // Renamed: one tensor is missing.
    let renamed: Map<String, Value> = header
        .iter()
        .map(|(k, v)| {
            (
                if k == NORM {
                    "model.norm.wait".into()
                } else {
                    k.clone()
                },
                v.clone(),
            )
        })
        .collect();
    write(&path, &renamed, &body);
    let e = refused(dir.path());
    assert!(
        e.contains("the tensor \"model.norm.weight\" is missing"),
        "{e}"
    );
}

#[test]
fn headers_of_impossible_length_are_refused_unread() {
    let (dir, _) = saved(DType::F32);
    let path = dir.path().join(WEIGHTS);
    for length in [u64::MAX, 1 << 40, 200_000_000] {
        fs::write(&path, [&length.to_le_bytes()[..], b"{}"].concat()).unwrap();
        let e = refused(dir.path());
        assert!(
            e.contains(&format!("its header claims {length} bytes")),
            "{e}"
        );
    }
    for header in ["", "[]", "{\"a\": ", "{\"\u{1F9F6}\": 1}", "\u{0}\u{0}"] {
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length[..], header.as_bytes()].concat()).unwrap();
        assert!(refused(dir.path()).contains(WEIGHTS), "{header}");
    }
}

#[test]
fn a_flipped_byte_in_a_header_or_config_never_panics() {
    let (dir, _) = saved(DType::F32);
    for name in [WEIGHTS, "config.json"] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let end = whole.len().min(3000);
        let mut rng = Rng::new(1);
        let mut refused = 0;
        for _ in 0..400 {
            let mut bytes = whole.clone();
            bytes[rng.below(end as u64) as usize] = rng.below(256) as u8;
            fs::write(&path, &bytes).unwrap();
            if let Err(e) = folder::load(dir.path(), &Device::Cpu) {
                refused += 1;
                assert!(
                    e.to_string().starts_with(dir.path().to_str().unwrap()),
                    "{e}"
                );
            }
        }
        // What still loads has a byte that was drawn as it was, white space, a number of the config, or metadata.
        assert!(refused > 200, "{name}: {refused}");
        fs::write(&path, &whole).unwrap();
    }
}

/// The model of a folder in two shards with an index.
fn shard(dir: &Path) -> Value {
    let (header, body) = open(&dir.join(WEIGHTS));
    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    let mut map = Map::new();
    let mut parts = [(Map::new(), vec![]), (Map::new(), vec![])];
    let tensors = header.iter().filter(|(n, _)| *n != "__metadata__");
    for (i, (name, info)) in tensors.enumerate() {
        let (header, data) = &mut parts[i % 2];
        let [begin, end] = [0, 1].map(|i| info["data_offsets"][i].as_u64().unwrap() as usize);
        let mut info = info.clone();
        info["data_offsets"] = json!([data.len(), data.len() + end - begin]);
        data.extend(&body[begin..end]);
        header.insert(name.clone(), info);
        map.insert(name.clone(), shard_name(i % 2).into());
    }
    for (i, (header, data)) in parts.iter().enumerate() {
        write(&dir.join(shard_name(i)), header, data);
    }
    let index = json!({"metadata": {"total_size": body.len()}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

fn shard_name(i: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", i + 1)
}

#[test]
fn shards_are_read_and_a_lying_index_is_refused() {
    let (dir, m) = saved(DType::F32);
    let index = shard(dir.path());
    let loaded = folder::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(loaded.fingerprint().unwrap(), m.fingerprint().unwrap());

    let path = dir.path().join("model.safetensors.index.json");
    let outside = dir.path().parent().unwrap().join("outside.safetensors");
    let names = [
        "../outside.safetensors",
        "./../outside.safetensors",
        outside.to_str().unwrap(),
        "a/b.safetensors",
        "..\\outside.safetensors",
        "..",
        ".",
        "",
    ];
    for name in names {
        let mut lying = index.clone();
        lying["weight_map"][NORM] = name.into();
        fs::write(&path, lying.to_string()).unwrap();
        let e = refused(dir.path());
        assert!(
            e.contains("must be a file in the same folder") && e.contains(NORM),
            "{e}"
        );
    }
    let refuse_map = |name: &str, value: Value, part: &str| {
        let mut lying = index.clone();
        lying["weight_map"][name] = value;
        fs::write(&path, lying.to_string()).unwrap();
        let e = refused(dir.path());
        assert!(e.contains(part), "{e}");
    };
    refuse_map(
        NORM,
        "gone.safetensors".into(),
        "gone.safetensors: is missing",
    );
    let other = usize::from(index["weight_map"][NORM] == shard_name(0));
    refuse_map(NORM, shard_name(other).into(), "does not place there");
    refuse_map("extra", shard_name(0).into(), "\"extra\"");
    refuse_map(NORM, json!(3), "\"weight_map\" is wrong");
    for text in ["", "{}", "[]"] {
        fs::write(&path, text).unwrap();
        assert!(refused(dir.path()).contains("index.json"), "{text}");
    }
    fs::write(&path, index.to_string()).unwrap();
    fs::remove_file(dir.path().join(shard_name(1))).unwrap();
    let e = refused(dir.path());
    assert!(
        e.contains("model-00002-of-00002.safetensors: is missing"),
        "{e}"
    );
}
