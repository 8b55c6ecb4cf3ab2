//! The tensor: an immutable value over shared storage. Views (transpose, narrow, broadcast ...) share it;
//! an operation makes a new one. Cloning copies a pointer.

use std::sync::Arc;

use crate::autograd::Edge;
use crate::cuda::CudaStorage;
use crate::dtype::DType;
use crate::error::{Error, Result, dtype_error, shape_error};
use crate::layout::{self, Layout};
use crate::memory::Buffer;
use crate::storage::{Device, Operand, Storage, Stored};

/// An n-dimensional array, possibly part of a gradient graph.
///
/// ```
/// use weft_tensor::{Device, Tensor};
/// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], &[2, 2], &Device::Cpu)?;
/// let y = x.matmul(&x.transpose(0, 1)?)?;
/// assert_eq!(y.to_vec::<f32>()?, [5.0, 11.0, 11.0, 25.0]);
/// # Ok::<(), weft_tensor::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor(Arc<Inner>);

struct Inner {
    storage: Arc<Storage>,
    layout: Layout,
    edge: Option<Edge>,
}

impl Tensor {
    /// Row-major over a whole storage.
    pub(crate) fn new(storage: Storage, shape: &[usize]) -> Tensor {
        Tensor::from_parts(Arc::new(storage), Layout::contiguous(shape), None)
    }

    pub(crate) fn from_parts(storage: Arc<Storage>, layout: Layout, edge: Option<Edge>) -> Tensor {
        Tensor(Arc::new(Inner {
            storage,
            layout,
            edge,
        }))
    }

    /// The same elements through another layout, without gradient history.
    pub(crate) fn view(&self, layout: Layout) -> Tensor {
        Tensor::from_parts(self.0.storage.clone(), layout, None)
    }

    pub(crate) fn with_edge(&self, edge: Option<Edge>) -> Tensor {
        Tensor::from_parts(self.0.storage.clone(), self.0.layout.clone(), edge)
    }

    pub(crate) fn edge(&self) -> Option<&Edge> {
        self.0.edge.as_ref()
    }

