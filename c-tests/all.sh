#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Everything that tests, with one closing summary. Installs what is missing first (Debian, as root).
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
sh c-tests/deps.sh test || exit 1
build=${QCOW2_BUILD:-$top/build-test}
. c-tests/steps.sh

# What cargo builds for this run is built once: what helps the next change costs more than it saves.
export CARGO_INCREMENTAL=0

rules() {
    if cargo fmt --version >/dev/null 2>&1; then
        step "rustfmt" cargo fmt --all --check
    else
        skip "rustfmt" "not installed"
    fi
    if clang-format-16 --version >/dev/null 2>&1 || clang-format --version 2>/dev/null | grep -q 'version 16\.'; then
        step "C style" c-tests/c-style.sh
    else
        skip "C style" "clang-format 16 is missing"
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        # The tests are the same with the planted bugs as without.
        step "clippy, warnings denied" cargo clippy --quiet -- -D warnings
        step "clippy, with the planted bugs, and of the tests" cargo clippy --all-targets --all-features --quiet -- -D warnings
    else
        skip "clippy" "not installed"
    fi
    step "crate documentation, warnings denied" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --quiet
    step "dependencies: licences, sources, versions, advisories" python3 c-tests/dependencies.py
}

# One build: the planted bugs are there, and none is switched on except in tests/planted.rs. The libraries that
# meson builds below have none of it, which c-tests/symbols.sh checks. Half of the ordinary number of random cases, which
# each commit draws anew, keeps the whole command below half an hour.
engine() {
    step "models of two and three threads (loom)" c-tests/loom.sh
    step "engine: unit and integration tests" env QCOW2_TEST_EFFORT="${QCOW2_TEST_EFFORT:-0.5}" \
        cargo test --no-fail-fast --features planted-bugs
}

fuzz_targets() {
    if [ "$(uname -m)" = x86_64 ] || [ "$(uname -m)" = aarch64 ]; then
        step "fuzz targets: corpora and 60 seconds, ASan" env QCOW2_FUZZ_DIR="$build-fuzz" fuzz/run.sh smoke
    else
        skip "fuzz targets" "no address sanitizer for this machine"
    fi
}

# What counts instructions or time comes last, alone. Every limit of time is for a machine with nothing else to do.
library() {
    [ -f "$build/build.ninja" ] || step "meson setup" meson setup "$build"
    step "meson compile" meson compile -C "$build"
    step "C tests, shell tests, differential" meson test -C "$build" --no-suite cost --print-errorlogs -t 2
    if command -v valgrind >/dev/null 2>&1; then
        step "C tests under valgrind" meson test -C "$build" --setup valgrind --suite c --print-errorlogs -t 40
    else
        skip "C tests under valgrind" "valgrind is missing"
    fi
}

sanitizers() {
    local asan=$build-asan
    [ -f "$asan/build.ninja" ] || step "meson setup, sanitizers" meson setup "$asan" -Db_sanitize=address,undefined \
        -Db_lundef=false -Dcargo_profile=checked -Dtools=false -Dclients=false
    step "meson compile, sanitizers" meson compile -C "$asan"
    step "C tests under ASan and UBSan" meson test -C "$asan" --suite c --print-errorlogs -t 2
}

# Words of 32 bits. The Rust tests that walk through the most states are left to `c-tests/machines.sh i686`.
words() {
    export QCOW2_MACHINES=${QCOW2_MACHINES:-$build-machines}
    if [ "$(uname -m)" = x86_64 ] && c-tests/machines.sh --install i686 >/dev/null 2>&1; then
        step "i686: C tests, some of the Rust tests" env QCOW2_TEST_EFFORT=0.2 QCOW2_MACHINES_RUST="lib lessons model raw" \
            QCOW2_MACHINES_PROFILE="${QCOW2_MACHINES_PROFILE:-checked}" c-tests/machines.sh i686
    else
        skip "i686" "its compilers are missing and cannot be installed, or this is no x86-64"
    fi
}

# The longest first. Two at a time: many tests are one thread's, and many wait for the disk, for a kill or for a signal.
lanes 2 engine library rules words sanitizers fuzz_targets
if [ -f "$build/build.ninja" ]; then
    step "what calls cost, with nothing beside them" \
        meson test -C "$build" --suite cost --print-errorlogs --num-processes 1
fi

summary
