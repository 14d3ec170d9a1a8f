#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: uninstalled.sh MESON BUILD-DIR PROGRAM-SOURCE CC
#
# The library is used from the build folder, in the two ways that there are: pkg-config's -uninstalled file, and
# `meson devenv`, which also finds the tools.
set -eu
meson=$1 build=$2 source=$3 cc=$4
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp "$source" "$scratch/program.c"
cd "$scratch"
unset LD_LIBRARY_PATH PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR || true

words=$(PKG_CONFIG_PATH=$build/meson-uninstalled pkg-config --cflags --libs qcow2)
# shellcheck disable=SC2086 # words of a command line
"$cc" -Wall -Werror program.c -o program $words
LD_LIBRARY_PATH=$build ./program program.qcow2

"$meson" devenv -C "$build" sh -c "cd '$scratch' && '$cc' program.c -o other \$(pkg-config --cflags --libs qcow2) && \
    ldd ./other && ./other other.qcow2" >out
grep "libqcow2.so.0 => $build/" out || { cat out; exit 1; }
if [ -x "$build/tools/qcow2-img" ]; then
    "$meson" devenv -C "$build" sh -c "command -v qcow2-img && qcow2-img check -q '$scratch/other.qcow2'" | grep "$build/"
fi
