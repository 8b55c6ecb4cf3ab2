//! Expressions on the GPU: the source of a kernel is written from the expression and compiled when first used, like
//! every other ([`Source`]). A thread computes a few neighbouring elements of all outputs.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Mutex;

use super::context::Context;
use super::modules::{Argument, Grid};
use super::source::{Source, Type, Variant};
use super::storage::{CudaStorage, common};
use super::walk::{Plan, plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::fuse::{Binary, Call, Op, Tape, Unary};
use crate::layout::Layout;

/// What a kernel is written from: the expression, the inputs' and the outputs' dtypes, whether it is computed in f64.
type Key = (Tape, Vec<DType>, Vec<DType>, bool);

/// The source for a key, written once and kept: there are as many as a program has expressions.
fn source(key: Key) -> &'static Source {
    static KNOWN: Mutex<Option<HashMap<Key, &'static Source>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    let known = known.get_or_insert_default();
    if let Some(&found) = known.get(&key) {
        return found;
    }
    let made: &'static Source = Box::leak(Box::new(Source {
        name: Box::leak(format!("fused_{}", known.len()).into_boxed_str()),
        text: Box::leak(text(&key).into_boxed_str()),
        variants: |_| vec![],
    }));
    known.insert(key, made);
    made
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::BF16 => "bf16",
        _ => "float",
    }
}

/// The kernel's text.
fn text((tape, inputs, outputs, wide): &Key) -> String {
    let n = inputs.len();
    let mut s = format!(
        "typedef {} M;\nextern \"C\" __global__ void fused(",
        if *wide { "double" } else { "float" }
    );
    // Writing to a string cannot fail.
    let _ = (|| -> std::fmt::Result {
        for (i, d) in outputs.iter().enumerate() {
            write!(s, "{}* y{i}, ", name(*d))?;
        }
        for (i, d) in inputs.iter().enumerate() {
            write!(s, "const {}* x{i}, ", name(*d))?;
        }
        writeln!(s, "const __grid_constant__ Walk<{n}> w, u64 n) {{")?;
        writeln!(
            s,
            "    for (u64 g = thread_index(); g * V < n; g += thread_count()) {{"
        )?;
        writeln!(s, "        u64 at[{n}];\n        offsets(w, g, at);")?;
        writeln!(
            s,
            "        const int limit = w.axes == 1 ? remaining(n, g, V) : V;"
        )?;
        for (i, d) in inputs.iter().enumerate() {
            writeln!(s, "        {} a{i}[V];", name(*d))?;
            writeln!(s, "        load<V>(x{i} + at[{i}], w, {i}, limit, a{i});")?;
        }
        for (i, d) in outputs.iter().enumerate() {
            writeln!(s, "        {} b{i}[V];", name(*d))?;
        }
        writeln!(s, "#pragma unroll\n        for (int k = 0; k < V; k++) {{")?;
        for (at, op) in tape.ops.iter().enumerate() {
            write!(s, "            const M v{at} = ")?;
            match *op {
                Op::Input(i) => write!(s, "(M)up(a{i}[k])")?,
                Op::Const(bits) => write!(s, "(M){:?}", f64::from_bits(bits))?,
                Op::Unary(f, a) => write!(s, "{}", unary(f, a))?,
                Op::Binary(f, a, b) => write!(s, "{}", binary(f, a, b))?,
            }
            writeln!(s, ";")?;
        }
        for (i, (d, at)) in outputs.iter().zip(&tape.outputs).enumerate() {
            writeln!(s, "            b{i}[k] = down<{}>(v{at});", name(*d))?;
        }
        writeln!(s, "        }}")?;
        for i in 0..outputs.len() {
            writeln!(s, "        store<V>(y{i} + g * V, limit, b{i});")?;
        }
        writeln!(s, "    }}\n}}")
    })();
    s
}

fn unary(f: Unary, a: usize) -> String {
    match f {
        Unary::Neg => format!("-v{a}"),
        Unary::Exp => format!("m_exp(v{a})"),
        Unary::Ln => format!("m_log(v{a})"),
        Unary::Sqrt => format!("m_sqrt(v{a})"),
        Unary::Recip => format!("(M)1 / v{a}"),
        Unary::Sigmoid => format!("m_sigmoid(v{a})"),
        Unary::Tanh => format!("m_tanh(v{a})"),
        Unary::Softplus => {
            format!("(v{a} > (M)0 ? v{a} : (M)0) + m_log1p(m_exp(-m_abs(v{a})))")
        }
        Unary::Abs => format!("m_abs(v{a})"),
        Unary::Sign => format!("v{a} > (M)0 ? (M)1 : v{a} < (M)0 ? (M)-1 : v{a}"),
        Unary::NotNegative => format!("v{a} >= (M)0 ? (M)1 : (M)0"),
    }
}

