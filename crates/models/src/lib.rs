//! Weft models.
pub mod pattern;
pub mod tokenizer;
