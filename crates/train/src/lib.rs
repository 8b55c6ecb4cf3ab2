//! Weft train.
