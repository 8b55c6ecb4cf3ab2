//! Compiling kernels with NVRTC, and keeping what was compiled on disk. The key of a kept file is everything
//! that its content depends on: source, options, architecture, compiler version.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use cudarc::nvrtc::sys;
use rayon::prelude::*;

use super::loader::{self, Lib};
use super::source::{Source, Variant};
use crate::error::Result;

use super::context::device_error;

type Text<T> = std::result::Result<T, String>;

const OPTIONS: [&str; 2] = ["--std=c++17", "-diag-suppress=177"];

fn step(result: sys::nvrtcResult) -> Text<()> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: the library is loaded (it gave the result); the string is static.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    Err(format!("NVRTC: {}", text.to_string_lossy()))
}

/// NVRTC's version.
pub fn version() -> Text<(i32, i32)> {
    loader::load(Lib::Nvrtc)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded; pointers to live locals.
    step(unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

/// Architectures that this NVRTC makes machine code for, as major * 10 + minor.
fn supported() -> Text<Vec<i32>> {
    loader::load(Lib::Nvrtc)?;
    let mut n = 0;
    // SAFETY: the library is loaded; the list has room for the `n` entries it is asked for.
    unsafe {
        step(sys::nvrtcGetNumSupportedArchs(&mut n))?;
        let mut list = vec![0; usize::try_from(n).unwrap_or(0)];
        step(sys::nvrtcGetSupportedArchs(list.as_mut_ptr()))?;
        Ok(list)
    }
}

/// The target for a GPU: its machine code, or portable code for the newest architecture below it if this
/// NVRTC is older than the GPU.
fn target(arch: u32) -> Text<String> {
    let list = supported()?;
    let below = |&&a: &&i32| u32::try_from(a).is_ok_and(|a| a <= arch);
    match list.iter().filter(below).max() {
        // Products of whole warpgroups exist on this one alone.
        Some(90) if arch == 90 => Ok("sm_90a".into()),
        Some(&a) if a as u32 == arch => Ok(format!("sm_{arch}")),
        Some(a) => Ok(format!("compute_{a}")),
        None => Err(format!(
            "this NVRTC is too new for compute capability {arch}"
        )),
    }
}

struct Program(sys::nvrtcProgram);
impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram and not destroyed before.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Machine code (`sm_90`) or portable code (`compute_90`) of a source; the compiler's words if it fails.
fn compile(name: &str, source: &str, target: &str) -> Text<Vec<u8>> {
    let c = |s: &str| CString::new(s).map_err(|e| e.to_string());
    let (text, name) = (c(source)?, c(&format!("{name}.cu"))?);
    let options = std::iter::once(format!("-arch={target}"))
        .chain(OPTIONS.map(String::from))
        .map(|o| c(&o))
        .collect::<Text<Vec<_>>>()?;
    let pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
    let mut raw = std::ptr::null_mut();
    // SAFETY: the library is loaded (`target` was made by it or the caller asked `version`); all strings outlive
    // the calls; buffers have the sizes that NVRTC reports.
    unsafe {
        let null = std::ptr::null();
        step(sys::nvrtcCreateProgram(
            &mut raw,
            text.as_ptr(),
            name.as_ptr(),
            0,
            null,
            null,
        ))?;
        let program = Program(raw);
        let compiled =
            sys::nvrtcCompileProgram(program.0, pointers.len() as i32, pointers.as_ptr());
        if compiled != sys::nvrtcResult::NVRTC_SUCCESS {
            let mut size = 0;
            step(sys::nvrtcGetProgramLogSize(program.0, &mut size))?;
            let mut log = vec![0u8; size];
            step(sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()))?;
            let log = String::from_utf8_lossy(&log);
            return Err(log.trim_end_matches('\0').trim().to_string());
        }
        let mut size = 0;
        let portable = target.starts_with("compute");
        if portable {
            step(sys::nvrtcGetPTXSize(program.0, &mut size))?;
        } else {
            step(sys::nvrtcGetCUBINSize(program.0, &mut size))?;
        }
        let mut image = vec![0u8; size];
        let out = image.as_mut_ptr().cast();
        step(if portable {
            sys::nvrtcGetPTX(program.0, out)
        } else {
            sys::nvrtcGetCUBIN(program.0, out)
        })?;
        Ok(image)
    }
}

/// 128 bits of FNV-1a, enough to tell kernels apart (not against an adversary, who could write here anyway).
fn hash(parts: &[&str]) -> u128 {
    let mut h: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in parts.iter().flat_map(|p| p.bytes().chain([0xff])) {
        h = (h ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    h
}

/// $XDG_CACHE_HOME/weft/kernels or ~/.cache/weft/kernels.
pub fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".cache")))?;
    Some(base.join("weft/kernels"))
}

/// The code of a variant for a GPU: from disk, or compiled and put there. `fresh` passes over what is on disk.
pub(super) fn image(v: Variant, arch: u32, fresh: bool) -> Text<Vec<u8>> {
    let (major, minor) = version()?;
    let (target, source) = (target(arch)?, v.text());
    let key = hash(&[
        &source,
        &target,
        &OPTIONS.join(" "),
        &format!("{major}.{minor}"),
    ]);
    let name = v.source_name();
    let file = cache_folder().map(|f| f.join(format!("{name}-{target}-{key:032x}")));
    if !fresh
        && let Some(f) = &file
        && let Ok(image) = std::fs::read(f)
    {
        return Ok(image);
    }
    let image = compile(name, &source, &target)
        .map_err(|log| format!("kernels '{}' do not compile: {log}", v.describe()))?;
    if let Some(f) = &file {
        keep(f, &image);
    }
    Ok(image)
}

