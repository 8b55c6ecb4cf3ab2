//! Machinery that several mixers share.
