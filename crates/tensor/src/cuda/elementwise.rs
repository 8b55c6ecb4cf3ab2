//! Copies, conversions and elementwise functions on the GPU.

use half::bf16;

use super::context::context;
use super::modules::Grid;
use super::source::{Type, Variant};
use super::storage::{CudaStorage, View, common, need};
use super::table;
use super::walk::{Axes, plan};
use crate::cpu::{BinaryOp, CompareOp, UnaryOp};
use crate::dtype::{DType, Element};
use crate::error::{Result, dtype_error};
use crate::layout::{Layout, Walk, contiguous_strides};

/// The bit pattern of a value in a dtype.
fn bits(dtype: DType, value: f64) -> u64 {
    match dtype {
        DType::F64 => value.to_bits(),
        DType::F32 => u64::from((value as f32).to_bits()),
        DType::BF16 => u64::from(<bf16 as Element>::from_f64(value).to_bits()),
        DType::I64 => i64::from_f64(value) as u64,
        DType::U8 => u64::from(u8::from_f64(value)),
    }
}

/// `count` copies of a value. A failure stays in the storage (see [`CudaStorage`]).
pub fn full(ordinal: usize, dtype: DType, count: usize, value: f64) -> CudaStorage {
    let make = || {
        let c = context(ordinal)?;
        let y = CudaStorage::new("full", c, dtype, count)?;
        let word = Type::word(dtype.size());
        let v = Variant::new(&table::COPY, word);
        let groups = (count as u64).div_ceil(u64::from(word.vector()));
        let (at, value, n) = (y.start("full")?, bits(dtype, value), count as u64);
        c.launch("full", v, "fill", Grid::threads(groups), &[&at, &value, &n])?;
        Ok(y)
    };
    make().unwrap_or_else(|e| CudaStorage::failed(ordinal, dtype, count, &e))
}

/// A row-major copy of a view.
pub fn contiguous((x, lx): View) -> Result<CudaStorage> {
    let c = x.context()?;
    let y = CudaStorage::new("contiguous", c, x.dtype, lx.count())?;
    if y.count > 0 && !transpose(&y, (x, lx))? {
        place("contiguous", &y, &Layout::contiguous(&lx.shape), (x, lx))?;
    }
    Ok(y)
}

/// The operand itself if it lies row-major, else a copy that does: (address, what keeps a copy alive).
pub(super) fn packed(op: &'static str, (x, lx): View) -> Result<(u64, Option<CudaStorage>)> {
    if lx.is_contiguous() {
        return Ok((x.at(op, lx)?, None));
    }
    let y = contiguous((x, lx))?;
    Ok((y.start(op)?, Some(y)))
}

/// Copy a view over the whole of y.
pub fn assign(y: &mut CudaStorage, (x, lx): View) -> Result<()> {
    const OP: &str = "assign";
    need(OP, x, y.dtype)?;
    common(OP, &[y, x])?;
    place(OP, y, &Layout::contiguous(&lx.shape), (x, lx))
}

/// Copy a view into a (strided) part of y.
fn place(op: &'static str, y: &CudaStorage, ly: &Layout, (x, lx): View) -> Result<()> {
    if lx.count() == 0 {
        return Ok(());
    }
    let size = x.dtype.size();
    let (to, from, n) = (y.at(op, ly)?, x.at(op, lx)?, lx.count() as u64);
    let word = Type::word(size);
    let p = plan(op, [(ly, to, size), (lx, from, size)], word.vector())?;
    let v = Variant::new(&table::COPY, word)
        .vector(p.vector)
        .wide(p.wide);
    x.context()?.launch(
        op,
        v,
        "place",
        Grid::threads(p.groups),
        &[&to, &from, &p.axes, &n],
    )
}

/// Copy a view whose dense axis is not its last, tile by tile; false if it is not such a view.
fn transpose(y: &CudaStorage, (x, lx): View) -> Result<bool> {
    const OP: &str = "contiguous";
    let w = Walk::new([lx]);
    if w.strides[0] <= 1 || w.inner < 8 {
        return Ok(false);
    }
    let Some(p) = w.outer.iter().position(|&(n, [s])| s == 1 && n >= 8) else {
        return Ok(false);
    };
    let sizes: Vec<usize> = w.outer.iter().map(|a| a.0).chain([w.inner]).collect();
    let to_strides = contiguous_strides(&sizes);
    let others = w
        .outer
        .iter()
        .zip(&to_strides)
        .enumerate()
        .filter(|&(i, _)| i != p);
    let list: Vec<_> = others.map(|(_, (&(n, [s]), &d))| (n, [d, s])).collect();
    let batch: u64 = list.iter().map(|a| a.0 as u64).product();
    let axes = Axes::new(OP, &list)?;
    let (to, from) = (y.start(OP)?, x.at(OP, lx)?);
    let (np, nq) = (sizes[p] as u64, w.inner as u64);
    let (sy, sx) = (to_strides[p] as u64, w.strides[0] as u64);
    let v = Variant::new(&table::COPY, Type::word(x.dtype.size())).wide(batch >= 1 << 31);
    let grid = Grid::tiles(batch * np.div_ceil(32) * nq.div_ceil(32));
    x.context()?.launch(
        OP,
        v,
        "transpose",
        grid,
        &[&to, &from, &axes, &batch, &np, &nq, &sy, &sx],
    )?;
    Ok(true)
}

