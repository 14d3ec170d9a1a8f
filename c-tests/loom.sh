#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs the models of src/loom. That each of them fails on mistakes is shown by tests/planted.rs, which has this build, too.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
export RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=${QCOW2_LOOM_TARGET:-$top/target/loom} RUST_BACKTRACE=0
cargo test --lib --quiet --features planted-bugs --manifest-path "$top/Cargo.toml" loom:: -- --nocapture