/// Write beside and rename, so that another process never reads half a file. A cache that cannot be written
/// only costs time.
fn keep(file: &std::path::Path, image: &[u8]) {
    let beside = file.with_extension(std::process::id().to_string());
    let written = file
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&beside, image))
        .and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

/// What was compiled for one architecture.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The architecture as given.
    pub arch: String,
    /// Modules that compiled.
    pub modules: usize,
    /// Bytes of their machine code.
    pub bytes: usize,
}

/// The number of an architecture that is written like `sm_80` or `sm_90a`.
fn number(arch: &str) -> Text<i32> {
    let digits = arch
        .strip_prefix("sm_")
        .map(|d| d.trim_end_matches(['a', 'f']));
    let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|d| d.parse().ok()) {
        Some(n) if (80..1000).contains(&n) => Ok(n),
        Some(_) => Err(format!(
            "{arch} is not supported: kernels need compute capability 8.0 or newer, sm_80"
        )),
        None => Err(format!(
            "{arch} is no architecture: give names like sm_80, sm_90a or sm_100"
        )),
    }
}

/// Check that all names are those of architectures that this NVRTC makes machine code for.
fn known(op: &'static str, archs: &[String]) -> Result<()> {
    let look = || {
        let numbers: Vec<i32> = archs.iter().map(|a| number(a)).collect::<Text<_>>()?;
        let list = supported()?;
        match archs.iter().zip(numbers).find(|(_, n)| !list.contains(n)) {
            None => Ok(()),
            Some((arch, _)) => {
                let (major, minor) = version()?;
                let names: Vec<String> = list.iter().map(|n| format!("sm_{n}")).collect();
                Err(format!(
                    "NVRTC {major}.{minor} does not know {arch}; it knows {}",
                    names.join(", ")
                ))
            }
        }
    };
    look().or_else(|reason: String| device_error(op, reason))
}

/// Compile every kernel of some sources for every architecture (`sm_80`, `sm_90a`, ...), whether or not there is a
/// GPU, and call `done` after each. Errors with the compiler's words at a kernel that fails, and when NVRTC is
/// missing or does not know an architecture.
pub fn check(
    sources: &[&'static Source],
    archs: &[String],
    done: &(dyn Fn() + Sync),
) -> Result<Vec<Checked>> {
    const OP: &str = "kernels check";
    known(OP, archs)?;
    let all: Vec<Variant> = sources.iter().flat_map(|s| s.all()).collect();
    let one = |arch: &String| {
        let bytes = all.par_iter().map(|v| {
            let image = compile(v.source_name(), &v.text(), arch);
            done();
            image
                .map(|i| i.len())
                .or_else(|log| device_error(OP, format!("'{}' for {arch}: {log}", v.describe())))
        });
        Ok(Checked {
            arch: arch.clone(),
            modules: all.len(),
            bytes: bytes.try_reduce(|| 0, |a, b| Ok(a + b))?,
        })
    };
    archs.iter().map(one).collect()
}

/// Put every kernel of some sources for a GPU of compute capability `arch` (major * 10 + minor) on disk, where
/// later runs find it, and call `done` after each.
pub fn build(sources: &[&'static Source], arch: u32, done: &(dyn Fn() + Sync)) -> Result<Checked> {
    const OP: &str = "kernels build";
    let name = format!("sm_{arch}");
    known(OP, std::slice::from_ref(&name))?;
    let all: Vec<Variant> = sources.iter().flat_map(|s| s.all()).collect();
    let bytes = all.par_iter().map(|&v| {
        let image = image(v, arch, false);
        done();
        image.map(|i| i.len()).or_else(|e| device_error(OP, e))
    });
    Ok(Checked {
        bytes: bytes.try_reduce(|| 0, |a, b| Ok(a + b))?,
        modules: all.len(),
        arch: name,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::table::SOURCES;
    use super::*;

    #[test]
    fn architectures_have_numbers() {
        assert_eq!(number("sm_80"), Ok(80));
        assert_eq!(number("sm_90a"), Ok(90));
        assert_eq!(number("sm_100f"), Ok(100));
        assert!(number("sm_75").unwrap_err().contains("8.0 or newer"));
        for bad in ["", "sm_", "80", "sm_9x", "compute_80", "sm_-80", "sm_+80"] {
            assert!(number(bad).unwrap_err().contains("sm_90a"), "{bad}");
        }
    }

    #[test]
    fn keys_depend_on_every_part_and_its_place() {
        let keys = [
            hash(&["a", "b"]),
            hash(&["ab", ""]),
            hash(&["b", "a"]),
            hash(&["a"]),
        ];
        for (i, k) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(k));
        }
    }

    #[test]
    fn every_kernel_compiles() {
        if let Err(reason) = version() {
            eprintln!("skipped: {reason}");
            return;
        }
        let done = AtomicUsize::new(0);
        let count = || {
            done.fetch_add(1, Ordering::Relaxed);
        };
        let found = check(SOURCES, &["sm_90".into()], &count).unwrap();
        assert!(found[0].modules > 100 && found[0].bytes > 0);
        assert_eq!(found[0].modules, done.into_inner());
        let broken = compile("broken", "extern \"C\" __global__ void f( {", "sm_90").unwrap_err();
        assert!(broken.contains("broken.cu"), "{broken}");
    }
}
