//! cuBLASLt: dense matrix products. It thinks in column-major order; a row-major C = A B is the column-major
//! C^T = B^T A^T over the same memory, so nothing is copied. f32 products are computed in full f32 (no tf32),
//! bf16 ones accumulate in f32 and are rounded once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

use cudarc::cublaslt::sys;

use super::context::{Context, device_error};
use super::loader::{self, Lib};
use super::memory::Block;
use crate::dtype::DType;
use crate::error::Result;

/// Scratch that products may use.
const WORKSPACE: usize = 32 << 20;
/// Plans kept; beyond that all are made anew.
const MOST_PLANS: usize = 4096;

/// Everything that the choice of an algorithm depends on. Left and right are in cuBLASLt's sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Of the operands.
    pub(super) dtype: DType,
    /// Of the result: the operands', or f32 for bf16 operands.
    pub(super) result: DType,
    /// Whether the product is added to what the result holds.
    pub(super) adds: bool,
    /// Rows of the result (row-major), columns, summed length.
    pub(super) dims: [usize; 3],
    pub(super) a: Matrix,
    pub(super) b: Matrix,
    pub(super) batch: usize,
    /// Powers of two that divide the addresses of a, b and the result, up to 256.
    pub(super) alignment: [u32; 3],
}

/// How a row-major operand lies: by rows or (`transposed`) by columns, and the distances between rows or
/// columns and between the matrices of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Matrix {
    pub(super) transposed: bool,
    pub(super) ld: usize,
    pub(super) batch_stride: usize,
}

struct Plan {
    op: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by the matching functions and not destroyed before; null is accepted.
        unsafe {
            for l in self.layouts {
                sys::cublasLtMatrixLayoutDestroy(l);
            }
            sys::cublasLtMatmulDescDestroy(self.op);
        }
    }
}

/// The library's handle, its scratch and the plans made so far.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Block,
    plans: Mutex<HashMap<Shape, Plan>>,
}

type Text<T> = std::result::Result<T, String>;

fn step(status: sys::cublasStatus_t) -> Text<()> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(format!("cuBLASLt: {status:?}"))
    }
}

fn types(
    dtype: DType,
) -> (
    sys::cudaDataType_t,
    sys::cublasComputeType_t,
    sys::cudaDataType_t,
) {
    use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F};
    use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F, CUDA_R_64F};
    match dtype {
        DType::F64 => (CUDA_R_64F, CUBLAS_COMPUTE_64F, CUDA_R_64F),
        DType::BF16 => (CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        _ => (CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F),
    }
}

/// Address and size of an attribute's value.
fn raw<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), std::mem::size_of::<T>())
}

