# Servers in the tests of clients; sourced. Each server is one process, which the script ends by its number.
# SPDX-License-Identifier: MIT OR Apache-2.0
set -eu
work=$(realpath "$(mktemp -d)")
server= view= looped= mounted=

finish() {
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    [ -z "$view" ] || kill -9 "$view" 2>/dev/null || true
    [ -z "$mounted" ] || umount -l "$work/ext4" 2>/dev/null || true
    [ -z "$looped" ] || losetup -d "$looped" 2>/dev/null || true
    for one in "$work"/mount* "$work"/*.qcow2; do umount -l "$one" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM
cd "$work"

fail() {
    echo "FAIL: $*" >&2
    [ ! -s said ] || sed 's/^/    /' said >&2
    exit 1
}
skip() { echo "skipped: $*"; exit 77; }
need() { for one in "$@"; do command -v "$one" >/dev/null || skip "no $one here"; done; }
# until_true COMMAND...: waits for up to ten seconds.
until_true() {
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 500 ] || fail "after ten seconds still not: $*"
        sleep 0.02
    done
}
# mounted NAME: whether something is mounted there, be its server alive or dead.
mounted() { grep -q " $work/$1 " /proc/self/mounts; }
gone() { ! mounted "$1"; }
mounts() { grep " $work/" /proc/self/mountinfo || echo "nothing is mounted"; }
# stop: the server ends by itself, with status 0.
stop() {
    kill "$server"
    wait "$server" || fail "the server ends with status $?"
    server=
}
crash() {
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=
}
clean() { qemu-img check -q "$1" >said 2>&1 || fail "qemu-img check $1"; }
# sound IMAGE: as clean, but clusters may leak, as of an eager image whose writer was killed.
sound() { qemu-img check "$1" >said 2>&1 || [ $? = 3 ] || fail "qemu-img check $1"; }
# clean_after_crash IMAGE: a writable open repairs it; then nothing is wrong.
clean_after_crash() {
    "$bin/qcow2-io" -c 'read -q 0 512' "$1" >said 2>&1 || fail "$1 after a crash"
    clean "$1"
}
sum() { sha256sum <"$1"; }

# A guest with ext4, as often as KILLS says: `serve` starts a server and says in $file where the disk is, `crash` kills it.
guest() {
    synced=$1 image=$2
    [ "$(id -u)" = 0 ] || { echo "no ext4: not root"; return 0; }
    for one in mke2fs e2fsck losetup; do command -v $one >/dev/null || { echo "no ext4: no $one"; return 0; }; done
    mkdir ext4
    for round in $(seq "${QCOW2_TEST_KILLS:-3}"); do
        serve
        looped=$(losetup -f --show "$file" 2>said) || { looped=; echo "no ext4: no loop devices"; return 0; }
        [ "$round" != 1 ] || mke2fs -q -t ext4 "$looped" >said 2>&1 || fail "mke2fs"
        # The journal is replayed here.
        mount -t ext4 -o discard "$looped" ext4 2>said || fail "ext4 does not mount, round $round"
        mounted=yes
        [ "$round" = 1 ] || "$synced" verify ext4 "$work/log" >said 2>&1 || fail "files after kill $round"
        "$synced" write ext4 "$work/log" >/dev/null 2>&1 &
        writer=$!
        sleep "0.$(($$ * round % 7 + 2))"
        crash
        wait $writer || fail "the writer"
        umount ext4 || umount -l ext4
        mounted=
        losetup -d "$looped" || true
        looped=
    done
    serve
    looped=$(losetup -f --show "$file")
    mount -t ext4 "$looped" ext4 2>said || fail "ext4 does not mount at the end"
    mounted=yes
    "$synced" verify ext4 "$work/log" || fail "files at the end"
    umount ext4
    mounted=
    e2fsck -fn "$looped" >said 2>&1 || fail "fsck"
    losetup -d "$looped"
    looped=
    until_true stopped_by_end
    clean_after_crash "$image"
}
