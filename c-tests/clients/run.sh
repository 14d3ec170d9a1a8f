#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# usage: run.sh QCOW2-RUN TOOLS [QCOW2-FUSE]
# qcow2-run by the shim and by FUSE, what it says of programs, and programs that only FUSE serves.
set -u
run=$(realpath "$1") tools=$2 fuse=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset LIBQCOW2_PRELOAD LIBQCOW2_REPORT LD_PRELOAD
export LC_ALL=C
[ -z "$fuse" ] || PATH=$(dirname "$fuse"):$PATH
failed=0
fail() { echo "$*"; failed=1; }

seq 1 100000 >raw
truncate -s 8M raw
"$tools/qcow2-img" convert -f raw -O qcow2 -o lazy_refcounts=on raw disk.qcow2 || exit 1
wanted=$(sha256sum <raw)
same() { "$tools/qcow2-img" compare -f raw -F qcow2 raw disk.qcow2 >/dev/null && "$tools/qcow2-img" check -q disk.qcow2; }

# The shim.
[ "$("$run" -q --via preload sha256sum disk.qcow2)" = "${wanted%-}disk.qcow2" ] || fail "preload: another sum"
"$run" --via preload true 2>&1 | grep -q 'by the preload library' || fail "preload: does not say so"
"$run" -q --via preload dd if=raw of=disk.qcow2 bs=1k count=3 seek=77 conv=notrunc status=none
dd if=raw of=raw.new bs=1k count=3 status=none && dd if=raw.new of=raw bs=1k seek=77 conv=notrunc status=none
same || fail "preload: another disk"
"$run" -q --via preload --read-only dd if=raw of=disk.qcow2 conv=notrunc status=none 2>/dev/null && fail "read-only: written"
same || fail "read-only: another disk"
"$run" -q --via preload sh -c 'exit 7' disk.qcow2
[ $? = 7 ] || fail "preload: another status"
"$run" -q no-such-program
[ $? = 127 ] || fail "a program that is not there: another status"
"$run" --via nothing true 2>/dev/null
[ $? = 2 ] || fail "a wrong route: another status"
"$run" -q --via preload dd if=raw of=new.qcow2 bs=1M status=none
"$tools/qcow2-img" compare -f raw -F qcow2 raw new.qcow2 >/dev/null || fail "a new image: another disk"

# What it says of programs.
"$run" --check dd | grep -q 'the preload library serves it$' || fail "check: dd"
for static in "$(command -v busybox)" /sbin/ldconfig; do
    if [ -n "$static" ] && file -L "$static" | grep -q 'static'; then
        "$run" --check "$static" | grep -q 'only FUSE' || fail "check: $static"
        "$run" -q --via preload "$static" disk.qcow2 2>/dev/null
        [ $? = 126 ] || fail "preload: $static is started"
    fi
done
setuid=$(command -v passwd)
[ ! -u "$setuid" ] || "$run" --check "$setuid" | grep -q 'rights of its own' || fail "check: $setuid"
printf '#!/bin/sh\ntrue\n' >script && chmod +x script
"$run" --check ./script | grep -q 'a script for /bin/sh' || fail "check: a script"
! command -v fio >/dev/null || "$run" --check fio | grep -q libaio || fail "check: fio"

# FUSE.
if [ -z "$fuse" ] || ! "$run" -q --via fuse true disk.qcow2; then
    echo "FUSE is left out: no qcow2-fuse, or not allowed here"
    exit $failed
fi
"$run" cat disk.qcow2 2>&1 >/dev/null | grep -q 'by FUSE' || fail "fuse: is not chosen, or does not say so"
"$run" echo 2>&1 >/dev/null | grep -q 'by the preload library' || fail "fuse: chosen without an image"
[ "$("$run" -q --via fuse sha256sum disk.qcow2)" = "$(sha256sum <raw | cut -d' ' -f1)  disk.qcow2" ] || fail "fuse: another sum"
"$run" -q --via fuse --read-only dd if=raw of=disk.qcow2 conv=notrunc status=none 2>/dev/null && fail "fuse, read-only: written"
"$run" -q --via fuse sh -c 'exit 7' disk.qcow2
[ $? = 7 ] || fail "fuse: another status"
head -c 3 disk.qcow2 | grep -q QFI || fail "fuse: others see the mount"
if command -v busybox >/dev/null; then
    "$run" -q busybox dd if=raw of=disk.qcow2 bs=4k seek=1000 count=50 conv=notrunc 2>/dev/null
    dd if=raw of=raw.new bs=4k count=50 status=none && dd if=raw.new of=raw bs=4k seek=1000 conv=notrunc status=none
    same || fail "fuse: busybox leaves another disk"
fi
if command -v python3 >/dev/null; then
    cat >map.py <<'E'
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
m[123456:123456 + 9000] = b"mapped" * 1500
m.flush()
assert os.pread(fd, 6, 123456) == b"mapped"
E
    python3 map.py raw
    "$run" -q --via fuse python3 map.py disk.qcow2 || fail "fuse: a shared mapping"
    same || fail "fuse: a shared mapping leaves another disk"
    "$run" -q --via preload python3 map.py disk.qcow2 2>&1 | grep -q 'No such device' || fail "preload: a shared mapping is not refused"
fi
if command -v fio >/dev/null; then
    for engine in libaio io_uring mmap; do
        "$run" -q --via fuse fio --name=a --filename=disk.qcow2 --ioengine=$engine --iodepth=8 --rw=randwrite --bs=4k \
            --size=2M --verify=crc32c --verify_fatal=1 --randseed=3 >fio.out 2>&1 || { fail "fuse: fio, $engine"; tail -n 3 fio.out; }
    done
    "$tools/qcow2-img" check -q disk.qcow2 || fail "fuse: fio leaves damage"
fi
! command -v go >/dev/null || {
    printf 'package main\nimport ("fmt";"os")\nfunc main(){b,_:=os.ReadFile(os.Args[1]);fmt.Println(len(b))}\n' >a.go
    HOME=$work CGO_ENABLED=0 go build a.go && [ "$("$run" -q ./a disk.qcow2)" = 8388608 ] || fail "fuse: a Go program"
}
exit $failed
