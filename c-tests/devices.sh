#!/bin/sh
# Block devices, by way of loop devices: what they held before shows nowhere, by whatever route an image or a copy gets
# there; they say that they cannot be resized; two nodes are one device; sectors of 4096 bytes under O_DIRECT.
#
#   devices.sh BIN_DIR TEST_LARGE_SECTORS
# SPDX-License-Identifier: MIT OR Apache-2.0
set -eu
bin=$(realpath "$1") large=$(realpath "$2")
work=$(realpath "$(mktemp -d)")
devices= mounted= first=
finish() {
    [ -z "$mounted" ] || umount "$work/mount" || true
    for one in $devices; do
        case $(cat "/sys/block/${one#/dev/}/loop/backing_file" 2>/dev/null) in "$work"/*) losetup -d "$one" || true ;; esac
    done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM
cd "$work"

fail() {
    [ -z "$first" ] || is_ours "$first" disk || not_ours "$*"
    echo "FAIL: $*" >&2
    exit 1
}
# attach SIZE FILE OPTION...: a loop device on a file: $device.
attach() {
    truncate -s "$1" "$2"
    shift
    device=$(losetup -f --show "$@") || { echo "skipped: no loop devices here"; exit 77; }
    devices="$devices $device"
}
# Loop devices belong to the whole machine, and others may detach what is not theirs: what is said then is no fault of
# the tools.
is_ours() { [ "$(cat "/sys/block/${1#/dev/}/loop/backing_file" 2>&1)" = "$work/$2" ]; }
not_ours() { echo "skipped: somebody else has taken $first away ($*)"; exit 77; }

attach 8M disk
first=$device
is_ours "$first" disk || { echo "skipped: nothing says what $first is on"; exit 77; }
[ -b "$first" ] || { echo "skipped: no loop devices here"; exit 77; }
mknod second b "0x$(stat -c %t "$first")" "0x$(stat -c %T "$first")"

# Nothing of it is zero.
use() {
    is_ours "$first" disk || not_ours "before the next route"
    tr '\0' '\245' </dev/zero | head -c 8388608 | dd of="$first" bs=1M conv=notrunc iflag=fullblock status=none ||
        fail "$first takes no bytes"
}
img() { "$bin/qcow2-img" "$@" >said 2>&1 || fail "qcow2-img $*: $(cat said)"; }
refuses() {
    text=$1
    shift
    if "$bin/qcow2-img" "$@" >said 2>&1; then fail "qcow2-img $*: done, it says"; fi
    grep -q "$text" said || fail "qcow2-img $*: $(cat said)"
}

# Data, holes, and zeroes that are written.
truncate -s 8M source.raw
printf 'one' | dd of=source.raw bs=1 seek=70000 conv=notrunc status=none
head -c 300000 /dev/urandom | dd of=source.raw bs=64k seek=20 conv=notrunc status=none
head -c 300000 /dev/zero | dd of=source.raw bs=64k seek=40 conv=notrunc status=none
img convert -f raw -O qcow2 source.raw source.qcow2
truncate -s 4M small.raw
printf 'two' | dd of=small.raw bs=1 seek=1000000 conv=notrunc status=none

same_raw() { cmp source.raw "$first" || fail "$1: another disk than the source"; }
for route in "-O raw" "-n -O raw" "-O raw -S 0" "-O raw -m 8 -W" "-O raw -t none" "-O raw -t writethrough" \
    "-O raw -C" "-n -O raw -t none"; do
    for source in "-f raw source.raw" "-f qcow2 source.qcow2"; do
        use
        # shellcheck disable=SC2086
        img convert $route $source "$first"
        same_raw "convert $route $source"
    done
done
use
img convert -O raw -f qcow2 source.qcow2 second
same_raw "another node"
use
exec 9<>"$first"
img convert -O raw -f qcow2 source.qcow2 /proc/self/fd/9
exec 9>&-
same_raw "a descriptor"
# Zeroes are the caller's word for it.
dd if=/dev/zero of="$first" bs=1M count=8 conv=notrunc status=none
img convert -n --target-is-zero -O raw -f qcow2 source.qcow2 "$first"
same_raw "--target-is-zero"
for options in "cluster_size=64k" "cluster_size=512" "preallocation=metadata" "extended_l2=on,preallocation=metadata"; do
    use
    img convert -f raw -O qcow2 -o "$options" small.raw "$first"
    img compare -f raw -F qcow2 small.raw "$first"
    img check -f qcow2 "$first"
    use
    img create -f qcow2 -o "$options" "$first" 4M
    img convert -n -f raw -O qcow2 small.raw "$first"
    img compare -f raw -F qcow2 small.raw "$first"
done
use
img convert -c -f raw -O qcow2 small.raw "$first"
img compare -f raw -F qcow2 small.raw "$first"
for raw in on off; do
    use
    rm -f top.qcow2
    img create -f qcow2 -o "data_file=$first,data_file_raw=$raw" top.qcow2 4M
    img convert -n -f raw -O qcow2 small.raw top.qcow2
    img compare -f raw -F qcow2 small.raw top.qcow2
    [ $raw = off ] || cmp -n 4194304 small.raw "$first" || fail "a raw data file on a device"
    img resize -f qcow2 top.qcow2 6M
    "$bin/qcow2-io" -f qcow2 -c "read -P 0 4M 2M" top.qcow2 >said 2>&1 || fail "grown: $(cat said)"
    ! grep -q failed said || fail "grown: $(cat said)"
done
use
rm -f top.qcow2
img create -f qcow2 -b "$first" -F raw top.qcow2 8M
img convert -n -f raw -O qcow2 source.raw top.qcow2
img commit top.qcow2
same_raw "commit"
use
for zero in "write -z 1000448 3000320" "write -z -u 5m 1m" "write -z 512 512" "write -z -u 8388096 512"; do
    "$bin/qcow2-io" -f raw -c "$zero" -c "read -P 0 ${zero##*[zu] }" "$first" >said 2>&1 || fail "$zero: $(cat said)"
    ! grep -q failed said || fail "$zero: $(cat said)"
done
"$bin/qcow2-io" -f raw -c "read -P 165 0 512" -c "read -P 165 1024 999424" -c "read -P 165 4000768 1242112" "$first" >said 2>&1
! grep -q failed said || fail "zeroing has hit more than it should: $(cat said)"

refuses "Cannot resize device files" resize -f raw "$first" +4M
refuses "Cannot resize device files" resize -f raw --shrink "$first" 4M
refuses "Preallocation mode 'full' unsupported" resize -f raw --preallocation=full "$first" 16M
refuses "Preallocation mode 'falloc' unsupported" resize -f raw --preallocation=falloc "$first" 16M
img resize -f raw "$first" 8M
refuses "Cannot grow device files" create -f raw "$first" 16M
refuses "Unsupported preallocation mode 'full'" create -f raw -o preallocation=full "$first" 4M
img create -f raw "$first" 4M
# An image cannot be its own target, whatever the node is called.
if "$bin/qcow2-img" convert -n -f raw -O raw "$first" second >said 2>&1; then fail "two nodes: two devices"; fi

attach 8M large --sector-size 4096
if [ "$(cat "/sys/block/${device#/dev/}/queue/logical_block_size")" = 4096 ]; then
    attach 8M large-image --sector-size 4096
    set -- $devices
    "$large" device "$2" "$3"
    echo "sectors of 4096 bytes on a device: seen"
else
    echo "skipped: loop devices have no sectors of 4096 bytes here"
fi
attach 64M system --sector-size 4096
mkdir mount
if mkfs.ext4 -q -b 4096 "$device" >said 2>&1 && mount "$device" mount 2>>said; then
    mounted=yes
    truncate -s 1M mount/sparse
    "$large" file mount/sparse mount/image
    echo "sectors of 4096 bytes under a file system: seen"
else
    echo "skipped: no file system on sectors of 4096 bytes here ($(head -1 said))"
fi
