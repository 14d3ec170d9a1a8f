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
"$run" -q no-such-program 2>/dev/null
[ $? = 127 ] || fail "a program that is not there: another status"
"$run" --via nothing true 2>/dev/null
[ $? = 2 ] || fail "a wrong route: another status"
"$run" -q --via preload dd if=raw of=new.qcow2 bs=1M status=none
"$tools/qcow2-img" compare -f raw -F qcow2 raw new.qcow2 >/dev/null || fail "a new image: another disk"

# Descriptors that a shell has opened: a mount over the name does not change them.
[ "$("$run" -q sha256sum <disk.qcow2)" = "$(sha256sum <raw)" ] || fail "an inherited descriptor: another sum"
! "$run" --via fuse cat <disk.qcow2 >out 2>/dev/null && [ ! -s out ] || fail "by FUSE in spite of an inherited descriptor"
cp disk.qcow2 longer.qcow2
(cat raw; printf '0123456789') >longer
"$run" -q sh -c 'printf 01234; printf 56789' >>longer.qcow2
[ "$("$run" -q --via preload cat longer.qcow2 | sha256sum)" = "$(sha256sum <longer)" ] || fail "an inherited descriptor: not at the end"
"$tools/qcow2-img" check -q longer.qcow2 || fail "an inherited descriptor: damaged"
"$run" -q cat raw >made.qcow2
"$tools/qcow2-img" compare -f raw -F qcow2 raw made.qcow2 >/dev/null || fail "an inherited empty file: another disk"

# Images of any name: by --image, by what is in them, by another name; and whatever the environment says.
wanted=$(sha256sum <raw)
cp disk.qcow2 any.img && ln -s any.img link
shim() { "$run" --via preload "$@" 2>said; }
for name in any.img link; do
    [ "$(shim --image $name sha256sum $name)" = "${wanted%-}$name" ] || fail "preload, --image $name: another sum"
    [ "$(shim sha256sum $name)" = "${wanted%-}$name" ] || fail "preload, $name by its contents: another sum"
    grep -q "^qcow2-run: $work/$name" said || fail "preload: does not say that it serves $name"
done
[ "$(LIBQCOW2_PRELOAD=off shim sha256sum disk.qcow2)" = "${wanted%-}disk.qcow2" ] || fail "preload: off in the environment counts"
for rules in '' off '*.nothing,device' any.img '*.img:*.qcow2'; do
    for name in any.img disk.qcow2; do
        before=$(sha256sum <$name)
        LIBQCOW2_PRELOAD=$rules shim --read-only --image any.img dd if=raw of=$name conv=notrunc status=none &&
            fail "read-only, rules '$rules': $name is written"
        [ "$before" = "$(sha256sum <$name)" ] || fail "read-only, rules '$rules': $name has changed"
    done
done
[ "$(LIBQCOW2_PRELOAD=any.img,device shim stat -L -c %F any.img)" = 'block special file' ] ||
    fail "preload: the user's rules do not come first"
! shim --image raw cat raw >out && [ ! -s out ] || fail "preload: --image takes what is none"
cp disk.qcow2 a,b.img
! shim cat a,b.img >out && [ ! -s out ] || fail "preload: a name that no rule can say"
"$tools/qcow2-img" create -q -f qcow2 -b disk.qcow2 -F qcow2 top.img
! shim cat top.img >out && [ ! -s out ] || fail "preload: an image by its contents has its backing file opened"
[ "$(shim --image top.img sha256sum top.img)" = "${wanted%-}top.img" ] || fail "preload: a backing file"

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
env --ignore-signal=CHLD "$run" -q --via fuse sh -c 'exit 7' disk.qcow2
[ $? = 7 ] || fail "fuse: another status"
head -c 3 disk.qcow2 | grep -q QFI || fail "fuse: others see the mount"
wanted=$(sha256sum <raw)
for name in any.img link; do
    [ "$("$run" --via fuse sha256sum $name 2>said)" = "${wanted%-}$name" ] || fail "fuse, $name by its contents: another sum"
    grep -q "^qcow2-run: $work/$name" said || fail "fuse: does not say that it serves $name"
done
"$run" --via fuse cat top.img >out 2>/dev/null
[ $? = 126 ] && [ ! -s out ] || fail "fuse: an image by its contents has its backing file opened"
[ "$("$run" -q --via fuse --read-only --image top.img cat top.img disk.qcow2 any.img link | sha256sum)" = \
    "$(cat raw raw raw raw | sha256sum)" ] || fail "fuse: an image and its backing file"

# The image's own bytes are never there: not when its server is killed or told to end, nor when qcow2-run is.
cat >look.sh <<'E'
for server in $(cat /proc/$PPID/task/$PPID/children); do [ "$server" = $$ ] || kill -"$2" "$server"; done
for try in $(seq 15); do
    ! head -c 3 "$1" 2>/dev/null | grep -q QFI || exit 5
    sleep 0.02
done
if echo written | dd of="$1" conv=notrunc status=none 2>/dev/null; then exit 8; else exit 9; fi
E
"$tools/qcow2-img" create -q -f qcow2 end.qcow2 8M
"$run" -q --via fuse sh look.sh end.qcow2 KILL 2>/dev/null
[ $? = 9 ] || fail "fuse: written, or read, after kill -9 of the server"
"$run" -q --via fuse sh look.sh end.qcow2 TERM
[ $? = 8 ] || fail "fuse: the server ends before the program"
"$run" -q --via fuse true end.qcow2 && "$tools/qcow2-img" check -q end.qcow2 || fail "fuse: damaged by a killed server"
until_there() { for try in $(seq 250); do [ ! -e "$1" ] || return 0; sleep 0.02; done; fail "no $1"; }
for signal in TERM INT HUP QUIT; do
    rm -f begun
    # A shell has what is in the background ignore SIGINT and SIGQUIT.
    env --default-signal "$run" -q --via fuse sh -c 'trap "head -c 3 $1 | grep -q QFI || exit 9" $2; : >begun
        for try in $(seq 100); do sleep 0.02; done' sh end.qcow2 $signal &
    until_there begun
    kill -$signal $!
    wait $!
    [ $? = 9 ] || fail "fuse: the program does not get SIG$signal"
done
rm -f begun
"$run" -q --via fuse sh -c ': >begun; until [ -e killed ]; do sleep 0.02; done; sh look.sh $1 0; echo $? >answer' sh end.qcow2 &
until_there begun
kill -9 $!
{ wait $!; } 2>/dev/null
: >killed
until_there answer
[ "$(cat answer)" = 8 ] || fail "fuse: after kill -9 of qcow2-run: $(cat answer)"
for try in $(seq 250); do "$tools/qcow2-img" resize -q end.qcow2 9M 2>/dev/null && break; sleep 0.02; done
[ "$try" != 250 ] || fail "fuse: the server stays when its programs have gone"
"$run" -q --via fuse sh -c '(sleep 0.2; echo late | dd of=$1 conv=notrunc status=none) &' sh end.qcow2
[ "$("$run" -q --via fuse head -c 4 end.qcow2)" = late ] || fail "fuse: does not wait for what the program has left"
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
