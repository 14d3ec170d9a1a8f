#!/bin/sh
# The FUSE view, used as programs use files; killed while they write, and while ext4 is on it.
#
#   fuse.sh QCOW2_FUSE BIN_DIR VIEW_CALLS SYNCED_FILES
# SPDX-License-Identifier: MIT OR Apache-2.0
fuse=$(realpath "$1") bin=$(realpath "$2") calls=$(realpath "$3") synced=$(realpath "$4")
. "$(dirname "$0")/serve.sh"
need qemu-img qemu-io fusermount3
[ -w /dev/fuse ] || skip "no /dev/fuse here"

# start WORD...: a server in the foreground, and what it serves.
start() {
    for last in "$@"; do :; done
    until_true gone "$last" # a killed one leaves it to another process
    "$fuse" -f "$@" 2>said &
    server=$!
    until_true mounted "$last"
}
refused() {
    text=$1
    shift
    if "$fuse" "$@" >said 2>&1; then fail "served: $*"; fi
    grep -q -e "$text" said || fail "refused without '$text': $*"
}

mkdir mount
qemu-img create -q -f qcow2 -o lazy_refcounts=on probe.qcow2 1M
"$fuse" -f probe.qcow2 mount 2>said &
server=$!
tries=0
until mounted mount; do
    kill -0 $server 2>/dev/null || skip "nothing can be mounted here: $(cat said)"
    tries=$((tries + 1))
    [ $tries -lt 500 ] || fail "not mounted"
    sleep 0.02
done
stop

echo "== what is refused, and why"
head -c 65536 /dev/zero >raw
refused 'which image'
refused 'No such file' missing.qcow2 mount
refused 'No such file' probe.qcow2 nowhere
refused 'not in qcow2 format' raw mount
refused "expects 'on' or 'off'" -o lazy-refcounts=maybe probe.qcow2 mount
refused 'unknown option' -o nonsense=1 probe.qcow2 mount
qemu-img create -q -f qcow2 -b probe.qcow2 -F qcow2 top.qcow2
refused 'backing=on' -o backing=off top.qcow2 mount
gone mount || fail "mounted all the same"
"$fuse" --help >said
grep -q -e '-o l2-cache-size=<size>' said || fail "--help has no options"

echo "== each call"
qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 8M
start disk.qcow2 mount
[ "$(ls mount)" = disk ] || fail "the name: $(ls mount)"
"$calls" calls mount/disk 2>said || fail "calls"
"$calls" map mount/disk >map
head -c 300000 /dev/urandom >content
dd if=content of=mount/disk bs=7k seek=100 conv=notrunc status=none
cat mount/disk >copy
stop
clean disk.qcow2
gone mount || fail "still mounted"
qemu-img compare -q -f raw -F qcow2 copy disk.qcow2 || fail "not what qemu-img sees"
[ "$(wc -l <map)" = 6 ] || fail "map: $(cat map)"

echo "== copies"
qemu-img create -q -f qcow2 -o lazy_refcounts=on copy.qcow2 1M
start -o detect-zeroes=unmap --name=other copy.qcow2 mount
cp --sparse=always content mount/other
[ "$(stat -c %s mount/other)" = 300000 ] || fail "size after cp: $(stat -c %s mount/other)"
cmp content mount/other || fail "cp"
printf appended >>mount/other
{ cat content; printf appended; } | cmp - mount/other || fail "what is appended is elsewhere"
truncate -s 100 mount/other
stop
length=100
"$calls" keeps copy.qcow2 || length=512
start -o detect-zeroes=unmap --name=other copy.qcow2 mount
[ "$(stat -c %s mount/other)" = $length ] || fail "another server, another length: $(stat -c %s mount/other)"
stop
qemu-io -c 'write -q -P 7 200 1' copy.qcow2 # by who knows nothing of the length
start -o detect-zeroes=unmap --name=other copy.qcow2 mount
{ head -c 100 content; head -c 100 /dev/zero; printf '\007'; head -c 311 /dev/zero; } | cmp - mount/other ||
    fail "what was cut off is back, or what another program has written is not there"
cat copy >mount/other
cmp copy mount/other || fail "shell redirection"
cp --sparse=auto mount/other holes
cmp copy holes && [ "$(du -k holes | cut -f 1)" -lt 4000 ] || fail "holes are copied as data"
stop
clean copy.qcow2

