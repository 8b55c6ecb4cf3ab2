//! Finding the CUDA libraries at run time. cudarc resolves them by name and panics when one is missing, so
//! each is opened here first: by name, through the loader's own search path, or by path in the places that
//! toolkits and Python wheels use. A library once opened by path is found again by its name.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// A CUDA library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lib {
    Driver,
    Nvrtc,
    CublasLt,
}

/// What is known of each library: environment variable with its path, its file names, names of its absence.
struct Known {
    variable: &'static str,
    names: &'static [&'static str],
    missing: &'static str,
}

const fn known(lib: Lib) -> Known {
    match lib {
        Lib::Driver => Known {
            variable: "WEFT_LIBCUDA",
            names: &["libcuda.so", "libcuda.so.1"],
            missing: "no NVIDIA driver (libcuda.so.1) on this machine",
        },
        Lib::Nvrtc => Known {
            variable: "WEFT_NVRTC",
            names: &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"],
            missing: "no NVRTC (libnvrtc.so.12 or .13): install it with 'pip install nvidia-cuda-nvrtc' and name its folder in WEFT_NVRTC, or put CUDA's own on LD_LIBRARY_PATH",
        },
        Lib::CublasLt => Known {
            variable: "WEFT_CUBLASLT",
            names: &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"],
            missing: "no cuBLASLt (libcublasLt.so.12 or .13): install cuBLAS, put it on LD_LIBRARY_PATH, or name its file in WEFT_CUBLASLT",
        },
    }
}

/// Folders in which toolkits and the wheels of the active Python environment put their libraries.
fn folders() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["/usr/local/cuda/lib64", "/usr/local/nvidia/lib64"]
        .map(PathBuf::from)
        .to_vec();
    for home in ["CUDA_HOME", "CUDA_PATH"] {
        roots.extend(std::env::var_os(home).map(|p| Path::new(&p).join("lib64")));
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"];
    for root in environments.into_iter().filter_map(std::env::var_os) {
        let versions = std::fs::read_dir(Path::new(&root).join("lib"));
        for python in versions.into_iter().flatten().flatten() {
            let packages = std::fs::read_dir(python.path().join("site-packages/nvidia"));
            for package in packages.into_iter().flatten().flatten() {
                roots.push(package.path().join("lib"));
            }
        }
    }
    roots
}

/// A folder, and where it would hold libraries: as a toolkit, or as the target of `pip install --target`.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![
        folder.to_path_buf(),
        folder.join("lib"),
        folder.join("lib64"),
    ];
    let packages = std::fs::read_dir(folder.join("nvidia"));
    for package in packages.into_iter().flatten().flatten() {
        all.push(package.path().join("lib"));
    }
    all
}

fn open(path: &Path) -> Option<Library> {
    // SAFETY: opening a library runs its initialisers; NVIDIA's have no preconditions.
    unsafe { Library::new(path) }.ok()
}

fn find(lib: Lib) -> Result<Library, String> {
    let k = known(lib);
    if let Some(path) = std::env::var_os(k.variable) {
        // A folder or a file. The builtins that NVRTC opens by name lie beside it.
        let path = PathBuf::from(path);
        let files: Vec<PathBuf> = if path.is_dir() {
            let inside = below(&path);
            let names =
                |folder: &PathBuf| k.names.iter().map(|n| folder.join(n)).collect::<Vec<_>>();
            inside.iter().flat_map(names).collect()
        } else {
            vec![path.clone()]
        };
        return files.iter().find_map(|f| open(f)).ok_or_else(|| {
            let at = path.display();
            format!(
                "{}={at} holds no library that can be opened; {}",
                k.variable, k.missing
            )
        });
    }
    let by_name = k.names.iter().map(PathBuf::from);
    let by_path = folders()
        .into_iter()
        .flat_map(|folder| k.names.iter().map(move |n| folder.join(n)));
    by_name
        .chain(by_path)
        .find_map(|p| open(&p))
        .ok_or_else(|| k.missing.to_string())
}

/// The library, opened on first use and never closed, or one sentence that says what is missing.
pub(super) fn load(lib: Lib) -> Result<&'static Library, String> {
    static DRIVER: OnceLock<Result<Library, String>> = OnceLock::new();
    static NVRTC: OnceLock<Result<Library, String>> = OnceLock::new();
    static CUBLASLT: OnceLock<Result<Library, String>> = OnceLock::new();
    let cell = match lib {
        Lib::Driver => &DRIVER,
        Lib::Nvrtc => &NVRTC,
        Lib::CublasLt => &CUBLASLT,
    };
    let opened = cell.get_or_init(|| {
        let library = find(lib)?;
        // SAFETY: these only try to open the library under the names that cudarc knows.
        let seen = unsafe {
            match lib {
                Lib::Driver => cudarc::driver::sys::is_culib_present(),
                Lib::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Lib::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
            }
        };
        if seen {
            Ok(library)
        } else {
            let k = known(lib);
            Err(format!(
                "{lib:?} was opened but is not found by its name; {}",
                k.missing
            ))
        }
    });
    opened.as_ref().map_err(String::clone)
}
