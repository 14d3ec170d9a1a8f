#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: separate-debug.sh OBJCOPY FILE...
#
# Run by `meson install`. Of each installed file, named from the prefix on, debug information goes to FILE.debug in a
# directory .debug beside it, where gdb looks; the file is stripped. A file without any stays as it is.
set -eu
objcopy=$1
shift
for name in "$@"; do
    file=$MESON_INSTALL_DESTDIR_PREFIX/$name
    if [ ! -f "$file" ] || ! LC_ALL=C readelf -SW "$file" | grep -q ' \.debug_info '; then continue; fi
    directory=$(dirname "$file")/.debug
    debug=$directory/$(basename "$file").debug
    mkdir -p "$directory"
    "$objcopy" --only-keep-debug "$file" "$debug"
    chmod 644 "$debug"
    (cd "$directory" && "$objcopy" --strip-all --add-gnu-debuglink="$(basename "$debug")" "$file" "$file.stripped")
    chmod 755 "$file.stripped"
    mv "$file.stripped" "$file"
done
