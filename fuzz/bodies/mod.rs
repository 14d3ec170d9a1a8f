//! What the fuzz targets do with an input. Used by the libFuzzer binaries in `fuzz/targets`, and by
//! `tests/fuzz_corpus.rs`, which replays the corpora in every test run.
//!
//! The bodies are callers of the C ABI, and keep what `include/qcow2.h` asks of one: that is all `unsafe` here.
#![allow(unsafe_code)]

pub mod bitmaps;
pub mod chains;
pub mod container;
pub mod copies;
pub mod damage;
pub mod disk;
pub mod header;
pub mod image;
pub mod layout;
pub mod luks;
pub mod medium;
pub mod script;
pub mod structure;
