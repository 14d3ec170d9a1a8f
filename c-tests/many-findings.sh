#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: many-findings.sh BIN-DIR
#
# A check that finds much says what the stock tool says, in its order also where both streams go to one file, and writes
# a megabyte at a time.
set -eu
bin=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

skip() {
    echo "skipped: $1"
    exit 77
}

# 65,536 clusters of data whose counts are nothing any more: two refcount blocks of zeroes.
"$bin/qcow2-img" create -q -f qcow2 -o preallocation=metadata damaged 4G
table=$(od -An -v -tu1 -j48 -N8 damaged | awk '{ for (i = 1; i <= 8; i++) n = n * 256 + $i; printf "%.0f\n", n }')
for index in 0 1; do
    block=$(od -An -v -tu1 -j$((table + 8 * index)) -N8 damaged | awk '{ for (i = 1; i <= 8; i++) n = n * 256 + $i; printf "%.0f\n", n }')
    dd if=/dev/zero of=damaged bs=65536 seek=$((block / 65536)) count=1 conv=notrunc status=none
done

if command -v strace >/dev/null && strace -o /dev/null true 2>/dev/null; then
    cp damaged traced
    strace -f -o trace -e trace=write "$bin/qcow2-img" check -q -r all traced 2>lines || true
    writes=$(grep -c 'write(2,' trace)
    bytes=$(wc -c <lines)
    [ "$bytes" -gt 2500000 ] || { echo "only $bytes bytes: nothing was tested"; exit 1; }
    [ "$writes" -le $((bytes / 1000000 + 2)) ] || { echo "$writes writes for $bytes bytes"; exit 1; }
    echo "$writes writes for $bytes bytes"
fi

command -v qemu-img >/dev/null || skip "qemu-img is missing"
for how in "check" "check -r leaks" "check -r all" "check -r all --output=json"; do
    cp damaged ours
    cp damaged theirs
    # shellcheck disable=SC2086
    "$bin/qcow2-img" $how ours >both.ours 2>&1 || true
    # shellcheck disable=SC2086
    qemu-img $how theirs >both.theirs 2>&1 || true
    sed -i 's/^qcow2-img: //; s/"ours"/"file"/' both.ours
    sed -i 's/^qemu-img: //; s/"theirs"/"file"/' both.theirs
    cmp both.ours both.theirs || { echo "$how says something else, or in another order"; exit 1; }
    echo "$how: $(wc -l <both.ours) lines are the same"
done
