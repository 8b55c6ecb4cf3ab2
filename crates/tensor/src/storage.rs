//! Where a tensor's elements live, and the one place where a primitive is sent to its device.
//! Every method of [`Storage`] is a primitive; a new device is a new variant here and a new arm in each.

use half::bf16;

use crate::cpu::{self, BinaryOp, CompareOp, ReduceOp, ScanOp, UnaryOp};
use crate::cuda::{self, CudaStorage};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result, dtype_error};
use crate::layout::Layout;
use crate::memory::Buffer;

/// Where tensors live and operations run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The host's memory and cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl Device {
    /// The GPU of that number, opened; one sentence if it or a library that it needs is missing.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        cuda::ready(ordinal)?;
        Ok(Device::Cuda(ordinal))
    }

    /// The first GPU if there is one, else the CPU.
    pub fn best() -> Device {
        Device::cuda(0).unwrap_or(Device::Cpu)
    }

    /// Wait for everything that was sent to the device. Errors that a GPU met on the way come out here.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(i) => cuda::context(*i)?.synchronize("synchronize"),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

/// Elements in host memory, by dtype.
pub enum CpuStorage {
    /// f64 elements.
    F64(Buffer<f64>),
    /// f32 elements.
    F32(Buffer<f32>),
    /// bf16 elements.
    BF16(Buffer<bf16>),
    /// i64 elements.
    I64(Buffer<i64>),
    /// u8 elements.
    U8(Buffer<u8>),
}

/// Run a block with `$x` bound to the typed buffer of a [`CpuStorage`].
macro_rules! each_dtype {
    ($storage:expr, $x:ident => $body:expr) => {
        match $storage {
            $crate::storage::CpuStorage::F64($x) => $body,
            $crate::storage::CpuStorage::F32($x) => $body,
            $crate::storage::CpuStorage::BF16($x) => $body,
            $crate::storage::CpuStorage::I64($x) => $body,
            $crate::storage::CpuStorage::U8($x) => $body,
        }
    };
}
pub(crate) use each_dtype;

/// The link between a compile-time element type and its variant of [`CpuStorage`].
pub trait Stored: Element {
    /// Put a buffer into its variant.
    fn wrap(buffer: Buffer<Self>) -> CpuStorage;
    /// The elements, if the storage has this type.
    fn read(storage: &CpuStorage) -> Option<&[Self]>;
    /// The elements to write, if the storage has this type.
    fn write(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! stored {
    ($($t:ty => $v:ident),*) => {$(
        impl Stored for $t {
            fn wrap(buffer: Buffer<$t>) -> CpuStorage {
                CpuStorage::$v(buffer)
            }
            fn read(storage: &CpuStorage) -> Option<&[$t]> {
                match storage { CpuStorage::$v(b) => Some(b), _ => None }
            }
            fn write(storage: &mut CpuStorage) -> Option<&mut [$t]> {
                match storage { CpuStorage::$v(b) => Some(b), _ => None }
            }
        }
    )*};
}
stored!(f64 => F64, f32 => F32, bf16 => BF16, i64 => I64, u8 => U8);

impl CpuStorage {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            CpuStorage::F64(_) => DType::F64,
            CpuStorage::F32(_) => DType::F32,
            CpuStorage::BF16(_) => DType::BF16,
            CpuStorage::I64(_) => DType::I64,
            CpuStorage::U8(_) => DType::U8,
        }
    }

    /// The elements as `T`; the operation `op` is named if the dtype is another one.
    pub fn slice<T: Stored>(&self, op: &'static str) -> Result<&[T]> {
        T::read(self).map_or_else(|| dtype_error(op, self.dtype(), T::DTYPE.name()), Ok)
    }
}

/// A block of elements on some device.
#[non_exhaustive]
pub enum Storage {
    /// In host memory.
    Cpu(CpuStorage),
    /// In a GPU's memory.
    Cuda(CudaStorage),
}

/// A storage together with the layout that an operand has in it.
pub type Operand<'a> = (&'a Storage, &'a Layout);

/// Operands on different devices.
pub(crate) fn devices_differ<T>(op: &'static str, operands: &[&Storage]) -> Result<T> {
    let names: Vec<String> = operands.iter().map(|s| s.device().to_string()).collect();
    Err(Error::Device {
        op,
        detail: format!(
            "operands live on {}; move them to one device with to_device",
            names.join(" and ")
        ),
    })
}