echo "== over the image itself, in the background"
"$fuse" disk.qcow2 disk.qcow2 2>said || fail "over the image"
cmp copy disk.qcow2 || fail "the file is not the disk"
dd if=content of=disk.qcow2 bs=4k conv=notrunc status=none
refused 'not in qcow2 format' disk.qcow2 mount
fusermount3 -u disk.qcow2
until_true qemu-img check -q disk.qcow2
clean disk.qcow2
qemu-img convert -O raw disk.qcow2 copy
cmp -n 300000 content copy || fail "what was written over the image"

echo "== over the image itself, killed: its own bytes are not there"
(trap '' TERM && exec "$fuse" -f disk.qcow2 disk.qcow2 2>said) &
server=$!
until_true mounted disk.qcow2
kill $server # it was told to ignore that
cmp -n 300000 content disk.qcow2 || fail "ended by a signal that was ignored"
crash
for tries in 1 2 3 4 5 6 7 8 9 10; do
    if dd if=content of=disk.qcow2 conv=notrunc status=none 2>/dev/null; then fail "written after kill -9: $(mounts)"; fi
    if head -c 3 disk.qcow2 >said 2>&1; then fail "read after kill -9: $(mounts)"; fi
    sleep 0.02
done
fusermount3 -u disk.qcow2 || fail "a dead mount cannot be unmounted"
clean_after_crash disk.qcow2
qemu-img convert -O raw disk.qcow2 copy
cmp -n 300000 content copy || fail "the image after kill -9"

echo "== read-only, snapshots, backing files"
qemu-img snapshot -c then disk.qcow2
qemu-io -c 'write -q -P 77 0 8M' disk.qcow2
before=$(sum disk.qcow2)
start --read-only disk.qcow2 mount
if dd if=content of=mount/disk conv=notrunc status=none 2>/dev/null; then fail "written read-only"; fi
[ "$(head -c 100 mount/disk)" = "$(head -c 100 /dev/zero | tr '\0' M)" ] || fail "read-only: contents"
stop
start -o snapshot.name=then disk.qcow2 mount
cmp copy mount/disk || fail "the snapshot is another"
stop
start -o snapshot=on disk.qcow2 mount
dd if=content of=mount/disk conv=notrunc status=none
cmp -n 300000 content mount/disk || fail "a temporary overlay"
stop
[ "$before" = "$(sum disk.qcow2)" ] || fail "changed by those who only read"
start top.qcow2 mount
[ "$(stat -c %s mount/top)" = 1048576 ] || fail "a backing file"
stop

echo "== a write that has returned survives kill -9, and the mount does not"
for refcounts in on off; do
    qemu-img create -q -f qcow2 -o lazy_refcounts=$refcounts kill.qcow2 64M
    start kill.qcow2 mount
    "$calls" fill mount/kill 5 2>said || fail "writes"
    crash
    until_true gone mount
    start kill.qcow2 mount
    "$calls" filled mount/kill 5 2>said || fail "after kill -9, lazy_refcounts=$refcounts"
    stop
    if [ $refcounts = on ]; then clean kill.qcow2; else sound kill.qcow2; fi
done

echo "== what is in a mapping survives SIGTERM"
start disk.qcow2 mount
mkfifo hold
"$calls" mapped mount/disk <hold >wrote &
mapper=$!
exec 3>hold
until_true grep -q written wrote
stop
exec 3>&-
wait $mapper || true
qemu-io -r -c 'read -q -P 119 0 1M' disk.qcow2 >said || fail "the mapping"
clean disk.qcow2

if command -v fio >/dev/null; then
    echo "== fio"
    qemu-img create -q -f qcow2 fio.qcow2 64M
    start fio.qcow2 mount
    for engine in psync libaio mmap; do
        direct=1
        [ $engine = libaio ] || direct=0
        fio --name=verify --filename=mount/fio --ioengine=$engine --direct=$direct --iodepth=8 --rw=randwrite --bs=4k \
            --size=4M --verify=crc32c --minimal >fio 2>&1 || { cp fio said; fail "fio $engine"; }
    done
    stop
    clean fio.qcow2
fi

echo "== ext4, killed"
serve() {
    start guest.qcow2 mount
    file=mount/guest
}
stopped_by_end() { stop; }
qemu-img create -q -f qcow2 -o lazy_refcounts=on guest.qcow2 128M
guest "$synced" guest.qcow2
