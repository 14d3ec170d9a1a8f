#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: header-alone.sh INCLUDE-DIR CC [CXX]
#
# The header needs nothing before it, in every language that it is for, with offsets of the C library's own width and of
# 64 bits, and gives no warning.
set -eu
include=$1 cc=$2 cxx=${3:-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

both='-Wall -Wextra -Wpedantic -Wwrite-strings -Wredundant-decls -Wundef -Wshadow -Wconversion -Werror'
only_c='-Wstrict-prototypes -Wold-style-definition -Wmissing-prototypes'

# Twice, so that the guard is seen to work, and with something that makes use of it.
cat >"$scratch/alone.c" <<'END'
#include <qcow2.h>
#include <qcow2.h>
qcow2_open_params params = QCOW2_OPEN_PARAMS_INIT;
qcow2_create_params create_params = QCOW2_CREATE_PARAMS_INIT;
qcow2_snapshot_options snapshot_options = QCOW2_SNAPSHOT_OPTIONS_INIT;
uint64_t flags = QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_FORCE_SHARE;
const char *(*first)(void) = qcow2_version;
ssize_t (*last)(qcow2_image *, const struct iovec *, int, uint64_t) = qcow2_preadv;
END
cp "$scratch/alone.c" "$scratch/alone.cc"

# shellcheck disable=SC2086 # lists of words
{
    for standard in c99 c11 c17 gnu99 gnu11 gnu17; do
        for width in -U_FILE_OFFSET_BITS -D_FILE_OFFSET_BITS=64; do
            "$cc" -std=$standard $both $only_c $width -I"$include" -c "$scratch/alone.c" -o "$scratch/alone.o"
        done
        echo "ok $standard"
    done
    [ -n "$cxx" ] || exit 0
    for standard in c++11 c++14 c++17 c++20; do
        "$cxx" -std=$standard $both -I"$include" -c "$scratch/alone.cc" -o "$scratch/alone.o"
        echo "ok $standard"
    done
}
