#!/bin/sh
# The plugin of nbdkit, asked by stock clients and by one of our own; killed while ext4 is on its disk.
#
#   nbdkit.sh PLUGIN BIN_DIR NBD_CLIENT SYNCED_FILES
# SPDX-License-Identifier: MIT OR Apache-2.0
plugin=$(realpath "$1") bin=$(realpath "$2") client=$(realpath "$3") synced=$(realpath "$4")
. "$(dirname "$0")/serve.sh"
need nbdkit nbdinfo nbdcopy qemu-img qemu-io qemu-nbd
uri="nbd+unix:///?socket=$work/socket"

# start WORD...: a server with these parameters.
start() {
    rm -f socket
    nbdkit -f -U socket "$plugin" "$@" 2>said &
    server=$!
    until_true test -S socket
}
# refused TEXT WORD...: no server, and the reason.
refused() {
    text=$1
    shift
    if nbdkit -f -U none "$plugin" "$@" --run true >said 2>&1; then fail "served: $*"; fi
    grep -q "$text" said || fail "refused without '$text': $*"
}

# start_background WORD...: on socket2, no child of this shell.
start_background() {
    rm -f socket2 pid
    nbdkit -U socket2 -P pid "$plugin" "$@" 2>said || fail "in the background: $*"
    until_true test -s pid
    server=$(cat pid)
}
stop_background() {
    kill "$server"
    until_true ended
    server=
}
ended() { ! kill -0 "$server"; }

echo "== what it tells"
nbdkit "$plugin" --dump-plugin >said || fail "--dump-plugin"
for line in thread_model=parallel errno_is_preserved=1 magic_config_key=file 'qcow2_option_cache=str' \
    'qcow2_option_metadata-writethrough=bool (on/off)' 'qcow2_option_backing=str'; do
    grep -qxF "$line" said || fail "--dump-plugin has no $line"
done
nbdkit "$plugin" --help >said
grep -q ' l2-cache-size=<size>' said || fail "--help has no options"

echo "== what is refused, and why"
head -c 65536 /dev/zero >raw
qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 8M
refused 'which image'
refused 'No such file' missing.qcow2
refused 'not in qcow2 format' raw
refused "option 'nonsense'" disk.qcow2 nonsense=1
refused "expects 'on' or 'off'" disk.qcow2 lazy-refcounts=maybe
refused "'backing' does not take 'perhaps'" disk.qcow2 backing=perhaps
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
refused 'backing=on' top.qcow2 backing=off

echo "== each call"
start disk.qcow2
"$client" calls socket 2>>said || fail "calls"
refused 'lock' "$work/disk.qcow2"
stop
clean disk.qcow2

start disk.qcow2
nbdinfo "$uri" >/dev/null
nbdkit -f -U - "$plugin" disk.qcow2 force-share=on --run 'nbdinfo --is read-only "$uri"' 2>said || fail "force-share"
stop

echo "== a flush on one connection covers all of them, and FUA is durable"
for how in flush fua; do
    for refcounts in on off; do
        qemu-img create -q -f qcow2 -o lazy_refcounts=$refcounts kill.qcow2 64M
        start kill.qcow2
        "$client" $how socket 7 2>>said || fail "writes, $how"
        crash
        start kill.qcow2
        "$client" filled socket 7 2>>said || fail "after kill -9, $how, lazy_refcounts=$refcounts"
        stop
        if [ $refcounts = on ]; then clean kill.qcow2; else sound kill.qcow2; fi
    done
done

echo "== copies, maps and comparisons are those of the stock server"
head -c 3M /dev/urandom >content
truncate -s 7M content
head -c 1M /dev/urandom >>content
start disk.qcow2
nbdcopy content "$uri" || fail "nbdcopy to it"
qemu-io -f raw -c 'write -q -f -P 9 100000 300000' -c 'write -q -zu 2M 512k' -c 'discard -q 1M 512k' \
    -c 'read -q -P 9 100000 300000' -c 'read -q -P 0 1M 512k' -c flush "$uri" >said || fail "qemu-io"
