#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: static-library.sh CARGO SOURCE TARGET-DIR PROFILE OUTPUT DEPFILE [FEATURES]
#
# RUST_TARGET, if set, is the machine that it is built for, as rustup names it.
# Builds the engine and packs it into one archive in which only the public functions are global: everything
# else, the Rust runtime included, becomes local, so that it cannot meet another copy in the same program.
set -eu
cargo=$1 source=$2 target=$3 profile=$4 output=$5 depfile=$6 features=${7:-}
ld=${LD:-ld} objcopy=${OBJCOPY:-objcopy} ar=${AR:-ar}

# The committed header is installed: no build needs what makes it.
# What a surrounding cargo or sanitizer run sets is not meant for this build.
unset CARGO_TARGET_DIR
# The library tells nobody where it was built. RUSTFLAGS of the environment replace this.
"$cargo" --config "build.rustflags=['--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo']" \
    rustc --no-default-features ${features:+--features "$features"} ${RUST_TARGET:+--target "$RUST_TARGET"} --locked --manifest-path "$source/Cargo.toml" --target-dir "$target" \
    --profile "$profile" --lib --crate-type staticlib
made=$target${RUST_TARGET:+/$RUST_TARGET}
case $profile in
    dev) made=$made/debug ;;
    *) made=$made/$profile ;;
esac

scratch=$(mktemp -d "$output.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
grep '^qcow2_' "$source/c-tests/abi.txt" >"$scratch/symbols"
# Groups are dissolved: a linker keeps one group of a name only, and with local symbols it must keep both.
sed 's/^/-u /' "$scratch/symbols" | tr '\n' ' ' >"$scratch/roots"
gc=--gc-sections
# A coverage build: nothing refers to what writes the counters at exit, nor to what describes them.
case ${RUSTFLAGS:-} in *instrument-coverage*) gc="-u __llvm_profile_runtime" ;; esac
# shellcheck disable=SC2046,SC2086 # one word per root, one or none
"$ld" -r $gc --force-group-allocation $(cat "$scratch/roots") -o "$scratch/qcow2.o" "$made/libqcow2.a"
# The standard library's bitcode has served its purpose, and older LLVM plugins of ar choke on it.
"$objcopy" --remove-section=.llvmbc --remove-section=.llvmcmd \
    --keep-global-symbols="$scratch/symbols" "$scratch/qcow2.o"
rm -f "$output"
"$ar" rcsD "$output" "$scratch/qcow2.o"

# cargo names its own archive as the target of the rule.
sed "s|^[^:]*:|$output:|" "$made/libqcow2.d" | head -n 1 >"$depfile"
