#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Fuzzes the C ABI with libFuzzer and the address sanitizer; stable Rust, no cargo-fuzz.
#
#   fuzz/run.sh TARGET [SECONDS]   image, header, structure, bitmaps or luks, for 60 seconds; one line of summary at the end
#   fuzz/run.sh smoke              replays the committed corpora and fuzzes each target for 20 seconds
#   fuzz/run.sh TARGET FILE        replays one input
#
# New inputs are kept in $QCOW2_FUZZ_DIR (build-fuzz): TARGET/ and findings/. The seed comes from QCOW2_TEST_SEED,
# or is libFuzzer's. Ends with 1 after a finding.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
dir=${QCOW2_FUZZ_DIR:-$top/build-fuzz}
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$dir/findings"
dir=$(cd "$dir" && pwd)

build() {
    local flags="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares"
    # The sanitizer is an unstable option of a stable compiler; only this build asks for it.
    (cd "$top/fuzz" && RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags CARGO_TARGET_DIR=$dir/target \
        cargo build --quiet --release --target "$host" "$@")
}

# Two parts of libdeflate define a table of one name each, which is no fault of theirs.
export ASAN_OPTIONS=detect_odr_violation=0:allocator_may_return_null=1:${ASAN_OPTIONS:-}

# run TARGET SECONDS: fuzzes, and prints the summary.
run() {
    local target=$1 seconds=$2 bin=$dir/target/$host/release/$1 log=$dir/$1.log status=0 found
    local -a limits=(-timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=256 -max_len=16384)
    [ "$target" != structure ] && [ "$target" != bitmaps ] || limits+=(-max_len=256)
    [ -z "${QCOW2_TEST_SEED:-}" ] || limits+=("-seed=$QCOW2_TEST_SEED")
    mkdir -p "$dir/$target"
    "$bin" "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 \
        -artifact_prefix="$dir/findings/$target-" "$dir/$target" "$top/fuzz/corpus/$target" >"$log" 2>&1 || status=$?
    found=none
    if [ "$status" -ne 0 ]; then
        found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        grep -a -m 1 -A 12 -E 'panicked at|ERROR: |SUMMARY: ' "$log"
        found=${found:-"exit status $status, see $log"}
    fi
    echo "fuzz $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") executions in $seconds s," \
        "coverage $(grep -a -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)," \
        "$(find "$dir/$target" -type f | wc -l) inputs kept, findings: $found"
    return "$status"
}

usage() {
    sed -n '3,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

case "${1:-}" in
    image | header | structure | bitmaps | luks)
        build --bin "$1" || exit 1
        if [ -f "${2:-}" ]; then
            exec "$dir/target/$host/release/$1" "$2"
        fi
        run "$1" "${2:-60}"
        ;;
    smoke)
        build || exit 1
        failed=0
        run header 20 & first=$!
        run structure 20 || failed=1
        wait "$first" || failed=1
        run bitmaps 20 & first=$!
        run image 20 || failed=1
        wait "$first" || failed=1
        exit "$failed"
        ;;
    *) usage ;;
esac
