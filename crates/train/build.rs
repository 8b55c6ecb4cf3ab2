//! Lists the repository's own documents and sources, so that the binary carries them as the text that
//! `weft quickstart` learns from when it is given none.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders below the root of the repository, and the endings of the files to take.
const FOLDERS: [&str; 4] = ["docs", "crates", "recipes", "benches"];
const ENDINGS: [&str; 3] = ["md", "rs", "toml"];

fn main() -> io::Result<()> {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let output = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let root = package.join("../..").canonicalize()?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&root)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    for folder in FOLDERS {
        let folder = root.join(folder);
        if folder.is_dir() {
            println!("cargo::rerun-if-changed={}", folder.display());
            collect(&folder, &mut files)?;
        }
    }
    files.retain(|f| {
        f.extension()
            .is_some_and(|e| ENDINGS.iter().any(|&x| e == x))
    });
    files.sort();
    let mut list = String::from("[\n");
    for file in &files {
        let name = file
            .strip_prefix(&root)
            .unwrap_or(file)
            .display()
            .to_string();
        let _ = writeln!(
            list,
            "({name:?}, include_str!({:?})),",
            file.display().to_string()
        );
    }
    list.push_str("]\n");
    fs::write(output.join("corpus.rs"), list)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
