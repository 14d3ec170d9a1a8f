#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: symbols.sh ABI-LIST SHARED-LIBRARY ARCHIVE
#
# What both libraries offer to a linker is the committed list and nothing else.
set -eu
list=$1 shared=$2 archive=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
LC_ALL=C
export LC_ALL

grep '^qcow2_' "$list" | sort >"$scratch/expected"

# The version's own symbol is absolute (A); every function carries the version.
nm -D --defined-only "$shared" | awk '$2 != "A" { print $3 }' | sort >"$scratch/versioned"
sed 's/$/@@LIBQCOW2_0/' "$scratch/expected" | sort >"$scratch/expected-versioned"
diff -u "$scratch/expected-versioned" "$scratch/versioned" || { echo "$shared exports something else"; exit 1; }

nm -g --defined-only "$archive" | awk 'NF == 3 { print $3 }' | sort >"$scratch/archive"
diff -u "$scratch/expected" "$scratch/archive" || { echo "$archive offers something else"; exit 1; }

for library in "$shared" "$archive"; do
    if grep -aq 'QCOW2_TEST_PLANT=' "$library"; then echo "$library is built with the planted bugs"; exit 1; fi
done

# Debug information apart, nothing tells where they were built (RUSTFLAGS of the environment have the say in it).
top=$(cd "$(dirname "$list")/.." && pwd)
[ -n "${RUSTFLAGS:-}" ] || for library in "$shared" "$archive"; do
    strip --strip-debug -o "$scratch/stripped" "$library"
    for place in "${CARGO_HOME:-$HOME/.cargo}/" "$top/"; do
        if grep -aqF "$place" "$scratch/stripped"; then echo "$library names $place"; exit 1; fi
    done
done

soname=$(readelf -d "$shared" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[ "$soname" = libqcow2.so.0 ] || { echo "the SONAME is '$soname'"; exit 1; }
needed=$(readelf -d "$shared" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tr '\n' ' ')
for name in $needed; do
    case $name in
        libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | ld-linux*) ;;
        *) echo "the library needs $name"; exit 1 ;;
    esac
done
if readelf -lW "$shared" | grep -q 'GNU_STACK.*RWE'; then echo "executable stack"; exit 1; fi
if readelf -d "$shared" | grep -q TEXTREL; then echo "text relocations"; exit 1; fi
echo "$(wc -l <"$scratch/expected") symbols, $soname, needs $needed"
