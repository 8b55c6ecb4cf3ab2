//! Loaded modules and the launch of their kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Mutex;

use cudarc::driver::sys;

use super::context::{Context, check, describe, device_error};
use super::nvrtc;
use super::source::Variant;
use super::walk::Axes;
use crate::error::Result;

/// Modules by variant, kernels by variant and name.
#[derive(Default)]
pub(super) struct Modules(Mutex<Loaded>);

#[derive(Default)]
struct Loaded {
    modules: HashMap<Variant, sys::CUmodule>,
    kernels: HashMap<(Variant, &'static str), sys::CUfunction>,
}

/// A kernel's parameter, copied when it is launched.
///
/// # Safety
/// The address must be that of a value of the layout of the kernel's parameter.
pub(super) unsafe trait Argument {
    /// Where the value lies.
    fn address(&self) -> *const u64 {
        std::ptr::from_ref(self).cast()
    }
}
// SAFETY: plain numbers of the same size on both sides.
unsafe impl Argument for u32 {}
// SAFETY: as above; also carries device addresses.
unsafe impl Argument for u64 {}
// SAFETY: as above.
unsafe impl Argument for f64 {}
// SAFETY: `repr(C)` with the layout of `Walk` in the prelude.
unsafe impl<const N: usize> Argument for Axes<N> {}

/// Blocks, threads and shared memory of a launch. Kernels loop over their work: a launch has at most 2^22 blocks.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// How many blocks would take one piece of work each.
    pub blocks: u64,
    /// Threads of a block along x and y.
    pub threads: [u32; 2],
    /// Bytes of shared memory of a block beyond what the kernel declares.
    pub shared: u32,
}

/// Most blocks of a launch; kernels loop over what is left.
const MOST_BLOCKS: u64 = 1 << 22;
/// Shared memory that a kernel has without asking for more.
const SHARED: u32 = 48 << 10;

impl Grid {
    /// 256 threads per block, one thread for each of `n` pieces of work.
    pub fn threads(n: u64) -> Grid {
        Grid::blocks(n.div_ceil(256), 256)
    }
    /// A given number of blocks.
    pub fn blocks(n: u64, threads: u32) -> Grid {
        Grid {
            blocks: n,
            threads: [threads, 1],
            shared: 0,
        }
    }
    /// Blocks of 32 x 8 threads.
    pub fn tiles(n: u64) -> Grid {
        Grid {
            blocks: n,
            threads: [32, 8],
            shared: 0,
        }
    }
}

impl Context {
    fn kernel(&self, op: &'static str, v: Variant, name: &'static str) -> Result<sys::CUfunction> {
        let mut loaded = self.modules.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(&f) = loaded.kernels.get(&(v, name)) {
            return Ok(f);
        }
        let module = match loaded.modules.get(&v) {
            Some(&m) => m,
            None => {
                // A kept file that does not load (cut short, or by another driver) is made anew once.
                let m = self.load(v, false).or_else(|_| self.load(v, true));
                let m = m.or_else(|reason| device_error(op, reason))?;
                loaded.modules.insert(v, m);
                m
            }
        };
        let mut f = std::ptr::null_mut();
        let text = CString::new(name).or_else(|e| device_error(op, e.to_string()))?;
        // SAFETY: the module is loaded in this context; `text` is a C string.
        let status = unsafe { sys::cuModuleGetFunction(&mut f, module, text.as_ptr()) };
        if status != sys::CUresult::CUDA_SUCCESS {
            return device_error(op, format!("kernel {name} is not in '{}'", v.describe()));
        }
        loaded.kernels.insert((v, name), f);
        Ok(f)
    }

    fn load(&self, v: Variant, fresh: bool) -> std::result::Result<sys::CUmodule, String> {
        let image = nvrtc::image(v, self.arch, fresh)?;
        let mut m = std::ptr::null_mut();
        // SAFETY: the image is a whole cubin or a PTX text ending in 0, as NVRTC wrote it; a damaged one is
        // refused by the driver.
        match unsafe { sys::cuModuleLoadData(&mut m, image.as_ptr().cast()) } {
            sys::CUresult::CUDA_SUCCESS => Ok(m),
            failed => Err(format!(
                "kernels '{}' do not load: {}",
                v.describe(),
                describe(failed)
            )),
        }
    }

    /// Send a kernel to the stream. The arguments must be those of the kernel's signature: sources and calls
    /// are both in this folder, and the parity tests run every one of them.
    pub(super) fn launch(
        &'static self,
        op: &'static str,
        v: Variant,
        name: &'static str,
        grid: Grid,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        let pointers: Vec<*const u64> = arguments.iter().map(|a| a.address()).collect();
        self.send(op, v, name, grid, &pointers)
    }

    /// The same, with pointers to the arguments.
    pub(super) fn send(
        &'static self,
        op: &'static str,
        v: Variant,
        name: &'static str,
        grid: Grid,
        arguments: &[*const u64],
    ) -> Result<()> {
        if grid.blocks == 0 {
            return Ok(());
        }
        self.enter(op)?;
        let f = self.kernel(op, v, name)?;
        if grid.shared > SHARED {
            let what =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the kernel is loaded; the driver refuses more than the GPU has.
            check(op, unsafe {
                sys::cuFuncSetAttribute(f, what, grid.shared as i32)
            })?;
        }
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|a| a.cast_mut().cast()).collect();
        let blocks = grid.blocks.min(MOST_BLOCKS) as u32;
        let [tx, ty] = grid.threads;
        // SAFETY (below): the kernel is loaded; the pointers are to live values in the order of its parameters, which
        // the driver copies before it returns.
        self.spanned(op, name, || {
            check(op, unsafe {
                sys::cuLaunchKernel(
                    f,
                    blocks,
                    1,
                    1,
                    tx,
                    ty,
                    1,
                    grid.shared,
                    self.stream,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            })
        })
    }
}
