#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: readme-example.sh README INCLUDE-DIR LIBRARY-DIR CC
#
# The first C example of the README compiles as printed and runs.
set -eu
readme=$1 include=$2 library=$3 cc=$4
[ -f "$readme" ] || { echo "there is no README"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

awk '/^```c$/ && !seen { inside = seen = 1; next } /^```/ { inside = 0 } inside' "$readme" >"$scratch/example.c"
[ -s "$scratch/example.c" ] || { echo "the README has no C example"; exit 1; }
"$cc" -std=gnu11 -Wall -Wextra -Werror -I"$include" "$scratch/example.c" -o "$scratch/example" \
    -L"$library" -lqcow2 -pthread
cd "$scratch"
LD_LIBRARY_PATH=$library ./example example.qcow2
