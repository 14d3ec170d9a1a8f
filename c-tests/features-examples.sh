#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: features-examples.sh FEATURES.md INCLUDE-DIR CC
#
# Every C example of the page is a function body that compiles as printed, given the names that an embedder has.
set -eu
page=$1 include=$2 cc=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat >"$scratch/before" <<'C'
#include <qcow2.h>
extern qcow2_image *image, *copy;
extern char cluster[65536], *state;
extern size_t bytes, piece;
int fail(void), damaged(void), example(void);
int example(void)
{
C
awk -v scratch="$scratch" '
    /^```c$/ { inside = 1; file = scratch "/" ++count ".c"; while ((getline line < (scratch "/before")) > 0) print line > file
               close(scratch "/before"); next }
    /^```/ && inside { inside = 0; print "return 0;\n}" > file; close(file) }
    inside { print > file }
    END { print count + 0 }' "$page" >"$scratch/count"
[ "$(cat "$scratch/count")" -ge 5 ] || { echo "only $(cat "$scratch/count") examples"; exit 1; }
for file in "$scratch"/*.c; do
    "$cc" -std=gnu11 -Wall -Wextra -Werror -I"$include" -fsyntax-only "$file"
done
echo "$(cat "$scratch/count") examples"