fn layout(
    kind: sys::cudaDataType_t,
    [rows, cols]: [usize; 2],
    m: Matrix,
    batch: usize,
) -> Text<sys::cublasLtMatrixLayout_t> {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let mut l = std::ptr::null_mut();
    let (count, stride) = (batch as i32, m.batch_stride as i64);
    // SAFETY: the library is loaded; values are of the types that the attributes have.
    unsafe {
        step(sys::cublasLtMatrixLayoutCreate(
            &mut l,
            kind,
            rows as u64,
            cols as u64,
            m.ld as i64,
        ))?;
        let (p, n) = raw(&count);
        step(sys::cublasLtMatrixLayoutSetAttribute(
            l,
            Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
            p,
            n,
        ))?;
        let (p, n) = raw(&stride);
        let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
        step(sys::cublasLtMatrixLayoutSetAttribute(l, attribute, p, n))?;
    }
    Ok(l)
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, s: &Shape) -> Text<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let [m, n, k] = s.dims;
        let (kind, compute, scale) = types(s.dtype);
        // SAFETY: an algorithm is plain data, overwritten below.
        let algorithm = unsafe { std::mem::zeroed() };
        let mut plan = Plan {
            op: std::ptr::null_mut(),
            layouts: [std::ptr::null_mut(); 3],
            algorithm,
        };
        let operation = |m: Matrix| i32::from(m.transposed);
        let mut preference = std::ptr::null_mut();
        // SAFETY: the library is loaded; every attribute gets a value of its type, alive during the call; the
        // heuristic writes one result.
        unsafe {
            step(sys::cublasLtMatmulDescCreate(&mut plan.op, compute, scale))?;
            for (attribute, value) in [
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(s.b)),
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(s.a)),
            ] {
                let (p, size) = raw(&value);
                step(sys::cublasLtMatmulDescSetAttribute(
                    plan.op, attribute, p, size,
                ))?;
            }
            let stored =
                |t: bool, rows: usize, cols: usize| if t { [rows, cols] } else { [cols, rows] };
            plan.layouts[0] = layout(kind, stored(s.b.transposed, k, n), s.b, s.batch)?;
            plan.layouts[1] = layout(kind, stored(s.a.transposed, m, k), s.a, s.batch)?;
            let result = Matrix {
                transposed: false,
                ld: n,
                batch_stride: m * n,
            };
            plan.layouts[2] = layout(types(s.result).0, [n, m], result, s.batch)?;
            step(sys::cublasLtMatmulPreferenceCreate(&mut preference))?;
            let workspace = raw(&WORKSPACE);
            let [right, left, result] = [0, 1, 2].map(|i| raw(&s.alignment[i]));
            for (attribute, (p, size)) in [
                (
                    Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    workspace,
                ),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, left),
                (
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                    right,
                ),
                (
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                    result,
                ),
                (
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                    result,
                ),
            ] {
                step(sys::cublasLtMatmulPreferenceSetAttribute(
                    preference, attribute, p, size,
                ))?;
            }
            let mut found: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let mut count = 0;
            let [l, r, c] = plan.layouts;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                handle, plan.op, l, r, c, c, preference, 1, &mut found, &mut count,
            );
            sys::cublasLtMatmulPreferenceDestroy(preference);
            step(status)?;
            if count == 0 {
                return Err(format!("cuBLASLt has no algorithm for {s:?}"));
            }
            plan.algorithm = found.algo;
        }
        Ok(plan)
    }
}

impl Blas {
    fn new(c: &'static Context) -> Text<Blas> {
        loader::load(Lib::CublasLt)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library is loaded and the context current.
        step(unsafe { sys::cublasLtCreate(&mut handle) })?;
        Ok(Blas {
            handle,
            workspace: c.allocate("matmul", WORKSPACE).map_err(|e| e.to_string())?,
            plans: Mutex::default(),
        })
    }

    fn run(&self, c: &Context, s: &Shape, [a, b, y]: [u64; 3]) -> Text<()> {
        let mut plans = self.plans.lock().unwrap_or_else(|e| e.into_inner());
        if !plans.contains_key(s) {
            if plans.len() >= MOST_PLANS {
                plans.clear();
            }
            plans.insert(*s, Plan::new(self.handle, s)?);
        }
        let Some(plan) = plans.get(s) else {
            return Err("the plan is gone".into());
        };
        let (one, zero, one_wide, zero_wide) = (1f32, 0f32, 1f64, 0f64);
        let (alpha, zero) = match s.dtype {
            DType::F64 => (raw(&one_wide).0, raw(&zero_wide).0),
            _ => (raw(&one).0, raw(&zero).0),
        };
        let beta = if s.adds { alpha } else { zero };
        let [l, r, out] = plan.layouts;
        // SAFETY: the plan's layouts describe the operands at these addresses (`matmul` computed both from the
        // same layouts); scratch belongs to this stream.
        step(unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.op,
                alpha,
                b as *const c_void,
                l,
                a as *const c_void,
                r,
                beta,
                y as *const c_void,
                out,
                y as *mut c_void,
                out,
                &plan.algorithm,
                self.workspace.address as *mut c_void,
                WORKSPACE,
                c.stream.cast(),
            )
        })
    }
}

impl Context {
    /// A batch of products into a row-major result; addresses of a, b and the result.
    pub(super) fn product(&'static self, s: &Shape, addresses: [u64; 3]) -> Result<()> {
        const OP: &str = "matmul";
        self.enter(OP)?;
        let blas = match self.blas.get_or_init(|| Blas::new(self)) {
            Ok(b) => b,
            Err(reason) => return device_error(OP, reason.clone()),
        };
        self.spanned(OP, "cublasLtMatmul", || {
            blas.run(self, s, addresses)
                .or_else(|reason| device_error(OP, reason))
        })
    }
}