    pub(crate) fn operand(&self) -> Operand<'_> {
        (&self.0.storage, &self.0.layout)
    }

    /// Shape, strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// A tensor of the given elements, row-major. Errors if their number does not fit the shape.
    pub fn from_vec<T: Stored>(data: Vec<T>, shape: &[usize], device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&data, shape, device)
    }

    /// A tensor with a copy of the given elements, row-major.
    pub fn from_slice<T: Stored>(data: &[T], shape: &[usize], device: &Device) -> Result<Tensor> {
        match device {
            Device::Cpu => Tensor::from_buffer(Buffer::from_slice(data), shape),
            Device::Cuda(ordinal) => {
                check_count("from_slice", data.len(), shape)?;
                let s = CudaStorage::from_slice(*ordinal, data)?;
                Ok(Tensor::new(Storage::Cuda(s), shape))
            }
        }
    }

    /// A CPU tensor that takes over a buffer that a kernel has written.
    pub fn from_buffer<T: Stored>(data: Buffer<T>, shape: &[usize]) -> Result<Tensor> {
        check_count("from_buffer", data.len(), shape)?;
        Ok(Tensor::new(Storage::Cpu(T::wrap(data)), shape))
    }

    /// A tensor without axes.
    pub fn scalar<T: Stored>(value: T, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&[value], &[], device)
    }

    /// Every element `value`, rounded to `dtype`.
    pub fn full(shape: &[usize], value: f64, dtype: DType, device: &Device) -> Tensor {
        Tensor::new(
            Storage::full(*device, dtype, shape.iter().product(), value),
            shape,
        )
    }

    /// Every element 0.
    pub fn zeros(shape: &[usize], dtype: DType, device: &Device) -> Tensor {
        Tensor::full(shape, 0.0, dtype, device)
    }

    /// Every element 1.
    pub fn ones(shape: &[usize], dtype: DType, device: &Device) -> Tensor {
        Tensor::full(shape, 1.0, dtype, device)
    }

    /// Zeros of this tensor's shape, dtype and device.
    pub fn zeros_like(&self) -> Tensor {
        Tensor::zeros(self.shape(), self.dtype(), &self.device())
    }

    /// Ones of this tensor's shape, dtype and device.
    pub fn ones_like(&self) -> Tensor {
        Tensor::ones(self.shape(), self.dtype(), &self.device())
    }

    /// `start, start + 1, ..., end - 1` as i64 or, converted, as `dtype`.
    pub fn arange(start: i64, end: i64, dtype: DType, device: &Device) -> Result<Tensor> {
        if let (Device::Cuda(_), true) = (device, end > start) {
            // Counted there: an upload would wait for the GPU to catch up.
            let ones = Tensor::ones(&[(end - start) as usize], DType::I64, device);
            let count = ones.cumsum(0)?.add_scalar((start - 1) as f64)?;
            return count.to_dtype(dtype);
        }
        let data: Vec<i64> = (start..end).collect();
        let n = data.len();
        Tensor::from_vec(data, &[n], device)?.to_dtype(dtype)
    }

    /// The identity matrix of n x n.
    pub fn eye(n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let i = Tensor::arange(0, n as i64, DType::I64, device)?;
        i.unsqueeze(0)?.eq(&i.unsqueeze(1)?)?.to_dtype(dtype)
    }

    /// Size of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.0.layout.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// Size of an axis; negative counts from the end.
    pub fn dim(&self, axis: isize) -> Result<usize> {
        Ok(self.shape()[layout::axis("dim", axis, self.rank())?])
    }

    /// The shape as N sizes, for tensors that must have N axes: `let [b, t, d] = x.dims()?;`
    pub fn dims<const N: usize>(&self) -> Result<[usize; N]> {
        <[usize; N]>::try_from(self.shape()).or_else(|_| {
            shape_error(
                "dims",
                format!("expected {N} axes, got shape {:?}", self.shape()),
            )
        })
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.0.layout.count()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.storage.dtype()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.0.storage.device()
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.count() * self.dtype().size()
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.0.layout.is_contiguous()
    }

    /// The elements of a contiguous CPU tensor, for kernels. Errors for another dtype or layout.
    pub fn slice<T: Stored>(&self) -> Result<&[T]> {
        let Some(storage) = self.0.storage.cpu() else {
            return not_on_host("slice", self);
        };
        if !self.is_contiguous() {
            return shape_error(
                "slice",
                format!("a tensor of shape {:?} is not contiguous", self.shape()),
            );
        }
        let start = self.0.layout.offset;
        Ok(&storage.slice::<T>("slice")?[start..start + self.count()])
    }

    /// Write the elements of a CPU tensor in place: the value is copied first if anybody else holds it
    /// (another tensor, a view, a graph), so nobody sees the change.
    ///
    /// Errors for another dtype and inside a gradient graph, where a value must not change.
    pub fn write<T: Stored, R>(&mut self, f: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        if self.dtype() != T::DTYPE {
            return dtype_error("write", self.dtype(), T::DTYPE.name());
        }
        if self.device() != Device::Cpu {
            return not_on_host("write", self);
        }
        self.own("write")?;
        let (start, count) = (self.0.layout.offset, self.count());
        let slice = Arc::get_mut(&mut self.0)
            .and_then(|i| Arc::get_mut(&mut i.storage))
            .and_then(|s| s.cpu_mut())
            .and_then(T::write);
        match slice {
            Some(s) => Ok(f(&mut s[start..start + count])),
            None => not_on_host("write", self),
        }
    }

    /// Take over the elements of another tensor of this shape and dtype. On a GPU they are written where this one's
    /// were, if nobody else holds those.
    ///
    /// # Errors
    /// For another shape, dtype or device, and inside a gradient graph.
    pub fn assign(&mut self, from: &Tensor) -> Result<()> {
        same_dtype("assign", self, from)?;
        if self.shape() != from.shape() {
            let (to, from) = (self.shape(), from.shape());
            return shape_error("assign", format!("{from:?} into {to:?}"));
        }
        self.own("assign")?;
        let storage = Arc::get_mut(&mut self.0).and_then(|i| Arc::get_mut(&mut i.storage));
        match storage {
            Some(storage) => storage.assign(&from.0.storage, &from.0.layout),
            None => Err(Error::Custom("assign: the elements are shared".into())),
        }
    }

    /// Make this the only holder of its elements, row-major, so that they may be changed in place.
    pub(crate) fn own(&mut self, op: &'static str) -> Result<()> {
        if self.0.edge.is_some() {
            return Err(Error::Gradient(format!(
                "{op}: a tensor with gradient history cannot be changed in place"
            )));
        }
        let whole = self.is_contiguous();
        let unshared =
            Arc::get_mut(&mut self.0).is_some_and(|i| Arc::get_mut(&mut i.storage).is_some());
        if !(whole && unshared) {
            *self = Tensor::new(Storage::copy(self.operand())?, self.shape());
        }
        Ok(())
    }

    /// The value without its history, keeping sole ownership of the storage where this was the only holder.
    pub fn into_detached(self) -> Tensor {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Tensor::from_parts(inner.storage, inner.layout, None),
            Err(shared) => Tensor::from_parts(shared.storage.clone(), shared.layout.clone(), None),
        }
    }

    /// `self += other` in place when nobody else holds the value, otherwise a new sum.
    pub(crate) fn accumulate(mut self, other: &Tensor) -> Result<Tensor> {
        let in_place = self.is_contiguous()
            && self.0.layout.offset == 0
            && self.0.edge.is_none()
            && other.0.edge.is_none()
            && self.shape() == other.shape()
            && self.dtype() == other.dtype();
        if in_place
            && let Some(inner) = Arc::get_mut(&mut self.0)
            && let Some(storage) = Arc::get_mut(&mut inner.storage)
        {
            storage.add_assign(&other.0.storage, &other.0.layout)?;
            return Ok(self);
        }
        self.add(other)
    }

    /// The elements in row-major order.
    pub fn to_vec<T: Stored>(&self) -> Result<Vec<T>> {
        if self.dtype() != T::DTYPE {
            return dtype_error("to_vec", self.dtype(), T::DTYPE.name());
        }
        let x = self.detach().contiguous()?;
        match x.operand() {
            (Storage::Cuda(s), l) => Ok(s.download::<T>("to_vec", l.offset, l.count())?.to_vec()),
            (Storage::Cpu(_), _) => Ok(x.slice::<T>()?.to_vec()),
        }
    }

    /// The elements in row-major order, converted to f64.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        self.detach().to_dtype(DType::F64)?.to_vec::<f64>()
    }

    /// The only element.
    pub fn item<T: Stored>(&self) -> Result<T> {
        match self.to_vec::<T>()?.as_slice() {
            [v] => Ok(*v),
            v => shape_error(
                "item",
                format!(
                    "expected one element, got {} (shape {:?})",
                    v.len(),
                    self.shape()
                ),
            ),
        }
    }

    /// The only element, as f64.
    pub fn item_f64(&self) -> Result<f64> {
        self.detach().to_dtype(DType::F64)?.item::<f64>()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tensor {:?} {} {}",
            self.shape(),
            self.dtype(),
            self.device()
        )?;
        if self.count() <= 64
            && let Ok(v) = self.to_f64_vec()
        {
            write!(f, " {v:?}")?;
        }
        Ok(())
    }
}

