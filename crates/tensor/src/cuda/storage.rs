//! Elements in a GPU's memory.

use super::context::{Context, context, device_error};
use super::memory::Block;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result, dtype_error};
use crate::layout::Layout;
use crate::memory::Buffer;
use crate::storage::{CpuStorage, Stored, each_dtype};

/// A block of elements on a GPU. Creation of constants cannot fail in the tensor interface, so a storage may
/// hold the reason why it has no memory instead; the first operation that needs its elements gives that reason.
pub struct CudaStorage {
    /// Which GPU.
    pub ordinal: usize,
    /// The element type.
    pub dtype: DType,
    /// Number of elements.
    pub count: usize,
    block: Result<Block, String>,
}

/// A storage, and where an operand lies in it.
pub(super) type View<'a> = (&'a CudaStorage, &'a Layout);

impl CudaStorage {
    /// Room for `count` elements, not yet written.
    pub(super) fn new(
        op: &'static str,
        c: &'static Context,
        dtype: DType,
        count: usize,
    ) -> Result<CudaStorage> {
        let Some(bytes) = count.checked_mul(dtype.size()) else {
            return device_error(op, format!("{count} elements are more than any GPU has"));
        };
        Ok(CudaStorage {
            ordinal: c.ordinal,
            dtype,
            count,
            block: Ok(c.allocate(op, bytes)?),
        })
    }

    /// A storage that only holds the reason why there is none.
    pub(super) fn failed(
        ordinal: usize,
        dtype: DType,
        count: usize,
        reason: &Error,
    ) -> CudaStorage {
        CudaStorage {
            ordinal,
            dtype,
            count,
            block: Err(reason.to_string()),
        }
    }

    /// A copy of host elements.
    pub fn upload(ordinal: usize, data: &CpuStorage) -> Result<CudaStorage> {
        each_dtype!(data, b => CudaStorage::from_slice(ordinal, b))
    }

    /// A copy of host elements.
    pub fn from_slice<T: Element>(ordinal: usize, data: &[T]) -> Result<CudaStorage> {
        let c = context(ordinal)?;
        let s = CudaStorage::new("to_device", c, T::DTYPE, data.len())?;
        c.upload(
            "to_device",
            s.start("to_device")?,
            bytemuck::cast_slice(data),
        )?;
        Ok(s)
    }

    /// `count` elements from element `offset`, on the host; waits for the GPU.
    pub fn download<T: Stored>(
        &self,
        op: &'static str,
        offset: usize,
        count: usize,
    ) -> Result<Buffer<T>> {
        if self.dtype != T::DTYPE {
            return dtype_error(op, self.dtype, T::DTYPE.name());
        }
        let mut out = Buffer::<T>::unwritten(count);
        let from = self.start(op)? + (offset * self.dtype.size()) as u64;
        self.context()?
            .download(op, from, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// All elements, on the host; waits for the GPU.
    pub fn to_host(&self) -> Result<CpuStorage> {
        const OP: &str = "to_device";
        Ok(match self.dtype {
            DType::F64 => f64::wrap(self.download(OP, 0, self.count)?),
            DType::F32 => f32::wrap(self.download(OP, 0, self.count)?),
            DType::BF16 => half::bf16::wrap(self.download(OP, 0, self.count)?),
            DType::I64 => i64::wrap(self.download(OP, 0, self.count)?),
            DType::U8 => u8::wrap(self.download(OP, 0, self.count)?),
        })
    }

    pub(super) fn context(&self) -> Result<&'static Context> {
        context(self.ordinal)
    }

    /// Address of the first element.
    pub(super) fn start(&self, op: &'static str) -> Result<u64> {
        match &self.block {
            Ok(b) => Ok(b.address),
            Err(reason) => device_error(op, reason.clone()),
        }
    }

    /// Address of the first element of a view.
    pub(super) fn at(&self, op: &'static str, l: &Layout) -> Result<u64> {
        Ok(self.start(op)? + (l.offset * self.dtype.size()) as u64)
    }
}

/// The GPU that all operands live on.
pub(super) fn common(op: &'static str, operands: &[&CudaStorage]) -> Result<&'static Context> {
    let first = operands[0].ordinal;
    if let Some(other) = operands.iter().find(|s| s.ordinal != first) {
        return device_error(
            op,
            format!(
                "operands live on cuda:{first} and cuda:{}; move one with to_device",
                other.ordinal
            ),
        );
    }
    operands[0].context()
}

/// Check that an operand has a float dtype.
pub(super) fn need_float(op: &'static str, s: &CudaStorage) -> Result<()> {
    if s.dtype.is_float() {
        Ok(())
    } else {
        dtype_error(op, s.dtype, "a float dtype")
    }
}

/// Check that an operand has the dtype of another.
pub(super) fn need(op: &'static str, s: &CudaStorage, dtype: DType) -> Result<()> {
    if s.dtype == dtype {
        Ok(())
    } else {
        dtype_error(op, s.dtype, dtype.name())
    }
}

/// The type that arithmetic on a float dtype is done in.
pub(super) fn computing(dtype: DType) -> DType {
    match dtype {
        DType::BF16 => DType::F32,
        other => other,
    }
}
