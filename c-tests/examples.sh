#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: examples.sh NAME BUILD-DIR SOURCE-DIR
#
# Runs one example as a reader would, on images of its own, and has what it leaves checked.
set -eu
name=$1 build=$2 source=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
img=$build/tools/qcow2-img
program=$build/examples/example-$name
LD_LIBRARY_PATH=$build
export LD_LIBRARY_PATH
cd "$scratch"

fail() { echo "$*"; exit 1; }
check() {
    [ -s "$1" ] || fail "$1 was not made"
    [ ! -x "$img" ] || "$img" check -q "$1"
    ! command -v qemu-img >/dev/null || qemu-img check -q "$1"
}
# An image with something in it.
fill() { "$build/examples/example-threads" "$1" >/dev/null; }

case $name in
    disk | blockdev | threads | cxx)
        "$program" "$name.qcow2"
        check "$name.qcow2"
        ;;
    crash)
        "$program" crash.qcow2 0.3 1
        check crash.qcow2
        ;;
    backup)
        fill disk.qcow2
        mkdir backups
        "$program" disk.qcow2 full backups
        "$program" disk.qcow2 increment backups | grep '1.qcow2: 0 bytes'
        "$build/tools/qcow2-io" -c 'write -q -P 77 1M 70k' -c 'write -q -z 0 64k' disk.qcow2
        "$program" disk.qcow2 increment backups | grep '2.qcow2: 196608 bytes'
        ! "$program" disk.qcow2 full backups 2>/dev/null || fail 'a full backup over others'
        check disk.qcow2
        check backups/2.qcow2
        "$img" compare disk.qcow2 backups/2.qcow2
        ! "$img" compare disk.qcow2 backups/1.qcow2
        ;;
    readcost) "$program" . 1 | grep 'times pread' ;;
    watch)
        fill disk.qcow2
        "$program" disk.qcow2 >out 2>err
        grep '0 errors, 0 leaked' out
        grep -q '100%' err || fail "no progress"
        # The refcount of the header becomes 0 (the first entry of the first block, behind the refcount table).
        printf '\000\000' | dd of=disk.qcow2 bs=1 seek=131072 conv=notrunc status=none
        if "$program" disk.qcow2 >/dev/null 2>&1; then fail "a damaged image passes"; fi
        "$program" disk.qcow2 repair >/dev/null 2>&1
        check disk.qcow2
        ;;
    progress)
        fill disk.qcow2
        "$program" disk.qcow2 copy.qcow2 2>err
        grep -q '\[#\{40\}\] 100%' err || fail "no bar: $(cat err)"
        check copy.qcow2
        [ ! -x "$img" ] || "$img" compare disk.qcow2 copy.qcow2
        ;;
    sandbox)
        [ -x "$img" ] || exit 77
        fill base.qcow2
        "$img" create -q -f qcow2 -b /nowhere/base.qcow2 -F qcow2 -u top.qcow2 64M 2>/dev/null ||
            "$img" create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
        "$program" top.qcow2 base.qcow2 | grep '^first byte 61'
        "$img" check -q top.qcow2
        # Without the base it is not opened: nothing else finds it.
        if "$program" top.qcow2 2>err; then fail "it opened a backing file"; fi
        grep -q 'resolver refused' err || fail "another error: $(cat err)"
        ;;
    python)
        command -v python3 >/dev/null || { echo "python3 is missing"; exit 77; }
        run() { LIBQCOW2=$build/libqcow2.so.0 python3 "$source/examples/qcow2.py" "$@"; }
        fill disk.qcow2
        run list disk.qcow2 | grep '^disk.qcow2: 67108864 bytes, qcow2 version 3, clusters of 65536'
        run check disk.qcow2 | grep '^0 errors, 0 leaked clusters, 64 of 1024'
        [ "$(run read disk.qcow2 4096 4)" = bbbb ] || fail "another byte was read"
        run map disk.qcow2 map.svg
        # 4 of 64 MiB in 128 times 64 cells.
        [ "$(grep -c 'fill="#1f5fa8" fill-opacity="1.00"' map.svg)" = 512 ] || fail "the map has other cells"
        python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' map.svg
        if run list missing.qcow2 2>err; then fail "a missing image"; fi
        grep 'No such file' err
        ;;
    go)
        command -v go >/dev/null || { echo "go is missing"; exit 77; }
        cp -r "$source/examples/go" go
        # The compiled parts of Go itself are kept for the next time.
        (cd go && GOCACHE=$build/go-cache GOFLAGS=-mod=mod PKG_CONFIG_PATH=$build/meson-uninstalled go build -o ../disk .)
        ./disk disk.qcow2
        check disk.qcow2
        ;;
    *) fail "no example of this name" ;;
esac
