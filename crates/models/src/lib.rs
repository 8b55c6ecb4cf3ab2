//! Weft models.
