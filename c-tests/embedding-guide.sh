#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: embedding-guide.sh GUIDE.md INCLUDE-DIR BUILD-DIR CC
#
# The files that the guide shows, as printed: they compile without a warning, are built by each build system that it names
# (where this machine has it), and the emulator has its disk. What it writes by either back end is the same disk.
set -eu
guide=$1 include=$2 build=$3 cc=$4
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

awk -v out="$scratch" '
    /^```[a-z]+ [^ ]+$/ { file = out "/" $2; next }
    /^```/ { file = "" }
    file != "" { print > file }' "$guide"
cd "$scratch"
for file in disk.h raw-disk.c qcow2-disk.c emulator.c meson.build CMakeLists.txt configure.ac Makefile.am Makefile; do
    [ -s $file ] || { echo "the guide does not show $file"; exit 1; }
done
sources="emulator.c raw-disk.c qcow2-disk.c disk.h"

# The library of this build as if it were installed; c-tests/package.sh tests what is.
mkdir pkgconfig
printf 'Name: qcow2\nDescription: of this build\nVersion: 0\nCflags: -I%s\nLibs: -L%s -lqcow2\n' "$include" "$build" \
    >pkgconfig/qcow2.pc
PKG_CONFIG_PATH=$scratch/pkgconfig
LD_LIBRARY_PATH=$build
export PKG_CONFIG_PATH LD_LIBRARY_PATH

# shellcheck disable=SC2046 # words of a command line
"$cc" -std=gnu11 -Wall -Wextra -Wstrict-prototypes -Werror emulator.c raw-disk.c qcow2-disk.c -o strict \
    $(pkg-config --cflags --libs qcow2)

fail() {
    echo "$1"
    exit 1
}

# have_disk PROGRAM: makes a disk, uses it, and uses a raw one of the same size.
have_disk() {
    rm -f disk.qcow2 disk.raw
    "$1" create disk.qcow2 1073741824 || fail "$1: no disk is made"
    truncate -s 1073741824 disk.raw
    for format in qcow2 raw; do
        [ "$("$1" $format disk.$format)" = "the guest has its disk" ] || fail "$1: the guest has no $format disk"
    done
    if [ -x "$build/tools/qcow2-img" ]; then
        "$build/tools/qcow2-img" check -q disk.qcow2 || fail "$1: the image is not clean"
        "$build/tools/qcow2-img" compare -q -f qcow2 -F raw disk.qcow2 disk.raw || fail "$1: the disks differ"
        truncate -s 1073741824 empty.raw
        if "$build/tools/qcow2-img" compare -q -f raw -F raw disk.raw empty.raw; then fail "$1: nothing is written"; fi
    fi
}
have_disk ./strict

# in_directory NAME FILES: the sources and these files alone.
in_directory() {
    name=$1
    shift
    mkdir "$name"
    # shellcheck disable=SC2086 # a list of names
    cp $sources "$@" "$name"
}
done=
if command -v make >/dev/null; then
    in_directory with-make Makefile
    make -s -C with-make CC="$cc"
    have_disk with-make/emulator
    done="$done make"
fi
if command -v meson >/dev/null; then
    in_directory with-meson meson.build
    CC=$cc meson setup with-meson/build with-meson >log 2>&1 || { cat log; exit 1; }
    meson compile -C with-meson/build >log 2>&1 || { cat log; exit 1; }
    have_disk with-meson/build/emulator
    done="$done meson"
fi
if command -v cmake >/dev/null && command -v make >/dev/null; then
    in_directory with-cmake CMakeLists.txt
    cmake -S with-cmake -B with-cmake/build -DCMAKE_C_COMPILER="$cc" >log 2>&1 || { cat log; exit 1; }
    cmake --build with-cmake/build >log 2>&1 || { cat log; exit 1; }
    have_disk with-cmake/build/emulator
    done="$done cmake"
fi
if command -v autoreconf >/dev/null && command -v automake >/dev/null && command -v make >/dev/null; then
    in_directory with-autotools configure.ac Makefile.am
    (cd with-autotools && autoreconf -i && ./configure CC="$cc" && make -s) >log 2>&1 || { cat log; exit 1; }
    have_disk with-autotools/emulator
    done="$done autotools"
fi
echo "built and run with:$done"
