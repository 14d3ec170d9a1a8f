#!/bin/sh
# The clients against the stock servers, one after the other in each round: 4 KiB requests on one image.
#
#   clients.sh BUILD-DIR [ROUNDS [SECONDS]]
#
# Prints the requests per second of each round, and the ratio of the medians. As root, for FUSE.
# SPDX-License-Identifier: MIT OR Apache-2.0
set -eu
build=$(realpath "$1") rounds=${2:-7} seconds=${3:-1}
work=$(realpath "$(mktemp -d)")
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; umount -l "$work/mount" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
cd "$work"
uri="nbd+unix:///?socket=$work/socket"
mkdir mount
: >stock
qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 512M
# In pieces: what is written at one go is one large piece of the host's page cache, too, where small writes are slow.
qemu-img bench -q -f qcow2 -w -c 4096 -s 65536 -d 8 disk.qcow2 >/dev/null
sync

until_ready() { tries=0; until "$@" >/dev/null 2>&1; do tries=$((tries + 1)); [ $tries -lt 300 ] || exit 1; sleep 0.05; done; }
ours_nbd() {
    nbdkit -f -U socket "$build/clients/nbdkit/nbdkit-qcow2-plugin.so" disk.qcow2 &
    server=$!
    until_ready nbdinfo --size "$uri"
}
stock_nbd() {
    qemu-nbd -t -e 16 -f qcow2 -k "$work/socket" disk.qcow2 &
    server=$!
    until_ready nbdinfo --size "$uri"
}
ours_fuse() {
    "$build/clients/fuse/qcow2-fuse" -f disk.qcow2 mount &
    server=$!
    until_ready mountpoint -q mount
    file=mount/disk
}
stock_fuse() {
    qemu-storage-daemon --blockdev driver=file,node-name=file,filename=disk.qcow2 \
        --blockdev driver=qcow2,node-name=disk,file=file \
        --export "type=fuse,id=export,node-name=disk,mountpoint=$work/stock,writable=on" &
    server=$!
    until_ready mountpoint -q stock
    file=stock
}
stop() {
    kill $server
    wait $server || true
    server=
    rm -f socket
}
# iops WORD...: requests per second of a run of fio.
iops() {
    fio --name=run --bs=4k --size=256M --runtime="$seconds" --time_based --norandommap --minimal "$@" |
        awk -F ';' '{ if (NF > 50) print $8 + $49 }'
}
nbd() { iops --ioengine=nbd --uri="$uri" --iodepth=16 --rw="$1"; }
view() { iops --ioengine=psync --filename=$file --rw="$1" --direct="$2"; }
# compare NAME OURS STOCK COMMAND...: a line for the case.
compare() {
    name=$1 ours=$2 stock=$3
    shift 3
    for round in $(seq "$rounds"); do
        $ours
        a=$("$@")
        stop
        $stock
        b=$("$@")
        stop
        echo "$a $b"
    done >figures
    awk -v name="$name" 'function middle(v, i, k, t) {
            for (i = 1; i <= NR; i++) for (k = i + 1; k <= NR; k++) if (v[k] < v[i]) { t = v[i]; v[i] = v[k]; v[k] = t }
            return v[int((NR + 1) / 2)]
        }
        { all = all "  " $1 "/" $2; a[NR] = $1; b[NR] = $2 }
        END { printf "%-30s %.2f times stock (%s )\n", name, middle(a) / middle(b), all }' figures
}

compare 'nbd, random read, depth 16' ours_nbd stock_nbd nbd randread
compare 'nbd, random write, depth 16' ours_nbd stock_nbd nbd randwrite
if [ -w /dev/fuse ]; then
    compare 'fuse, random read, direct' ours_fuse stock_fuse view randread 1
    compare 'fuse, random read' ours_fuse stock_fuse view randread 0
    compare 'fuse, random write' ours_fuse stock_fuse view randwrite 0
fi
qemu-img check disk.qcow2 | head -n 1