/// `(&a + &b)?`: the operators of references are the methods of the same name.
macro_rules! operator {
    ($($trait:ident $method:ident),*) => {$(
        impl std::ops::$trait<&Tensor> for &Tensor {
            type Output = Result<Tensor>;
            fn $method(self, rhs: &Tensor) -> Result<Tensor> {
                Tensor::$method(self, rhs)
            }
        }
    )*};
}
operator!(Add add, Sub sub, Mul mul, Div div);

/// Check that so many elements fill a shape.
fn check_count(op: &'static str, found: usize, shape: &[usize]) -> Result<()> {
    if found == shape.iter().product::<usize>() {
        return Ok(());
    }
    shape_error(op, format!("{found} elements do not fill shape {shape:?}"))
}

/// Elements that the host wanted to touch live elsewhere.
fn not_on_host<T>(op: &'static str, t: &Tensor) -> Result<T> {
    Err(Error::Device {
        op,
        detail: format!(
            "the tensor lives on {}; move it with to_device(&Device::Cpu)",
            t.device()
        ),
    })
}

/// Check that an operand is of a float dtype.
pub(crate) fn need_float(op: &'static str, t: &Tensor) -> Result<()> {
    if t.dtype().is_float() {
        Ok(())
    } else {
        dtype_error(op, t.dtype(), "a float dtype")
    }
}

/// Check that two operands have one dtype.
pub(crate) fn same_dtype(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dtype() == b.dtype() {
        Ok(())
    } else {
        dtype_error(
            op,
            b.dtype(),
            format!("{} like the other operand", a.dtype()),
        )
    }
}
