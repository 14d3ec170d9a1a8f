#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: cargo-c.sh [CC]
#
# `cargo cinstall` (cargo-c) gives C programs what `meson install` gives them. Some minutes; not a part of all.sh, for
# cargo-c itself takes longer to build than everything else.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cc=${1:-cc}
cargo cinstall --version >/dev/null 2>&1 || { echo "cargo-c is missing: cargo install cargo-c"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$top"
version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
cargo cinstall --locked --profile "${QCOW2_CARGO_C_PROFILE:-dev}" --destdir "$scratch/root" --prefix /usr --libdir /usr/lib --includedir /usr/include

lib=$scratch/root/usr/lib
for file in libqcow2.so libqcow2.so.0 "libqcow2.so.$version" libqcow2.a pkgconfig/qcow2.pc; do
    [ -e "$lib/$file" ] || { echo "$file is not installed"; find "$scratch/root"; exit 1; }
done
cmp include/qcow2.h "$scratch/root/usr/include/qcow2.h"
readelf -d "$lib/libqcow2.so" | grep 'SONAME.*\[libqcow2\.so\.0\]'
nm -D --defined-only "$lib/libqcow2.so" | awk '{ print $3 }' | sed 's/@.*//' | LC_ALL=C sort >"$scratch/symbols"
grep '^qcow2_' c-tests/abi.txt | LC_ALL=C sort | diff - "$scratch/symbols"

PKG_CONFIG_LIBDIR=$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$scratch/root
export PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR
[ "$(pkg-config --modversion qcow2)" = "$version" ] || { echo "qcow2.pc has another version"; exit 1; }
# shellcheck disable=SC2046 # words of a command line
"$cc" -Wall -Werror examples/disk.c -o "$scratch/disk" $(pkg-config --cflags --libs qcow2)
cd "$scratch"
LD_LIBRARY_PATH=$lib ./disk disk.qcow2
echo "library, header and qcow2.pc by cargo cinstall"