nbdcopy "$uri" copied || fail "nbdcopy from it"
nbdinfo --map "$uri" >map
qemu-img convert -f raw -O raw "$uri" converted || fail "qemu-img convert"
stop
clean disk.qcow2
cmp copied converted || fail "two copies differ"
qemu-img compare -q -f raw -F qcow2 copied disk.qcow2 || fail "not what qemu-img sees"
[ "$(sum copied)" != "$(sum content)" ] || fail "nothing was written"
rm -f socket
qemu-nbd -r -t -f qcow2 -k "$work/socket" disk.qcow2 &
server=$!
until_true test -S socket
nbdinfo --map "$uri" >stock-map
stop
cmp map stock-map || fail "map: $(cat map)"

echo "== read-only, snapshots, backing files, temporary overlays"
qemu-img snapshot -c then disk.qcow2
qemu-io -c 'write -q -P 77 0 8M' disk.qcow2
before=$(sum disk.qcow2)
nbdkit -r -f -U - "$plugin" disk.qcow2 --run "nbdkit -r -f -U - $plugin disk.qcow2 --run '
    nbdinfo --is read-only \"\$uri\" && qemu-io -r -f raw -c \"read -q -P 77 0 8M\" \"\$uri\"'" >said 2>&1 || fail "two with -r"
nbdkit -f -U - "$plugin" disk.qcow2 snapshot.name=then \
    --run 'nbdinfo --is read-only "$uri" && nbdcopy "$uri" then' 2>said || fail "a snapshot"
cmp then copied || fail "the snapshot is another"
nbdkit -f -U - "$plugin" disk.qcow2 snapshot=on --run '
    qemu-io -f raw -c "write -q -P 1 0 1M" -c "read -q -P 1 0 1M" -c "read -q -P 77 1M 7M" "$uri"' >said || fail "snapshot=on"
[ "$before" = "$(sum disk.qcow2)" ] || fail "changed by those who only read"
qemu-img create -q -f qcow2 -o data_file=data.raw split.qcow2 8M
# Names of options are relative to where the server was started, though it has left.
start_background top.qcow2
qemu-io -f raw -c 'read -q -P 77 0 8M' -c 'write -q -P 2 4M 64k' "nbd+unix:///?socket=$work/socket2" >said || fail "a backing file"
stop_background
qemu-io -r -c 'read -q -P 77 0 4M' -c 'read -q -P 2 4M 64k' top.qcow2 >said || fail "what was written over a backing file"
clean top.qcow2
start_background split.qcow2 data-file=data.raw
qemu-io -f raw -c 'write -q -P 3 1M 64k' "nbd+unix:///?socket=$work/socket2" >said || fail "a data file"
stop_background
qemu-io -r -f raw -c 'read -q -P 3 1M 64k' data.raw >said || fail "what was written to a data file"

if command -v psktool >/dev/null; then
    echo "== TLS"
    psktool -u alice -p keys.psk >/dev/null 2>&1
    rm -f socket
    nbdkit -f -U socket --tls=require --tls-psk=keys.psk "$plugin" disk.qcow2 2>said &
    server=$!
    until_true test -S socket
    if nbdinfo "$uri" >said 2>&1; then fail "without TLS"; fi
    nbdinfo "nbds+unix://alice@/?socket=$work/socket&tls-psk-file=$work/keys.psk" >said 2>&1 || fail "TLS"
    grep -q 'with TLS' said || fail "no TLS"
    stop
fi

if fio --enghelp 2>/dev/null | grep -qw nbd; then
    echo "== fio"
    qemu-img create -q -f qcow2 fio.qcow2 64M
    start fio.qcow2
    fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --size=16M --iodepth=16 --verify=crc32c \
        --minimal >fio 2>&1 || { cp fio said; fail "fio"; }
    stop
    clean fio.qcow2
fi

echo "== ext4, killed"
serve() {
    start guest.qcow2
    nbdfuse mount/disk "$uri" 2>>said &
    view=$!
    until_true test -s mount/disk
    file=mount/disk
}
# A view without its server may end by itself, and stays mounted then.
crash() {
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=
    kill "$view" 2>/dev/null || true
    wait "$view" 2>/dev/null || true
    view=
    umount -l mount 2>/dev/null || true
}
stopped_by_end() { fusermount3 -u mount && { wait "$view" || true; view=; stop; }; }
if command -v nbdfuse >/dev/null && [ -w /dev/fuse ]; then
    mkdir mount
    qemu-img create -q -f qcow2 -o lazy_refcounts=on guest.qcow2 128M
    guest "$synced" guest.qcow2
fi
