#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: closed-descriptors.sh BIN-DIR
#
# Every command with some of the standard descriptors closed ends as with all of them open, and leaves the same images:
# no file takes the place of a standard stream, and no message goes into a file.
set -eu
bin=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
img=$bin/qcow2-img io=$bin/qcow2-io
failed=0 passed=0

mkdir kept work
(
    cd kept
    "$img" create -q -f raw raw 1M
    "$img" create -q -f qcow2 base 1M
    "$io" -f qcow2 -c "write -P 1 0 1M" base >/dev/null
    "$img" create -q -f qcow2 -b base -F qcow2 -o lazy_refcounts=on top
    "$io" -f qcow2 -c "write -P 2 64k 64k" top >/dev/null
    "$img" snapshot -c first top
)
cd work

# with CLOSED COMMAND...: runs it without these descriptors.
with() {
    closed=$1
    shift
    case $closed in
        none) "$@" </dev/null >/dev/null 2>/dev/null ;;
        0) "$@" <&- >/dev/null 2>/dev/null ;;
        1) "$@" </dev/null >&- 2>/dev/null ;;
        2) "$@" </dev/null >/dev/null 2>&- ;;
        01) "$@" <&- >&- 2>/dev/null ;;
        02) "$@" <&- >/dev/null 2>&- ;;
        12) "$@" </dev/null >&- 2>&- ;;
        012) "$@" <&- >&- 2>&- ;;
    esac
}

# What the images are: whole, and with these contents. Bytes may differ, for a snapshot has a time.
state() {
    for file in *; do
        head -c 4 $file | od -An -tx1
        if [ "$(head -c 3 $file)" = QFI ]; then
            "$img" check -q $file 2>&1 || echo "$file: broken"
            "$img" info -f qcow2 $file | grep -v '^ID\|:[0-9][0-9]:\|disk size'
            "$img" checksum -f qcow2 $file
        else
            cksum <$file
        fi
    done
}

# both COMMAND...: each way of starting it.
both() {
    expected=
    for closed in none 0 1 2 01 02 12 012; do
        rm -f -- *
        cp ../kept/* .
        code=0
        with $closed "$@" || code=$?
        found="$code $(state)"
        if [ $closed = none ]; then
            expected=$found
        elif [ "$found" = "$expected" ]; then
            passed=$((passed + 1))
        else
            echo "without $closed: $*: $found"
            echo "instead of: $expected"
            failed=$((failed + 1))
        fi
    done
}

both "$img" amend -f qcow2 -o lazy_refcounts=off top
both "$img" check top
both "$img" check -r all top
both "$img" checksum top
both "$img" commit -f qcow2 top
both "$img" compare top raw
both "$img" convert -p -f qcow2 -O qcow2 top out
both "$img" convert -f qcow2 -O raw top out
both "$img" create -f qcow2 out 1M
both "$img" create -f qcow2 -b top -F qcow2 out
both "$img" create -f raw out 1M
both "$img" dump-header top
both "$img" info --backing-chain top
both "$img" map top
both "$img" measure -O qcow2 top
both "$img" rebase -f qcow2 -b "" top
both "$img" rebase -p -u -f qcow2 -b base -F qcow2 top
both "$img" resize -f qcow2 top 2M
both "$img" resize -f raw raw 2M
both "$img" resize top 512k
both "$img" snapshot -c second top
both "$img" snapshot -a first top
both "$img" snapshot -d first top
both "$img" snapshot -l top
both "$img" snapshot -d absent top
both "$img" info absent
both "$img" bogus top
both "$io" -f qcow2 -c "write -P 3 0 64k" -c "read -P 4 0 64k" -c "truncate 2M" top
both "$io" -f qcow2 -s -c "write -P 3 0 64k" top
both "$io" -f qcow2 -r -c "write -P 3 0 64k" top
both "$io" -f qcow2 -c "reopen -r" -c "map" -c bogus top
both "$io" -f qcow2 top

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