fn binary(f: Binary, a: usize, b: usize) -> String {
    match f {
        Binary::Add => format!("v{a} + v{b}"),
        Binary::Sub => format!("v{a} - v{b}"),
        Binary::Mul => format!("v{a} * v{b}"),
        Binary::Div => format!("v{a} / v{b}"),
        Binary::Max => format!("v{a} >= v{b} || v{a} != v{a} ? v{a} : v{b}"),
        Binary::Min => format!("v{a} <= v{b} || v{a} != v{a} ? v{a} : v{b}"),
    }
}

/// Every output.
pub fn run(call: &Call, inputs: &[&CudaStorage]) -> Result<Vec<CudaStorage>> {
    let c = common(call.name, inputs)?;
    let n = call.layouts[0].count();
    let outputs = call.dtypes.iter();
    let outputs = outputs.map(|&d| CudaStorage::new(call.name, c, d, n));
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    if n == 0 {
        return Ok(outputs);
    }
    let from = inputs.iter().zip(call.layouts);
    let from = from.map(|(x, l)| x.at(call.name, l));
    let from = from.collect::<Result<Vec<u64>>>()?;
    let to = outputs.iter().map(|y| y.start(call.name));
    let to = to.collect::<Result<Vec<u64>>>()?;
    let operands: Vec<(&Layout, u64, usize)> = call
        .layouts
        .iter()
        .zip(inputs)
        .zip(&from)
        .map(|((l, x), &at)| (l, at, x.dtype.size()))
        .collect();
    let key = (
        call.tape.clone(),
        inputs.iter().map(|x| x.dtype).collect(),
        call.dtypes.to_vec(),
        call.wide,
    );
    let dtypes = inputs.iter().map(|x| x.dtype).chain(call.dtypes.to_vec());
    // 16 bytes of the narrowest operand at a time.
    let vector = dtypes.map(|d| Type::from(d).vector()).max().unwrap_or(1);
    let launch = Launch {
        c,
        name: call.name,
        source: source(key),
        vector,
        pointers: to.into_iter().chain(from).collect(),
        n: n as u64,
    };
    match operands.len() {
        1 => launch.over::<1>(&operands),
        2 => launch.over::<2>(&operands),
        3 => launch.over::<3>(&operands),
        4 => launch.over::<4>(&operands),
        5 => launch.over::<5>(&operands),
        6 => launch.over::<6>(&operands),
        7 => launch.over::<7>(&operands),
        _ => launch.over::<8>(&operands),
    }?;
    Ok(outputs)
}

struct Launch {
    c: &'static Context,
    name: &'static str,
    source: &'static Source,
    vector: u32,
    pointers: Vec<u64>,
    n: u64,
}

impl Launch {
    fn over<const N: usize>(&self, operands: &[(&Layout, u64, usize)]) -> Result<()> {
        let operands: [(&Layout, u64, usize); N] = std::array::from_fn(|i| operands[i]);
        let Plan {
            axes,
            vector,
            groups,
            wide,
        } = plan(self.name, operands, self.vector)?;
        let variant = Variant::new(self.source, Type::F32)
            .vector(vector)
            .wide(wide);
        let pointers = self.pointers.iter().map(|p| p as &dyn Argument);
        let arguments: Vec<&dyn Argument> = pointers
            .chain([&axes as &dyn Argument, &self.n as &dyn Argument])
            .collect();
        let grid = Grid::threads(groups);
        self.c.launch(self.name, variant, "fused", grid, &arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_computes_each_entry_once() {
        let tape = Tape::of(2, |x| (x[0].clone() + x[1].clone()).softplus() * -0.5);
        let key = (tape, vec![DType::BF16, DType::F32], vec![DType::F32], false);
        let text = text(&key);
        assert!(text.contains("const bf16* x0, const float* x1"), "{text}");
        assert!(text.contains("const M v2 = v0 + v1;"), "{text}");
        assert!(text.contains("(M)-0.5;"), "{text}");
        assert_eq!(text.matches("const M v").count(), 6, "{text}");
    }
}
