//! The kernels' sources and what they are compiled for. A variant is a source together with the element types
//! and the vector width it is specialised to; it becomes one module, compiled when it is first needed.

use crate::dtype::DType;

/// An element type of kernels: the tensor types, and plain words for kernels that only move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Type {
    F64,
    F32,
    BF16,
    I64,
    U8,
    U16,
    U32,
    U64,
    U128,
}

impl Type {
    /// Its name in the sources.
    fn name(self) -> &'static str {
        match self {
            Type::F64 => "double",
            Type::F32 => "float",
            Type::BF16 => "bf16",
            Type::I64 => "i64",
            Type::U8 => "u8",
            Type::U16 => "u16",
            Type::U32 => "u32",
            Type::U64 => "u64",
            Type::U128 => "u128",
        }
    }

    /// Bytes of an element.
    pub(super) fn size(self) -> usize {
        match self {
            Type::U8 => 1,
            Type::BF16 | Type::U16 => 2,
            Type::F32 | Type::U32 => 4,
            Type::F64 | Type::I64 | Type::U64 => 8,
            Type::U128 => 16,
        }
    }

    /// 0 for bytes, 1 for integers, 2 for floats: which operations a source offers.
    fn kind(self) -> u32 {
        match self {
            Type::F64 | Type::F32 | Type::BF16 => 2,
            Type::I64 => 1,
            _ => 0,
        }
    }

    /// Elements of one 16-byte access.
    pub(super) fn vector(self) -> u32 {
        (16 / self.size()) as u32
    }

    /// The type that only moves `size` bytes.
    pub(super) fn word(size: usize) -> Type {
        match size {
            1 => Type::U8,
            2 => Type::U16,
            4 => Type::U32,
            8 => Type::U64,
            _ => Type::U128,
        }
    }
}

impl From<DType> for Type {
    fn from(d: DType) -> Type {
        match d {
            DType::F64 => Type::F64,
            DType::F32 => Type::F32,
            DType::BF16 => Type::BF16,
            DType::I64 => Type::I64,
            DType::U8 => Type::U8,
        }
    }
}

/// A group of kernels in one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    Copy,
    Cast,
    Unary,
    Binary,
    Sum,
    Extreme,
    Softmax,
    Scan,
    Index,
    Scatter,
    Sort,
    Linalg,
    Norm,
    Gated,
    ShortConv,
}

const PRELUDE: &str = include_str!("kernels/prelude.cu");

const FLOATS: &[Type] = &[Type::F64, Type::F32, Type::BF16];
const NUMBERS: &[Type] = &[Type::F64, Type::F32, Type::BF16, Type::I64];
const ALL: &[Type] = &[Type::F64, Type::F32, Type::BF16, Type::I64, Type::U8];
const WORDS: &[Type] = &[Type::U8, Type::U16, Type::U32, Type::U64];
const WIDE_WORDS: &[Type] = &[Type::U8, Type::U16, Type::U32, Type::U64, Type::U128];
const SORTED: &[Type] = &[
    Type::F64,
    Type::F32,
    Type::BF16,
    Type::I64,
    Type::U8,
    Type::U64,
];

/// A family's name, source, element types, second types, and whether it comes in vector widths and in 64-bit
/// indexing.
struct Entry {
    family: Family,
    name: &'static str,
    source: &'static str,
    types: &'static [Type],
    second: fn(Type) -> Vec<Option<Type>>,
    vectors: bool,
    wide: bool,
}

macro_rules! entry {
    ($family:ident, $file:literal, $types:expr, $second:expr, $vectors:expr, $wide:expr) => {
        Entry {
            family: Family::$family,
            name: $file,
            source: include_str!(concat!("kernels/", $file, ".cu")),
            types: $types,
            second: $second,
            vectors: $vectors,
            wide: $wide,
        }
    };
}

fn none(_: Type) -> Vec<Option<Type>> {
    vec![None]
}

/// The table: a new source is one more line.
static TABLE: [Entry; 15] = [
    entry!(Copy, "copy", WORDS, none, true, true),
    entry!(
        Cast,
        "cast",
        ALL,
        |t| ALL.iter().filter(|&&u| u != t).map(|&u| Some(u)).collect(),
        true,
        true
    ),
    entry!(Unary, "unary", NUMBERS, none, true, true),
    entry!(Binary, "binary", ALL, none, true, true),
    entry!(Sum, "reduce", NUMBERS, none, false, false),
    entry!(Extreme, "reduce", ALL, none, false, false),
    entry!(Softmax, "softmax", FLOATS, none, false, false),
    entry!(Scan, "scan", ALL, none, false, false),
    entry!(Index, "index", WIDE_WORDS, none, false, true),
    entry!(Scatter, "scatter", NUMBERS, none, false, false),
    entry!(
        Sort,
        "sort",
        SORTED,
        |t| vec![Some(sort_key(t))],
        false,
        false
    ),
    entry!(Linalg, "linalg", FLOATS, none, false, false),
    entry!(Norm, "norm", FLOATS, none, false, false),
    entry!(Gated, "gated", FLOATS, none, true, false),
    entry!(ShortConv, "short_conv", FLOATS, none, false, false),
];

