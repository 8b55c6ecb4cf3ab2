//! The sources of this crate's kernels and their variants: a new source is one static and one entry in
//! [`SOURCES`].

use super::source::{Source, Type, Variant};

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

macro_rules! source {
    ($name:ident, $file:literal, $variants:expr) => {
        pub(super) static $name: Source = Source {
            name: $file,
            text: include_str!(concat!("kernels/", $file, ".cu")),
            variants: $variants,
        };
    };
}

/// One variant for each type.
fn plain(s: &'static Source, types: &[Type]) -> Vec<Variant> {
    types.iter().map(|&t| Variant::new(s, t)).collect()
}

/// Each variant, and the same for single elements.
fn with_single(all: Vec<Variant>) -> Vec<Variant> {
    let single: Vec<Variant> = all.iter().map(|v| v.vector(1)).collect();
    let wider = all.into_iter().filter(|v| v.per_access() > 1);
    wider.chain(single).collect()
}

/// Each variant, and the same with 64-bit indices.
fn with_wide(all: Vec<Variant>) -> Vec<Variant> {
    let wide: Vec<Variant> = all.iter().map(|v| v.wide(true)).collect();
    all.into_iter().chain(wide).collect()
}

source!(COPY, "copy", |s| with_wide(with_single(plain(s, WORDS))));
source!(CAST, "cast", |s| {
    let pairs = ALL
        .iter()
        .flat_map(|&t| ALL.iter().filter(move |&&u| u != t).map(move |&u| (t, u)));
    let cast = |(t, u): (Type, Type)| {
        let widest = t.vector().min(u.vector());
        Variant::new(s, t).second(u).vector(widest)
    };
    with_wide(with_single(pairs.map(cast).collect()))
});
source!(UNARY, "unary", |s| with_wide(with_single(plain(
    s, NUMBERS
))));
source!(BINARY, "binary", |s| with_wide(with_single(plain(s, ALL))));
source!(REDUCE, "reduce", |s| {
    let sums = NUMBERS.iter().map(|&t| sum(t));
    let extremes = plain(s, ALL).into_iter().map(|v| v.constant("SUMS", 0));
    sums.chain(extremes).collect()
});
source!(SOFTMAX, "softmax", |s| plain(s, FLOATS));
source!(SCAN, "scan", |s| plain(s, ALL));
source!(INDEX, "index", |s| with_wide(plain(s, WIDE_WORDS)));
source!(SCATTER, "scatter", |s| plain(s, NUMBERS));
source!(SORT, "sort", |s| {
    let keyed = |&t: &Type| Variant::new(s, t).second(sort_key(t));
    SORTED.iter().map(keyed).collect()
});
source!(LINALG, "linalg", |s| plain(s, FLOATS));
source!(NORM, "norm", |s| plain(s, FLOATS));
source!(NORM_ROWS, "norm_rows", |_| {
    let sizes = [32, 256]
        .into_iter()
        .flat_map(|w| (1..=4).map(move |p| (w, p)));
    let sizes: Vec<_> = sizes.collect();
    let all = FLOATS
        .iter()
        .flat_map(|&t| sizes.iter().map(move |&(w, p)| norm_rows(t, w, p)));
    all.collect()
});
source!(GATED, "gated", |s| with_single(plain(s, FLOATS)));
// Filters with 2 to 4 taps stand for any number.
source!(SHORT_CONV, "short_conv", |_| {
    let all = FLOATS.iter().flat_map(|&t| {
        let widths = [1, (8 / t.size()) as u32];
        (2..=4).flat_map(move |k| widths.map(|v| filter(t, k, v)))
    });
    let mut all: Vec<Variant> = all.collect();
    // f64 has the same filter for one channel and for several.
    all.dedup();
    all
});

/// RMSNorm by `width` threads a row, each with `packs` pieces of 16 bytes in registers.
pub(super) fn norm_rows(t: impl Into<Type>, width: u32, packs: u32) -> Variant {
    Variant::new(&NORM_ROWS, t)
        .constant("WIDTH", width)
        .constant("PACKS", packs)
}

/// The unsigned integer that stands for an element while sorting.
pub(super) fn sort_key(t: Type) -> Type {
    if t.size() == 8 { Type::U64 } else { Type::U32 }
}

/// Reductions that add.
pub(super) fn sum(t: impl Into<Type>) -> Variant {
    Variant::new(&REDUCE, t).constant("SUMS", 1)
}

/// Reductions that compare.
pub(super) fn extreme(t: impl Into<Type>) -> Variant {
    Variant::new(&REDUCE, t).constant("SUMS", 0)
}

/// A causal filter of `taps` over `channels` at once.
pub(super) fn filter(t: impl Into<Type>, taps: u32, channels: u32) -> Variant {
    Variant::new(&SHORT_CONV, t)
        .vector(channels)
        .constant("K", taps)
}

/// Every source of this crate.
pub static SOURCES: &[&Source] = &[
    &COPY,
    &CAST,
    &UNARY,
    &BINARY,
    &REDUCE,
    &SOFTMAX,
    &SCAN,
    &INDEX,
    &SCATTER,
    &SORT,
    &LINALG,
    &NORM,
    &NORM_ROWS,
    &GATED,
    &SHORT_CONV,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_variants_are_distinct() {
        let names: HashSet<&str> = SOURCES.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SOURCES.len());
        let all: Vec<Variant> = SOURCES.iter().flat_map(|s| s.all()).collect();
        let distinct: HashSet<Variant> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len());
        assert!(all.len() > 190, "{}", all.len());
        let described: HashSet<String> = all.iter().map(|v| v.describe()).collect();
        assert_eq!(all.len(), described.len());
    }
}
