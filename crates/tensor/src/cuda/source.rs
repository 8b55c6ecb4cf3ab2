//! Kernel sources and what they are compiled for. A [`Source`] is a `.cu` text in the binary; a [`Variant`] is a
//! source together with the element types, the access width and the constants it is specialised to. A variant
//! becomes one module, compiled when it is first needed.
//!
//! Any crate may bring sources: it keeps them in statics, lists them for `weft kernels`, and sends them off with
//! [`Launch`](super::launch::Launch).

use std::hash::{Hash, Hasher};

use crate::dtype::DType;

/// An element type of kernels: the tensor types, and plain words for kernels that only move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
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
    pub fn size(self) -> usize {
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
    pub fn vector(self) -> u32 {
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

/// Kernels in one text. The text follows a prelude (`kernels/prelude.cu`: short type names, bf16 conversions,
/// warp sums) and includes nothing. It sees `T` and `U` (element types), `V` (elements per access), `KIND`
/// (0 bytes, 1 integers, 2 floats) and its own constants as macros. Kernels are `extern "C" __global__`.
pub struct Source {
    /// A short name, different from those of all other sources.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
    /// Everything that is ever asked of it, for compiling ahead and for checks.
    pub variants: fn(&'static Source) -> Vec<Variant>,
}

impl Source {
    /// All of its variants.
    pub fn all(&'static self) -> Vec<Variant> {
        (self.variants)(self)
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.name == other.name
    }
}
impl Eq for Source {}
impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}
impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Constants that a variant may have.
const MOST_CONSTANTS: usize = 6;

/// A source and what it is specialised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    source: &'static Source,
    t: Type,
    second: Option<Type>,
    vector: u32,
    wide: bool,
    /// Names are empty where there is none.
    constants: [(&'static str, u32); MOST_CONSTANTS],
}

const PRELUDE: &str = include_str!("kernels/prelude.cu");

impl Variant {
    /// For element type `t`, with 16-byte accesses and 32-bit index arithmetic.
    pub fn new(source: &'static Source, t: impl Into<Type>) -> Variant {
        let t = t.into();
        Variant {
            source,
            t,
            second: None,
            vector: t.vector(),
            wide: false,
            constants: [("", 0); MOST_CONSTANTS],
        }
    }
    /// With a second element type.
    pub fn second(self, u: impl Into<Type>) -> Variant {
        Variant {
            second: Some(u.into()),
            ..self
        }
    }
    /// With `v` elements per access.
    pub fn vector(self, v: u32) -> Variant {
        Variant { vector: v, ..self }
    }
    /// With 64-bit index arithmetic in strided walks.
    pub(super) fn wide(self, wide: bool) -> Variant {
        Variant { wide, ..self }
    }
    /// With a macro. There is room for six.
    pub fn constant(mut self, name: &'static str, value: u32) -> Variant {
        let free = self.constants.iter_mut().find(|c| c.0.is_empty());
        debug_assert!(free.is_some(), "{name}: a variant has six constants");
        if let Some(c) = free {
            *c = (name, value);
        }
        self
    }

    /// Elements per access.
    pub(super) fn per_access(self) -> u64 {
        u64::from(self.vector)
    }

    /// The name of its source.
    pub fn source_name(self) -> &'static str {
        self.source.name
    }

    fn constants(&self) -> impl Iterator<Item = &(&'static str, u32)> {
        self.constants.iter().filter(|c| !c.0.is_empty())
    }

    /// The whole text to compile.
    pub(super) fn text(self) -> String {
        let wide = u32::from(self.wide);
        let mut text = format!("#define WIDE {wide}\n#line 1 \"prelude.cu\"\n{PRELUDE}\n");
        text += &format!("typedef {} T;\n", self.t.name());
        if let Some(u) = self.second {
            text += &format!("typedef {} U;\n", u.name());
        }
        text += &format!("constexpr int V = {};\n", self.vector);
        text += &format!("#define KIND {}\n", self.t.kind());
        for (name, value) in self.constants() {
            text += &format!("#define {name} {value}\n");
        }
        text + &format!("#line 1 \"{}.cu\"\n{}", self.source.name, self.source.text)
    }

    /// One line that says what it is.
    pub fn describe(self) -> String {
        let mut s = format!("{} {}", self.source_name(), self.t.name());
        if let Some(u) = self.second {
            s += &format!(" {}", u.name());
        }
        s += &format!(" x{}", self.vector);
        for (name, value) in self.constants() {
            s += &format!(" {name}={value}");
        }
        if self.wide {
            s += " wide";
        }
        s
    }
}