/// The unsigned integer that stands for an element while sorting.
pub(super) fn sort_key(t: Type) -> Type {
    if t.size() == 8 { Type::U64 } else { Type::U32 }
}

fn entry(family: Family) -> &'static Entry {
    // The table holds every family (tested).
    TABLE
        .iter()
        .find(|e| e.family == family)
        .unwrap_or(&TABLE[0])
}

/// A source and what it is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    family: Family,
    t: Type,
    second: Option<Type>,
    vector: u32,
    taps: u32,
    wide: bool,
}

impl Variant {
    /// For element type `t`, with 16-byte accesses and 32-bit index arithmetic.
    pub(super) fn new(family: Family, t: impl Into<Type>) -> Variant {
        let t = t.into();
        Variant {
            family,
            t,
            second: None,
            vector: t.vector(),
            taps: 0,
            wide: false,
        }
    }
    /// With a second element type.
    pub(super) fn second(self, u: Type) -> Variant {
        Variant {
            second: Some(u),
            ..self
        }
    }
    /// With `v` elements per access.
    pub(super) fn vector(self, v: u32) -> Variant {
        Variant { vector: v, ..self }
    }
    /// With 64-bit index arithmetic.
    pub(super) fn wide(self, wide: bool) -> Variant {
        Variant { wide, ..self }
    }
    /// For a filter of `k` taps.
    pub(super) fn taps(self, k: u32) -> Variant {
        Variant { taps: k, ..self }
    }

    /// Elements per access.
    pub(super) fn per_access(self) -> u64 {
        u64::from(self.vector)
    }

    /// The name of its source.
    pub(super) fn source_name(self) -> &'static str {
        entry(self.family).name
    }

    /// The whole text to compile.
    pub(super) fn source(self) -> String {
        let e = entry(self.family);
        let mut head = format!("typedef {} T;\n", self.t.name());
        if let Some(u) = self.second {
            head += &format!("typedef {} U;\n", u.name());
        }
        head += &format!("constexpr int V = {};\n", self.vector);
        if self.taps > 0 {
            head += &format!("constexpr int K = {};\n", self.taps);
        }
        head += &format!(
            "#define KIND {}\n#define SUMS {}\n",
            self.t.kind(),
            u32::from(self.family == Family::Sum)
        );
        let wide = u32::from(self.wide);
        format!(
            "#define WIDE {wide}\n#line 1 \"prelude.cu\"\n{PRELUDE}\n{head}#line 1 \"{}.cu\"\n{}",
            e.name, e.source
        )
    }

    /// One line that says what it is.
    pub(super) fn describe(self) -> String {
        let mut s = format!("{} {}", self.source_name(), self.t.name());
        if let Some(u) = self.second {
            s += &format!(" {}", u.name());
        }
        s += &format!(" x{}", self.vector);
        if self.taps > 0 {
            s += &format!(" taps {}", self.taps);
        }
        if self.wide {
            s += " wide";
        }
        s
    }
}

/// Every variant that an operation can ask for (filters with 2 to 4 taps stand for any number).
pub(super) fn every() -> Vec<Variant> {
    let mut all = vec![];
    for e in &TABLE {
        for &t in e.types {
            for second in (e.second)(t) {
                let widest = t.vector().min(second.map_or(16, Type::vector));
                let plain = Variant {
                    second,
                    vector: if e.vectors { widest } else { t.vector() },
                    ..Variant::new(e.family, t)
                };
                let mut some = match e.family {
                    Family::ShortConv => (2..=4)
                        .flat_map(|k| [1, (8 / t.size()) as u32].map(|v| plain.taps(k).vector(v)))
                        .collect(),
                    _ => vec![plain],
                };
                // f64 has the same filter for one channel and for several.
                some.dedup();
                if e.vectors && widest > 1 {
                    some.push(plain.vector(1));
                }
                if e.wide {
                    some.extend(some.clone().into_iter().map(|v| v.wide(true)));
                }
                all.extend(some);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_every_family_once() {
        use Family::*;
        let families = [
            Copy, Cast, Unary, Binary, Sum, Extreme, Softmax, Scan, Index, Scatter, Sort, Linalg,
            Norm, Gated, ShortConv,
        ];
        for f in families {
            assert_eq!(TABLE.iter().filter(|e| e.family == f).count(), 1, "{f:?}");
        }
        let all = every();
        let distinct: std::collections::HashSet<_> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len());
    }
}