/// A row-major copy in another dtype.
pub fn cast((x, lx): View, dtype: DType) -> Result<CudaStorage> {
    const OP: &str = "to_dtype";
    if dtype == x.dtype {
        return contiguous((x, lx));
    }
    let c = x.context()?;
    let y = CudaStorage::new(OP, c, dtype, lx.count())?;
    if y.count == 0 {
        return Ok(y);
    }
    let (to, from, n) = (y.start(OP)?, x.at(OP, lx)?, y.count as u64);
    let (t, u) = (Type::from(x.dtype), Type::from(dtype));
    let p = plan(OP, [(lx, from, x.dtype.size())], t.vector().min(u.vector()))?;
    let v = Variant::new(&table::CAST, t)
        .second(u)
        .vector(p.vector)
        .wide(p.wide);
    c.launch(
        OP,
        v,
        "cast",
        Grid::threads(p.groups),
        &[&to, &from, &p.axes, &n],
    )?;
    Ok(y)
}

/// Parts of one dtype, one after another along an axis.
pub fn cat(parts: &[View], axis: usize) -> Result<CudaStorage> {
    const OP: &str = "cat";
    let storages: Vec<&CudaStorage> = parts.iter().map(|p| p.0).collect();
    let (c, first) = (common(OP, &storages)?, parts[0]);
    let mut shape = first.1.shape.clone();
    shape[axis] = parts.iter().map(|p| p.1.shape[axis]).sum();
    let y = CudaStorage::new(OP, c, first.0.dtype, shape.iter().product())?;
    let mut to = Layout::contiguous(&shape);
    for &(x, lx) in parts {
        need(OP, x, y.dtype)?;
        to.shape[axis] = lx.shape[axis];
        place(OP, &y, &to, (x, lx))?;
        to.offset += lx.shape[axis] * to.strides[axis];
    }
    Ok(y)
}

/// Operation, kernel and its constants.
fn unary_kernel(op: UnaryOp) -> (&'static str, &'static str, [f64; 2]) {
    let none = [0.0; 2];
    match op {
        UnaryOp::Abs => ("abs", "u_abs", none),
        UnaryOp::Sign => ("sign", "u_sign", none),
        UnaryOp::Floor => ("floor", "u_floor", none),
        UnaryOp::Round => ("round", "u_round", none),
        UnaryOp::Exp => ("exp", "u_exp", none),
        UnaryOp::Ln => ("ln", "u_ln", none),
        UnaryOp::Sin => ("sin", "u_sin", none),
        UnaryOp::Cos => ("cos", "u_cos", none),
        UnaryOp::Sqrt => ("sqrt", "u_sqrt", none),
        UnaryOp::Rsqrt => ("rsqrt", "u_rsqrt", none),
        UnaryOp::Recip => ("recip", "u_recip", none),
        UnaryOp::Square => ("square", "u_square", none),
        UnaryOp::Powf(p) => ("powf", "u_powf", [p, 0.0]),
        UnaryOp::Sigmoid => ("sigmoid", "u_sigmoid", none),
        UnaryOp::Tanh => ("tanh", "u_tanh", none),
        UnaryOp::Silu => ("silu", "u_silu", none),
        UnaryOp::Relu => ("relu", "u_relu", none),
        UnaryOp::Softplus => ("softplus", "u_softplus", none),
        UnaryOp::Erf => ("erf", "u_erf", none),
        UnaryOp::Clamp(lo, hi) => ("clamp", "u_clamp", [lo, hi]),
    }
}

fn map(
    op: &'static str,
    name: &'static str,
    [p, q]: [f64; 2],
    (x, lx): View,
) -> Result<CudaStorage> {
    let c = x.context()?;
    let y = CudaStorage::new(op, c, x.dtype, lx.count())?;
    if y.count == 0 {
        return Ok(y);
    }
    let (to, from, n) = (y.start(op)?, x.at(op, lx)?, y.count as u64);
    let t = Type::from(x.dtype);
    let plan = plan(op, [(lx, from, x.dtype.size())], t.vector())?;
    let v = Variant::new(&table::UNARY, t)
        .vector(plan.vector)
        .wide(plan.wide);
    let grid = Grid::threads(plan.groups);
    c.launch(op, v, name, grid, &[&to, &from, &plan.axes, &n, &p, &q])?;
    Ok(y)
}

