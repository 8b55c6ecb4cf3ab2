//! Sending a kernel off from another crate, with operands that are checked first:
//!
//! ```text
//! let mut launch = Launch::new("delta_rule_step", variant, x.device())?;
//! launch.input(&x, DType::F32)?;              // contiguous, of that dtype, on that GPU
//! launch.in_place(&mut state, DType::F32)?;   // the same, and nobody else's
//! let y = launch.output(&[b, h, v], DType::F32)?;
//! launch.u64(n);
//! unsafe { launch.run("step", Grid::blocks(b, 256)) }?;
//! ```
//!
//! Arguments come in the order of the kernel's parameters. Every error names the operation.

use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::sys;

use super::context::{Context, check, context, device_error};
use super::modules::Grid;
use super::source::Variant;
use super::storage::CudaStorage;
use crate::dtype::DType;
use crate::error::{Result, dtype_error, shape_error};
use crate::storage::{Device, Storage};
use crate::tensor::Tensor;

/// The address of a tensor's first element. Errors if it is not on a GPU.
pub fn address(x: &Tensor) -> Result<u64> {
    match x.operand() {
        (Storage::Cuda(s), layout) => s.at("address", layout),
        (other, _) => device_error("address", format!("a tensor lives on {}", other.device())),
    }
}

/// Most bytes of all parameters of a kernel.
const MOST_BYTES: usize = 4096;

/// A kernel and the arguments gathered for it so far; tensors are borrowed until it is sent.
pub struct Launch<'a> {
    op: &'static str,
    variant: Variant,
    context: &'static Context,
    /// The arguments one after another, each from a new word on.
    words: Vec<u64>,
    /// Where each argument begins.
    starts: Vec<usize>,
    /// Outputs, kept alive until the kernel is on its way.
    outputs: Vec<Tensor>,
    borrowed: PhantomData<&'a Tensor>,
}

impl<'a> Launch<'a> {
    /// A kernel of the operation `op` on a GPU. Errors on any other device.
    pub fn new(op: &'static str, variant: Variant, device: Device) -> Result<Launch<'a>> {
        let Device::Cuda(ordinal) = device else {
            return device_error(op, format!("its kernel runs on a GPU, not on {device}"));
        };
        Ok(Launch {
            op,
            variant,
            context: context(ordinal)?,
            words: vec![],
            starts: vec![],
            outputs: vec![],
            borrowed: PhantomData,
        })
    }

    fn push(&mut self, words: &[u64]) {
        self.starts.push(self.words.len());
        self.words.extend_from_slice(words);
    }

    /// A tensor that the kernel reads.
    pub fn input(&mut self, x: &'a Tensor, dtype: DType) -> Result<()> {
        let address = self.address(x, dtype)?;
        self.push(&[address]);
        Ok(())
    }

    /// A tensor that the kernel reads and changes: copied first if anybody else holds its elements.
    pub fn in_place(&mut self, x: &'a mut Tensor, dtype: DType) -> Result<()> {
        let address = self.address_to_change(x, dtype)?;
        self.push(&[address]);
        Ok(())
    }

    /// A new tensor that the kernel fills. Its elements are undefined until then (NaN under
    /// [`poison`](crate::memory::poison)).
    pub fn output(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let s = CudaStorage::new(self.op, self.context, dtype, shape.iter().product())?;
        let address = s.start(self.op)?;
        let y = Tensor::new(Storage::Cuda(s), shape);
        self.push(&[address]);
        self.outputs.push(y.clone());
        Ok(y)
    }

    /// A number.
    pub fn u32(&mut self, n: u32) {
        self.push(&[u64::from(n)]);
    }
    /// A number.
    pub fn u64(&mut self, n: u64) {
        self.push(&[n]);
    }
    /// A number.
    pub fn f32(&mut self, x: f32) {
        self.push(&[u64::from(x.to_bits())]);
    }
    /// A number.
    pub fn f64(&mut self, x: f64) {
        self.push(&[x.to_bits()]);
    }
    /// A struct of 64-bit words, by value: sizes, or addresses of many tensors.
    pub fn words(&mut self, words: &[u64]) {
        self.push(words);
    }

    /// How the copy engine of compute capability 9.0 and newer finds `rows` rows of one head, 64 elements wide, in a
    /// tensor [B, N, H, D] of bf16: a struct of 128 bytes, by value. They come to lie in shared memory row by row, with
    /// the 16-byte pieces of row r at piece ^ (r % 8). Of the N rows, those from `end` on are not read and come as zeros.
    pub fn tiles(&mut self, x: &'a Tensor, end: usize, rows: u32) -> Result<()> {
        let address = self.address(x, DType::BF16)?;
        let [b, n, h, d] = x.dims()?.map(|n| n as u64);
        let row = h * d * size_of::<u16>() as u64;
        let sizes = [d, h, end as u64, b];
        let strides = [d * size_of::<u16>() as u64, row, n * row];
        let (mut map, ones) = (sys::CUtensorMap { opaque: [0; 16] }, [1; 4]);
        // SAFETY: the driver is loaded (the context was opened); arrays of as many entries as there are axes.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                4,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                [64, 1, rows, 1].as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(self.op, status)?;
        self.push(&map.opaque);
        Ok(())
    }

    /// The address of a tensor that the kernel reads, for [`Launch::words`].
    pub fn address(&self, x: &'a Tensor, dtype: DType) -> Result<u64> {
        self.address_of(x, dtype)
    }

    /// The address of a tensor that the kernel reads and changes, for [`Launch::words`].
    pub fn address_to_change(&self, x: &'a mut Tensor, dtype: DType) -> Result<u64> {
        x.own(self.op)?;
        self.address_of(x, dtype)
    }

    fn address_of(&self, x: &Tensor, dtype: DType) -> Result<u64> {
        let (storage, layout) = x.operand();
        let storage = match storage {
            Storage::Cuda(s) if s.ordinal == self.context.ordinal => s,
            other => {
                return device_error(
                    self.op,
                    format!(
                        "an operand lives on {}, its kernel runs on cuda:{}; move it with to_device",
                        other.device(),
                        self.context.ordinal
                    ),
                );
            }
        };
        if storage.dtype != dtype {
            return dtype_error(self.op, storage.dtype, dtype.name());
        }
        if !layout.is_contiguous() {
            let shape = &layout.shape;
            return shape_error(
                self.op,
                format!(
                    "an operand of shape {shape:?} is not contiguous: call contiguous() before"
                ),
            );
        }
        storage.at(self.op, layout)
    }

    /// Send the kernel to the GPU; it runs after everything sent before.
    ///
    /// # Safety
    /// The arguments must be those of the kernel's parameters, in number, order and type, and the kernel must stay
    /// inside the tensors it was given, for every block and thread of the grid.
    pub unsafe fn run(self, kernel: &'static str, grid: Grid) -> Result<()> {
        let bytes = self.words.len() * size_of::<u64>();
        if bytes > MOST_BYTES {
            return device_error(
                self.op,
                format!("{bytes} bytes of arguments; a kernel takes {MOST_BYTES}"),
            );
        }
        let pointers: Vec<_> = self
            .starts
            .iter()
            .map(|&i| &raw const self.words[i])
            .collect();
        self.context
            .send(self.op, self.variant, kernel, grid, &pointers)
    }
}
