#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: package.sh BUILD-DIR PROGRAM-SOURCE CC VERSION PROFILE
#
# Installs into an empty directory and builds a program from nothing but what is there.
set -eu
build=$1 source=$2 cc=$3 version=$4 profile=$5
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

meson install -C "$build" --no-rebuild --quiet --destdir "$scratch/root"
pc=$(find "$scratch/root" -name qcow2.pc)
[ -n "$pc" ] || { echo "no qcow2.pc"; exit 1; }
libdir=$(dirname "$(dirname "$pc")")

for file in libqcow2.so libqcow2.so.0 "libqcow2.so.$version" libqcow2.a; do
    [ -e "$libdir/$file" ] || { echo "$file is not installed"; exit 1; }
done
[ "$(readlink "$libdir/libqcow2.so")" = libqcow2.so.0 ] || { echo "libqcow2.so points elsewhere"; exit 1; }
[ "$(readlink "$libdir/libqcow2.so.0")" = "libqcow2.so.$version" ] || { echo "libqcow2.so.0 points elsewhere"; exit 1; }

for file in LICENSE-MIT LICENSE-APACHE LICENSES-OF-CRATES LICENSES-OF-RUNTIME; do
    [ -n "$(find "$scratch/root" -path "*/doc/libqcow2/$file")" ] || { echo "$file is not installed"; exit 1; }
done
# The manual, of the tools where these are; and no page of what is not there.
share=$(dirname "$(dirname "$(find "$scratch/root" -path '*/man3/libqcow2.3')")")
share=${share%/man}
for file in man/man3/qcow2_open.3 man/man3/qcow2_pwritev2.3 man/man7/qcow2-options.7 doc/libqcow2/html/index.html \
    doc/libqcow2/html/layout.svg; do
    [ -f "$share/$file" ] || { echo "$file is not installed"; exit 1; }
done
for page in bin/qcow2-img.1 bin/qcow2-io.1 bin/qcow2-run.1 bin/qcow2-fuse.1 plugins/nbdkit-qcow2-plugin.1 libqcow2-preload.7; do
    name=${page##*/}
    there=no && [ -z "$(find "$scratch/root" -path "*/${page%.*}" -o -path "*/${page%.*}.so")" ] || there=yes
    paged=no && [ ! -f "$share/man/man${name##*.}/$name" ] || paged=yes
    [ $there = $paged ] || { echo "${name%.*} is installed: $there; its page: $paged"; exit 1; }
done
if [ -f "$share/man/man1/qcow2-img.1" ]; then
    for file in bash-completion/completions/qcow2-img zsh/site-functions/_qcow2-img; do
        [ -f "$share/$file" ] || { echo "$file is not installed"; exit 1; }
    done
fi
# Debug information would make ten times the code of it.
if [ "$profile" != dev ] && readelf -SW "$libdir/libqcow2.a" | grep -q '\.debug_'; then
    echo "libqcow2.a has debug information"
    exit 1
fi

# What is loaded carries none either, and a debugger finds it.
if [ "$profile" != dev ]; then
    find "$scratch/root" -path '*/.debug' -prune -o -type f '(' -path '*/bin/*' -o -name '*.so*' ')' -print >"$scratch/loaded"
    while read -r file; do
        if readelf -SW "$file" | grep -q '\.debug_info'; then echo "$file has debug information"; exit 1; fi
        readelf -SW "$(dirname "$file")/.debug/$(basename "$file").debug" | grep -q '\.debug_info' ||
            { echo "$file has no file with its debug information"; exit 1; }
    done <"$scratch/loaded"
    library=$libdir/libqcow2.so.$version
    if readelf -SW "$library" | grep -q '\.debug_info'; then echo "libqcow2.so has debug information"; exit 1; fi
    link=$(readelf -p .gnu_debuglink "$library" | sed -n 's/^ *\[ *0\] *//p')
    readelf -SW "$libdir/.debug/$link" | grep -q '\.debug_info' || { echo "$link is not what is left"; exit 1; }
    # Installed again, it stays what it is; stripped by meson, there is none.
    meson install -C "$build" --no-rebuild --quiet --only-changed --destdir "$scratch/root"
    readelf -SW "$libdir/.debug/$link" | grep -q '\.debug_info' || { echo "$link is lost"; exit 1; }
    meson install -C "$build" --no-rebuild --quiet --strip --destdir "$scratch/stripped"
    [ -z "$(find "$scratch/stripped" -name .debug)" ] || { echo "debug information of stripped files"; exit 1; }
    bytes=$(wc -c <"$library")
    [ "$bytes" -lt 3000000 ] || { echo "libqcow2.so has $bytes bytes"; exit 1; }
fi

# Only the new package can be found.
PKG_CONFIG_LIBDIR=$(dirname "$pc")
PKG_CONFIG_SYSROOT_DIR=$scratch/root
PKG_CONFIG_PATH=
export PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_PATH
[ "$(pkg-config --modversion qcow2)" = "$version" ] || { echo "qcow2.pc has another version"; exit 1; }

cp "$source" "$scratch/program.c"
cd "$scratch"
# shellcheck disable=SC2046 # words of a command line
{
    "$cc" -Wall -Werror program.c -o shared $(pkg-config --cflags --libs qcow2)
    readelf -d shared | grep -q 'NEEDED.*\[libqcow2\.so\.0\]' || { echo "not linked with libqcow2.so.0"; exit 1; }
    LD_LIBRARY_PATH=$libdir ./shared "$scratch/shared.qcow2"

    "$cc" -Wall -Werror program.c -o archive $(pkg-config --cflags qcow2) "$libdir/libqcow2.a" \
        $(pkg-config --static --libs-only-l qcow2 | sed 's/-lqcow2//')
    if readelf -d archive | grep -q libqcow2; then echo "still linked with the shared library"; exit 1; fi
    ./archive "$scratch/archive.qcow2"

    "$cc" -Wall -Werror -static program.c -o static $(pkg-config --cflags --static --libs qcow2)
    ./static "$scratch/static.qcow2"
}

# Debian names the tools' directory bin under the prefix; the tools start with the installed library.
img=$(find "$scratch/root" -path '*/bin/qcow2-img' -type f)
if [ -n "$img" ]; then
    LD_LIBRARY_PATH=$libdir "$img" check -q shared.qcow2
    LD_LIBRARY_PATH=$libdir "$img" check -q static.qcow2
fi
if command -v qemu-img >/dev/null; then
    for image in shared archive static; do qemu-img check -q $image.qcow2; done
fi
echo "shared, archive and static programs run"