/// An elementwise function of a float tensor.
pub fn unary(op: UnaryOp, x: View) -> Result<CudaStorage> {
    let (op, name, constants) = unary_kernel(op);
    super::storage::need_float(op, x.0)?;
    map(op, name, constants, x)
}

/// x * scale + shift.
pub fn affine(x: View, scale: f64, shift: f64) -> Result<CudaStorage> {
    if x.0.dtype == DType::U8 {
        return dtype_error("affine", DType::U8, "a float dtype or i64");
    }
    map("affine", "u_affine", [scale, shift], x)
}

/// A kernel over two operands of one shape and dtype into `y`.
fn zip(
    op: &'static str,
    name: &'static str,
    y: &CudaStorage,
    (a, la): View,
    (b, lb): View,
) -> Result<()> {
    let c = common(op, &[y, a, b])?;
    need(op, b, a.dtype)?;
    if y.count == 0 {
        return Ok(());
    }
    let (t, size) = (Type::from(a.dtype), a.dtype.size());
    let (to, pa, pb, n) = (y.start(op)?, a.at(op, la)?, b.at(op, lb)?, y.count as u64);
    let p = plan(op, [(la, pa, size), (lb, pb, size)], t.vector())?;
    let v = Variant::new(&table::BINARY, t)
        .vector(p.vector)
        .wide(p.wide);
    c.launch(
        op,
        v,
        name,
        Grid::threads(p.groups),
        &[&to, &pa, &pb, &p.axes, &n],
    )
}

/// An elementwise function of two operands of one shape.
pub fn binary(op: BinaryOp, a: View, b: View) -> Result<CudaStorage> {
    let (name, kernel) = match op {
        BinaryOp::Add => ("add", "b_add"),
        BinaryOp::Sub => ("sub", "b_sub"),
        BinaryOp::Mul => ("mul", "b_mul"),
        BinaryOp::Div => ("div", "b_div"),
        BinaryOp::Pow => ("pow", "b_pow"),
        BinaryOp::Maximum => ("maximum", "b_maximum"),
        BinaryOp::Minimum => ("minimum", "b_minimum"),
    };
    let dtype = a.0.dtype;
    match (dtype, op) {
        (DType::I64, BinaryOp::Div | BinaryOp::Pow) => {
            return dtype_error(name, dtype, "a float dtype");
        }
        (DType::U8, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Div | BinaryOp::Pow) => {
            return dtype_error(name, dtype, "a float dtype or i64");
        }
        _ => {}
    }
    let y = CudaStorage::new(name, a.0.context()?, dtype, a.1.count())?;
    zip(name, kernel, &y, a, b)?;
    Ok(y)
}

/// a += b in place: a is a whole storage, b has as many elements.
pub fn add_assign(a: &mut CudaStorage, b: View) -> Result<()> {
    super::storage::need_float("add", a)?;
    let whole = Layout::contiguous(&b.1.shape);
    zip("add", "b_add", a, (a, &whole), b)
}

/// A comparison as a mask of 0 and 1.
pub fn compare(op: CompareOp, a: View, b: View) -> Result<CudaStorage> {
    let (name, kernel) = match op {
        CompareOp::Eq => ("eq", "c_eq"),
        CompareOp::Ne => ("ne", "c_ne"),
        CompareOp::Lt => ("lt", "c_lt"),
        CompareOp::Le => ("le", "c_le"),
    };
    let y = CudaStorage::new(name, a.0.context()?, DType::U8, a.1.count())?;
    zip(name, kernel, &y, a, b)?;
    Ok(y)
}

/// mask != 0 ? a : b, all of one shape.
pub fn select((m, lm): View, (a, la): View, (b, lb): View) -> Result<CudaStorage> {
    const OP: &str = "where_cond";
    let c = common(OP, &[m, a, b])?;
    need(OP, m, DType::U8)?;
    need(OP, b, a.dtype)?;
    let y = CudaStorage::new(OP, c, a.dtype, lm.count())?;
    if y.count == 0 {
        return Ok(y);
    }
    let size = a.dtype.size();
    let (to, pm, pa, pb) = (y.start(OP)?, m.at(OP, lm)?, a.at(OP, la)?, b.at(OP, lb)?);
    let word = Type::word(size);
    let p = plan(
        OP,
        [(lm, pm, 1), (la, pa, size), (lb, pb, size)],
        word.vector(),
    )?;
    let v = Variant::new(&table::COPY, word)
        .vector(p.vector)
        .wide(p.wide);
    let n = y.count as u64;
    c.launch(
        OP,
        v,
        "choose",
        Grid::threads(p.groups),
        &[&to, &pm, &pa, &pb, &p.axes, &n],
    )?;
    Ok(y)
}
