//! Weft mixers.
