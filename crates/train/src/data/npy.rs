//! The header of a NumPy `.npy` file, as far as token shards need it: one dimension, `<u2`, `<u4` or `<i4`.
//!
//! Layout: `\x93NUMPY`, major and minor version, the header's length (u16 in version 1, u32 after, little endian), and
//! a Python dictionary such as `{'descr': '<u2', 'fortran_order': False, 'shape': (1000,), }`; the data follow.

use super::tokens::Width;

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// A real header has about 120 bytes.
const MAX_HEADER: usize = 1 << 16;

/// Where the tokens start, how wide they are and how many there are; or what is wrong, as the end of a sentence.
pub(super) fn header(file: &[u8]) -> Result<(usize, Width, usize), String> {
    let cut_off = || "the .npy header is cut off".to_owned();
    let version = *file.get(MAGIC.len()).ok_or_else(cut_off)?;
    let (start, length) = match version {
        1 => (
            10,
            file.get(8..10)
                .map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))),
        ),
        2 | 3 => (
            12,
            file.get(8..12)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize),
        ),
        _ => {
            return Err(format!(
                ".npy version {version} is not known, expected 1, 2 or 3"
            ));
        }
    };
    let length = length.ok_or_else(cut_off)?;
    if length > MAX_HEADER {
        return Err(format!(
            "the .npy header claims {length} bytes, more than any real one"
        ));
    }
    let bytes = file.get(start..start + length).ok_or_else(cut_off)?;
    let text = std::str::from_utf8(bytes).map_err(|_| "the .npy header is not text".to_owned())?;

    let missing = |key: &str| format!("the .npy header lacks {key}");
    let descr = value(text, "descr")
        .and_then(quoted)
        .ok_or_else(|| missing("'descr'"))?;
    let width = match descr {
        "<u2" => Width::U16,
        "<u4" => Width::U32,
        "<i4" => Width::I32,
        _ => {
            return Err(format!(
                "its type is {descr:?}, but tokens must be '<u2', '<u4' or '<i4'"
            ));
        }
    };
    let shape = value(text, "shape")
        .and_then(parenthesised)
        .ok_or_else(|| missing("'shape'"))?;
    let count = shape
        .strip_suffix(',')
        .unwrap_or(shape)
        .trim()
        .parse()
        .map_err(|_| {
            format!("its shape is ({shape}), but tokens must be an array of one dimension")
        })?;
    Ok((start + length, width, count))
}

/// What follows `'key':` in the dictionary.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = text.split_once(&format!("'{key}'"))?;
    after.trim_start().strip_prefix(':').map(str::trim_start)
}

fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('\'')?
        .split_once('\'')
        .map(|(inside, _)| inside)
}

fn parenthesised(text: &str) -> Option<&str> {
    text.strip_prefix('(')?
        .split_once(')')
        .map(|(inside, _)| inside.trim())
}
