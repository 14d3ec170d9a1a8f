#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: coverage.sh [--bar PERCENT] [--rust-only]
#
# Line coverage of src/ by the Rust, C and shell tests; exits with 1 below the bar (90 % unless told) or when a
# test fails. The engine is built a second time, instrumented. Needs LLVM's tools of the version that rustc has:
# the component llvm-tools, or Debian's package llvm-N, which is installed when this runs as root.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
bar=90 rust_only=no
while [ $# -gt 0 ]; do
    case $1 in
        --bar) bar=$2; shift 2 ;;
        --rust-only) rust_only=yes; shift ;;
        *) sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
build=${QCOW2_BUILD:-$top/build-coverage}
failures=0

llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
# tool NAME: the path of LLVM's tool, of the version that reads what rustc writes.
tool() {
    local own
    own=$(rustc --print target-libdir)/../bin/$1
    if [ -x "$own" ]; then
        echo "$own"
    else
        command -v "$1-$llvm"
    fi
}
if ! tool llvm-cov >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "llvm-$llvm" >/dev/null
fi
if ! tool llvm-cov >/dev/null || ! tool llvm-profdata >/dev/null; then
    echo "llvm-cov and llvm-profdata of LLVM $llvm are needed: rustup component add llvm-tools, or Debian's llvm-$llvm" >&2
    exit 1
fi
sh c-tests/deps.sh test || exit 1

# run NAME COMMAND...: its output goes to a file, of which the end is shown when it fails.
run() {
    local log=$build/$1.log start=$SECONDS
    printf '%-40s' "$1"
    shift
    if "$@" >"$log" 2>&1; then
        printf 'ok    %4d s\n' $((SECONDS - start))
    else
        printf 'FAIL  %4d s, see %s\n' $((SECONDS - start)) "$log"
        tail -n 40 "$log" | sed 's/^/    /'
        failures=$((failures + 1))
    fi
}

rm -rf "$build/profiles"
mkdir -p "$build/profiles" || exit 1
# Counters have no meaning with sanitizers or other people's flags; the optimised code is what takes the time.
export RUSTFLAGS="-C instrument-coverage" CARGO_TARGET_DIR=$build/cargo CARGO_PROFILE_DEV_OPT_LEVEL=2
# Four files for each program at most; a process merges its counts into one of them as it ends.
export LLVM_PROFILE_FILE=$build/profiles/%4m.profraw
run rust-tests cargo test --no-fail-fast
objects=()
while IFS= read -r program; do
    objects+=("$program")
done < <(cargo test --no-run --message-format=json 2>/dev/null |
    python3 -c 'import json, sys
for line in sys.stdin:
    program = json.loads(line).get("executable")
    if program: print(program)')
if [ "$rust_only" = no ]; then
    [ -f "$build/meson/build.ninja" ] || run meson-setup meson setup "$build/meson" --buildtype=debug
    run meson-compile meson compile -C "$build/meson"
    run c-and-shell-tests meson test -C "$build/meson" --suite c --suite tools --timeout-multiplier 3 --print-errorlogs
    objects+=("$build/meson/libqcow2.so")
fi

"$(tool llvm-profdata)" merge --sparse -o "$build/all.profdata" "$build"/profiles/*.profraw || exit 1
# One by one: the public functions have one name in all programs, and are not compiled alike in all.
rm -f "$build"/lcov.*
for index in "${!objects[@]}"; do
    "$(tool llvm-cov)" export --format=lcov --instr-profile="$build/all.profdata" "${objects[$index]}" \
        >"$build/lcov.$index" 2>>"$build/llvm-cov.log" || { tail -n 5 "$build/llvm-cov.log" >&2; exit 1; }
done
python3 c-tests/coverage-report.py "$top/src" "$build"/lcov.* --bar "$bar" --uncovered "$build/uncovered.txt" ||
    failures=$((failures + 1))
echo "every line that no test reached: $build/uncovered.txt"
[ "$failures" -eq 0 ]