/// Send a primitive to the device of its operands: `dispatch!(op, (x, y) => cpu result, cuda result)`, where
/// both sides see the operands' storages under the names they came with.
macro_rules! dispatch {
    ($op:expr, ($($x:ident),+) => $cpu:expr, $cuda:expr) => {
        match ($($x),+) {
            #[allow(unused_parens)]
            ($(Storage::Cpu($x)),+) => $cpu,
            #[allow(unused_parens)]
            ($(Storage::Cuda($x)),+) => $cuda,
            #[allow(unreachable_patterns)]
            _ => $crate::storage::devices_differ($op, &[$($x),+]),
        }
    };
}
pub(crate) use dispatch;

impl Storage {
    /// The device it lives on.
    pub fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(s) => Device::Cuda(s.ordinal),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Storage::Cpu(s) => s.dtype(),
            Storage::Cuda(s) => s.dtype,
        }
    }

    /// The host side of it, for kernels of other crates.
    pub fn cpu(&self) -> Option<&CpuStorage> {
        match self {
            Storage::Cpu(s) => Some(s),
            Storage::Cuda(_) => None,
        }
    }

    /// The host side of it, to be written.
    pub fn cpu_mut(&mut self) -> Option<&mut CpuStorage> {
        match self {
            Storage::Cpu(s) => Some(s),
            Storage::Cuda(_) => None,
        }
    }

    /// `count` copies of a value. Where a GPU has no memory for them, the first use of the result says so.
    pub fn full(device: Device, dtype: DType, count: usize, value: f64) -> Storage {
        match device {
            Device::Cpu => Storage::Cpu(cpu::copy::full(dtype, count, value)),
            Device::Cuda(i) => Storage::Cuda(cuda::elementwise::full(i, dtype, count, value)),
        }
    }

    /// A row-major copy.
    pub fn copy((x, lx): Operand) -> Result<Storage> {
        Ok(match x {
            Storage::Cpu(x) => Storage::Cpu(cpu::copy::contiguous(x, lx)),
            Storage::Cuda(x) => Storage::Cuda(cuda::elementwise::contiguous((x, lx))?),
        })
    }

    /// A row-major copy on a device.
    pub fn copy_to((x, lx): Operand, device: Device) -> Result<Storage> {
        match (x, device) {
            (Storage::Cpu(x), Device::Cuda(i)) => {
                let packed = cpu::copy::contiguous(x, lx);
                Ok(Storage::Cuda(CudaStorage::upload(i, &packed)?))
            }
            (Storage::Cuda(x), Device::Cpu) => {
                let packed = cuda::elementwise::contiguous((x, lx))?;
                Ok(Storage::Cpu(packed.to_host()?))
            }
            (Storage::Cuda(s), Device::Cuda(i)) if s.ordinal != i => {
                let host = Storage::copy_to((x, lx), Device::Cpu)?;
                Storage::copy_to((&host, &Layout::contiguous(&lx.shape)), device)
            }
            _ => Storage::copy((x, lx)),
        }
    }

    /// A row-major copy in another element type.
    pub fn cast((x, lx): Operand, dtype: DType) -> Result<Storage> {
        Ok(match x {
            Storage::Cpu(x) => Storage::Cpu(cpu::copy::cast(x, lx, dtype)),
            Storage::Cuda(x) => Storage::Cuda(cuda::elementwise::cast((x, lx), dtype)?),
        })
    }

    /// Copy operands one after another along an axis.
    pub fn cat(parts: &[Operand], axis: usize) -> Result<Storage> {
        let cpu: Option<Vec<_>> = parts.iter().map(|(s, l)| Some((s.cpu()?, *l))).collect();
        if let Some(parts) = cpu {
            return Ok(Storage::Cpu(cpu::copy::cat(&parts, axis)?));
        }
        let cuda = parts.iter().map(|(s, l)| match s {
            Storage::Cuda(s) => Some((s, *l)),
            Storage::Cpu(_) => None,
        });
        match cuda.collect::<Option<Vec<_>>>() {
            Some(parts) => Ok(Storage::Cuda(cuda::elementwise::cat(&parts, axis)?)),
            None => devices_differ("cat", &parts.iter().map(|p| p.0).collect::<Vec<_>>()),
        }
    }

    /// Elementwise function of one operand (floats; neg, abs, sign and square also of i64).
    pub fn unary(op: UnaryOp, (x, lx): Operand) -> Result<Storage> {
        dispatch!("elementwise function", (x) =>
            Ok(Storage::Cpu(cpu::elementwise::unary(op, x, lx)?)),
            Ok(Storage::Cuda(cuda::elementwise::unary(op, (x, lx))?)))
    }

    /// Elementwise `x * scale + shift`.
    pub fn affine((x, lx): Operand, scale: f64, shift: f64) -> Result<Storage> {
        dispatch!("affine", (x) =>
            Ok(Storage::Cpu(cpu::elementwise::affine(x, lx, scale, shift)?)),
            Ok(Storage::Cuda(cuda::elementwise::affine((x, lx), scale, shift)?)))
    }

    /// Elementwise function of two operands of one shape and dtype.
    pub fn binary(op: BinaryOp, (a, la): Operand, (b, lb): Operand) -> Result<Storage> {
        dispatch!("arithmetic", (a, b) =>
            Ok(Storage::Cpu(cpu::elementwise::binary(op, a, la, b, lb)?)),
            Ok(Storage::Cuda(cuda::elementwise::binary(op, (a, la), (b, lb))?)))
    }

    /// Take over the elements of `b`, as many and of one dtype, in place on a GPU.
    pub fn assign(&mut self, b: &Storage, lb: &Layout) -> Result<()> {
        match (&mut *self, b) {
            (Storage::Cuda(a), Storage::Cuda(b)) => cuda::elementwise::assign(a, (b, lb)),
            (Storage::Cpu(_), Storage::Cpu(_)) => {
                *self = Storage::copy((b, lb))?;
                Ok(())
            }
            (a, b) => devices_differ("assign", &[a, b]),
        }
    }

    /// `a += b` in place, both contiguous and of one dtype.
    pub fn add_assign(&mut self, b: &Storage, lb: &Layout) -> Result<()> {
        match (self, b) {
            (Storage::Cpu(a), Storage::Cpu(b)) => cpu::elementwise::add_assign(a, b, lb),
            (Storage::Cuda(a), Storage::Cuda(b)) => cuda::elementwise::add_assign(a, (b, lb)),
            (a, b) => devices_differ("add", &[a, b]),
        }
    }

    /// Elementwise comparison; the result is a mask of u8.
    pub fn compare(op: CompareOp, (a, la): Operand, (b, lb): Operand) -> Result<Storage> {
        dispatch!("comparison", (a, b) =>
            Ok(Storage::Cpu(cpu::elementwise::compare(op, a, la, b, lb)?)),
            Ok(Storage::Cuda(cuda::elementwise::compare(op, (a, la), (b, lb))?)))
    }

    /// `mask != 0 ? a : b`, elementwise.
    pub fn select((m, lm): Operand, (a, la): Operand, (b, lb): Operand) -> Result<Storage> {
        dispatch!("where_cond", (m, a, b) =>
            Ok(Storage::Cpu(cpu::elementwise::select(m, lm, a, la, b, lb)?)),
            Ok(Storage::Cuda(cuda::elementwise::select((m, lm), (a, la), (b, lb))?)))
    }

    /// Reduce the middle axis of a contiguous `[outer, n, inner]`.
    pub fn reduce(op: ReduceOp, (x, lx): Operand, dims: [usize; 3]) -> Result<Storage> {
        dispatch!("reduction", (x) =>
            Ok(Storage::Cpu(cpu::reduce::reduce(op, x, lx.offset, dims)?)),
            Ok(Storage::Cuda(cuda::reduce::reduce(op, (x, lx), dims)?)))
    }

    /// Softmax over the rows of a contiguous `[rows, n]`.
    pub fn softmax((x, lx): Operand, rows: usize, n: usize, log: bool) -> Result<Storage> {
        dispatch!("softmax", (x) =>
            Ok(Storage::Cpu(cpu::softmax::softmax(x, lx.offset, rows, n, log)?)),
            Ok(Storage::Cuda(cuda::reduce::softmax((x, lx), rows, n, log)?)))
    }

    /// log(sum(exp)) over the rows of a contiguous `[rows, n]`.
    pub fn logsumexp((x, lx): Operand, rows: usize, n: usize) -> Result<Storage> {
        dispatch!("logsumexp", (x) =>
            Ok(Storage::Cpu(cpu::softmax::logsumexp(x, lx.offset, rows, n)?)),
            Ok(Storage::Cuda(cuda::reduce::logsumexp((x, lx), rows, n)?)))
    }

    /// Running sum or maximum along the middle axis of a contiguous `[outer, n, inner]`; the maximum also
    /// gives where it stood (i64).
    pub fn scan(
        op: ScanOp,
        (x, lx): Operand,
        dims: [usize; 3],
    ) -> Result<(Storage, Option<Storage>)> {
        match x {
            Storage::Cpu(x) => {
                let (y, at) = cpu::scan::scan(op, x, lx.offset, dims)?;
                Ok((Storage::Cpu(y), at.map(Storage::Cpu)))
            }
            Storage::Cuda(x) => {
                let (y, at) = cuda::reduce::scan(op, (x, lx), dims)?;
                Ok((Storage::Cuda(y), at.map(Storage::Cuda)))
            }
        }
    }

    /// Batched `[batch, m, k] x [batch, k, n]`, row-major result; batch axes are those before the last two.
    pub fn matmul((a, la): Operand, (b, lb): Operand) -> Result<Storage> {
        dispatch!("matmul", (a, b) =>
            Ok(Storage::Cpu(cpu::matmul::matmul(a, la, b, lb)?)),
            Ok(Storage::Cuda(cuda::linalg::matmul((a, la), (b, lb), a.dtype)?)))
    }

    /// The same for bf16 operands, with the result in f32: no rounding on the way.
    pub fn matmul_wide((a, la): Operand, (b, lb): Operand) -> Result<Storage> {
        dispatch!("matmul", (a, b) => {
            let (a, b) = (cpu::copy::cast(a, la, DType::F32), cpu::copy::cast(b, lb, DType::F32));
            let (la, lb) = (Layout::contiguous(&la.shape), Layout::contiguous(&lb.shape));
            Ok(Storage::Cpu(cpu::matmul::matmul(&a, &la, &b, &lb)?))
        },
            Ok(Storage::Cuda(cuda::linalg::matmul((a, la), (b, lb), DType::F32)?)))
    }

    /// x [rows, k] in f32 times the transpose of w [n, k] in f32 or bf16, both contiguous and on the CPU.
    pub fn linear_few_rows(
        (x, lx): Operand,
        (w, lw): Operand,
        [rows, k, n]: [usize; 3],
    ) -> Result<Storage> {
        const OP: &str = "linear";
        let (Storage::Cpu(x), Storage::Cpu(w)) = (x, w) else {
            return devices_differ(OP, &[x, w]);
        };
        let x = &x.slice::<f32>(OP)?[lx.offset..][..rows * k];
        let dims = [rows, k, n];
        let y = match w {
            CpuStorage::BF16(w) => cpu::linear::few_rows(x, &w[lw.offset..][..n * k], dims),
            _ => cpu::linear::few_rows(x, &w.slice::<f32>(OP)?[lw.offset..][..n * k], dims),
        };
        Ok(Storage::Cpu(CpuStorage::F32(y)))
    }

    /// Elements of `x` along `axis` at `index` (1-d, contiguous).
    pub fn index_select((x, lx): Operand, axis: usize, (i, li): Operand) -> Result<Storage> {
        dispatch!("index_select", (x, i) =>
            Ok(Storage::Cpu(cpu::index::index_select(x, lx, axis, i, li)?)),
            Ok(Storage::Cuda(cuda::index::index_select((x, lx), axis, (i, li))?)))
    }

    /// `x[.., index[..], ..]` along `axis`; the result has the index's shape.
    pub fn gather((x, lx): Operand, axis: usize, (i, li): Operand) -> Result<Storage> {
        dispatch!("gather", (x, i) =>
            Ok(Storage::Cpu(cpu::index::gather(x, lx, axis, i, li)?)),
            Ok(Storage::Cuda(cuda::index::gather((x, lx), axis, (i, li))?)))
    }

    /// Add `src` into this contiguous storage of `shape` at `index` along `axis`, in the order of the elements.
    pub fn scatter_add(
        &mut self,
        shape: &[usize],
        axis: usize,
        (i, li): Operand,
        (src, ls): Operand,
    ) -> Result<()> {
        match (self, i, src) {
            (Storage::Cpu(x), Storage::Cpu(i), Storage::Cpu(s)) => {
                cpu::index::scatter_add(x, shape, axis, i, li, s, ls)
            }
            (Storage::Cuda(x), Storage::Cuda(i), Storage::Cuda(s)) => {
                cuda::index::scatter_add(x, shape, axis, (i, li), (s, ls))
            }
            (x, i, s) => devices_differ("scatter_add", &[x, i, s]),
        }
    }

    /// Stable order of the rows of a contiguous `[rows, n]`, as i64 indices; NaN comes last.
    pub fn argsort((x, lx): Operand, rows: usize, n: usize, descending: bool) -> Result<Storage> {
        dispatch!("argsort", (x) =>
            Ok(Storage::Cpu(cpu::sort::argsort(x, lx.offset, rows, n, descending)?)),
            Ok(Storage::Cuda(cuda::index::argsort((x, lx), rows, n, descending)?)))
    }

    /// Solve `L y = b` with a triangular L, both contiguous: `[batch, n, n]`, `[batch, n, m]`.
    pub fn tri_solve(
        (l, ll): Operand,
        (b, lb): Operand,
        dims: [usize; 3],
        upper: bool,
        unit: bool,
    ) -> Result<Storage> {
        dispatch!("tri_solve", (l, b) =>
            Ok(Storage::Cpu(cpu::linalg::tri_solve(l, ll.offset, b, lb.offset, dims, upper, unit)?)),
            Ok(Storage::Cuda(cuda::linalg::tri_solve((l, ll), (b, lb), dims, upper, unit)?)))
    }
}
