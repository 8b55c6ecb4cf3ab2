//! Weft cli.
