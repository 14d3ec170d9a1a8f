#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs the models of src/loom, or gives cargo other words. That each of them fails on mistakes is shown by tests/planted.rs,
# which has this build, too.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
# The build is what takes time: the models take some seconds. `loom` itself is optimized (Cargo.toml).
export RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=${QCOW2_LOOM_TARGET:-$top/target/loom} RUST_BACKTRACE=0
export CARGO_PROFILE_TEST_OPT_LEVEL=0 CARGO_PROFILE_TEST_DEBUG=0
[ $# -gt 0 ] || set -- loom:: -- --nocapture
cargo test --lib --quiet --no-default-features --features planted-bugs --manifest-path "$top/Cargo.toml" "$@"
