//! One context and stream per GPU, opened on first use and kept for the life of the process.

use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::blas::Blas;
use super::loader::{self, Lib};
use super::memory::Pool;
use super::modules::Modules;
use super::transfer::Staging;
use crate::error::{Error, Result};

/// GPUs that can be addressed.
const MOST: usize = 16;
/// The oldest CUDA whose driver is supported, by its major version.
const OLDEST_DRIVER: i32 = 12;
/// Compute capability 8.0: bf16 conversion instructions.
const OLDEST_ARCH: u32 = 80;

/// A GPU: its context, its stream and what belongs to them.
pub struct Context {
    /// Which of the machine's GPUs this is.
    pub ordinal: usize,
    /// The vendor's name for it.
    pub name: String,
    /// Compute capability as major * 10 + minor.
    pub arch: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_memory: u32,
    /// Bytes of its memory.
    pub total_memory: usize,
    pub(super) raw: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    pub(super) pool: Mutex<Pool>,
    pub(super) staging: Mutex<Option<Staging>>,
    pub(super) modules: Modules,
    pub(super) blas: OnceLock<Result<Blas, String>>,
    pub(super) fault: super::fault::Record,
    pub(super) spans: super::profile::Spans,
}

// SAFETY: contexts and streams may be used from any thread once made current there (see `enter`); everything
// else in here is behind a lock.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// One sentence for a driver status.
pub(super) fn describe(status: sys::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the driver is loaded (it gave the status); the string it points to is static.
    unsafe {
        if sys::cuGetErrorString(status, &mut text) == sys::CUresult::CUDA_SUCCESS
            && !text.is_null()
        {
            return std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned();
        }
    }
    format!("{status:?}")
}

/// An error of the device, named after the operation that ran into it.
pub(super) fn device_error<T>(op: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::Device {
        op,
        detail: detail.into(),
    })
}

/// Turn a driver status into a result.
pub(super) fn check(op: &'static str, status: sys::CUresult) -> Result<()> {
    if status == sys::CUresult::CUDA_SUCCESS {
        Ok(())
    } else {
        device_error(op, describe(status))
    }
}

/// The newest CUDA that the NVIDIA driver supports, as major and minor; one sentence if there is no driver.
pub fn driver_version() -> Result<(i32, i32), String> {
    loader::load(Lib::Driver)?;
    let mut version = 0;
    // SAFETY: the driver is loaded; the pointer is to a live local. It cannot fail for another reason.
    unsafe { sys::cuDriverGetVersion(&mut version) };
    Ok((version / 1000, version % 1000 / 10))
}

/// How many GPUs there are, or why there is none.
pub fn count() -> Result<usize, String> {
    static COUNT: OnceLock<Result<usize, String>> = OnceLock::new();
    let find = || {
        let (major, minor) = driver_version()?;
        let mut count = 0;
        // SAFETY: the driver is loaded; the pointer is to a live local.
        let status = unsafe {
            match sys::cuInit(0) {
                sys::CUresult::CUDA_SUCCESS => sys::cuDeviceGetCount(&mut count),
                failed => failed,
            }
        };
        if status != sys::CUresult::CUDA_SUCCESS {
            return Err(format!(
                "the NVIDIA driver does not start: {}",
                describe(status)
            ));
        }
        if major < OLDEST_DRIVER {
            return Err(format!(
                "the NVIDIA driver supports CUDA {major}.{minor}; 12.0 or newer is needed: update the driver"
            ));
        }
        match usize::try_from(count) {
            Ok(n) if n > 0 => Ok(n),
            _ => Err("the NVIDIA driver sees no GPU".to_string()),
        }
    };
    COUNT.get_or_init(find).clone()
}

/// The context of a GPU; one sentence if there is none.
pub fn context(ordinal: usize) -> Result<&'static Context> {
    static TABLE: [OnceLock<Result<&'static Context, String>>; MOST] =
        [const { OnceLock::new() }; MOST];
    let Some(cell) = TABLE.get(ordinal) else {
        return device_error(
            "cuda",
            format!("device {ordinal} is beyond the {MOST} that are supported"),
        );
    };
    let made = cell.get_or_init(|| open(ordinal).map(|c| &*Box::leak(Box::new(c))));
    match made {
        Ok(c) => Ok(c),
        Err(reason) => device_error("cuda", reason.clone()),
    }
}

/// Whether a GPU and everything that computing on it needs are there: the driver, NVRTC and cuBLASLt; one sentence
/// about what is missing.
pub fn ready(ordinal: usize) -> Result<()> {
    context(ordinal)?;
    for lib in [Lib::Nvrtc, Lib::CublasLt] {
        loader::load(lib).or_else(|reason| device_error("cuda", reason))?;
    }
    Ok(())
}

fn open(ordinal: usize) -> Result<Context, String> {
    let available = count()?;
    if ordinal >= available {
        return Err(format!(
            "device {ordinal} does not exist: the machine has {available}"
        ));
    }
    let step = |status: sys::CUresult| match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(format!(
            "device {ordinal} cannot be opened: {}",
            describe(failed)
        )),
    };
    let mut device = 0;
    let (mut raw, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
    let mut name = [0u8; 256];
    let mut total_memory = 0;
    // SAFETY: the driver is loaded and initialised (`count`); all pointers are to live locals of the types
    // that the functions write.
    unsafe {
        step(sys::cuDeviceGet(&mut device, ordinal as i32))?;
        step(sys::cuDeviceGetName(
            name.as_mut_ptr().cast(),
            name.len() as i32 - 1,
            device,
        ))?;
        step(sys::cuDeviceTotalMem_v2(&mut total_memory, device))?;
        step(sys::cuDevicePrimaryCtxRetain(&mut raw, device))?;
        step(sys::cuCtxSetCurrent(raw))?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        step(sys::cuStreamCreate(&mut stream, flags))?;
    }
    let attribute = |a: Attribute| {
        let mut value = 0;
        // SAFETY: as above.
        step(unsafe { sys::cuDeviceGetAttribute(&mut value, a, device) })?;
        u32::try_from(value).map_err(|_| format!("device {ordinal} gives a negative {a:?}"))
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    if major * 10 + minor < OLDEST_ARCH {
        return Err(format!(
            "{name} has compute capability {major}.{minor}; 8.0 or newer is needed"
        ));
    }
    loader::load(Lib::Nvrtc)?;
    Ok(Context {
        ordinal,
        name,
        arch: major * 10 + minor,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_memory,
        raw,
        stream,
        pool: Mutex::default(),
        staging: Mutex::default(),
        modules: Modules::default(),
        blas: OnceLock::new(),
        fault: super::fault::Record::new().map_err(|e| e.to_string())?,
        spans: super::profile::Spans::default(),
    })
}

impl Context {
    /// Make this GPU the current one of the calling thread, as every driver call needs it.
    pub(super) fn enter(&self, op: &'static str) -> Result<()> {
        thread_local!(static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) });
        if CURRENT.get() == self.ordinal {
            return Ok(());
        }
        // SAFETY: `raw` is a retained primary context.
        check(op, unsafe { sys::cuCtxSetCurrent(self.raw) })?;
        CURRENT.set(self.ordinal);
        Ok(())
    }

    /// Wait until everything that was sent to this GPU is done; an index error that a kernel met comes out here.
    pub fn synchronize(&self, op: &'static str) -> Result<()> {
        self.not_recording(op)?;
        self.enter(op)?;
        // SAFETY: the stream lives as long as the process.
        check(op, unsafe { sys::cuStreamSynchronize(self.stream) })?;
        self.fault.take()
    }
}
