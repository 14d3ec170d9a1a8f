#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# engine-names.sh OBJCOPY ARCHIVE HOOKS OUTPUT: the engine with its references to interposed functions renamed.
set -eu
objcopy=$1 archive=$2 hooks=$3 output=$4
grep -v '^#' "$hooks" | sed 's/.*/& engine_&/' >"$output.names"
echo "dlsym engine_dlsym" >>"$output.names"
"$objcopy" --redefine-syms="$output.names" "$archive" "$output"
rm -f "$output.names"
