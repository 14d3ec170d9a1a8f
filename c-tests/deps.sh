#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Installs what building and testing need and this machine lacks. Debian; as root. "build", "test", "clients" or "bench".
set -eu

need=
have() { command -v "$1" >/dev/null 2>&1; }
want() { have "$1" || need="$need $2"; }

want meson meson
want ninja ninja-build
want pkg-config pkg-config
want cc gcc
# Without recommended packages gcc has no headers.
if ! echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1; then need="$need libc6-dev"; fi
want python3 python3
if [ "${1:-build}" = test ]; then
    want g++ g++
    want valgrind valgrind
    want abidiff abigail-tools
    # The manual is checked by both programs that show it, and the guide's build files by what reads them.
    want groff groff
    want mandoc mandoc
    want zsh zsh
    want make make
    want cmake cmake
    want autoreconf autoconf
    want automake automake
fi
# Programs that must work on images by way of the clients; a check whose program is missing is left out.
clients=
if [ "${1:-build}" = test ] || [ "${1:-build}" = clients ]; then
    for pair in sfdisk:fdisk parted:parted mke2fs:e2fsprogs mkfs.xfs:xfsprogs mkfs.vfat:dosfstools mcopy:mtools fio:fio \
        nbdkit:nbdkit nbdcopy:libnbd-bin busybox:busybox-static sgdisk:gdisk mkfs.btrfs:btrfs-progs cpio:cpio file:file \
        mksquashfs:squashfs-tools xorriso:xorriso rsync:rsync zstd:zstd sqlite3:sqlite3 xxd:xxd zsh:zsh perl:perl \
        node:nodejs openssl:openssl pdp11:simh bochs:bochs; do
        have "${pair%%:*}" || clients="$clients ${pair#*:}"
    done
    for pair in fusermount3:fuse3 psktool:gnutls-bin; do
        have "${pair%%:*}" || clients="$clients ${pair#*:}"
    done
    # What they are built with: without it they are left out.
    for pair in nbdkit:nbdkit-plugin-dev libnbd:libnbd-dev fuse3:libfuse3-dev; do
        pkg-config --exists "${pair%%:*}" 2>/dev/null || clients="$clients ${pair#*:}"
    done
    [ -e /usr/share/bochs/BIOS-bochs-latest ] || clients="$clients bochsbios"
    [ -e /usr/share/vgabios/vgabios.bin ] || clients="$clients vgabios"
fi
if [ "${1:-build}" = bench ]; then
    want strace strace
    # What the codecs alone can do is measured with these.
    [ -n "$(ldconfig -p | grep libdeflate.so.0)" ] || need="$need libdeflate0"
    [ -n "$(ldconfig -p | grep libzstd.so.1)" ] || need="$need libzstd1"
fi
rust=$(cargo --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
if [ "${rust:-0}" -lt 85 ]; then
    echo "Rust 1.85 or later is needed, by rustup (Debian 12's own is older); found: $(cargo --version 2>&1)" >&2
    exit 1
fi

# QEMU 10 is what the tests compare with, which a Debian 12 has only where its backports are among the machine's sources;
# its own 7.2 does for the demo. No source is added here.
qemu_major=0
if have qemu-img; then
    qemu_major=$(qemu-img --version | sed -n '1s/^qemu-img version \([0-9]*\).*/\1/p')
fi
wanted_major=1
[ "${1:-build}" = build ] || wanted_major=10
can_install=yes
have apt-get && [ "$(id -u)" = 0 ] || can_install=no
if [ -n "$need" ] && [ $can_install = no ]; then
    echo "missing:$need (install them, or run this as root on Debian)" >&2
    exit 1
fi
qemu=
[ "${qemu_major:-0}" -ge $wanted_major ] || [ $can_install = no ] || qemu=qemu-utils
[ $can_install = yes ] || clients=
if [ -n "$need$qemu$clients" ]; then
    echo "installing from this machine's package sources:$need $qemu$clients" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    [ -z "$need" ] || apt-get install -y -qq --no-install-recommends $need >/dev/null
    # shellcheck disable=SC2086 # a list of words
    [ -z "$clients" ] || apt-get install -y -qq --no-install-recommends $clients >/dev/null ||
        echo "less is tested of the clients, for these cannot be installed:$clients" >&2
    backports=
    [ $wanted_major = 1 ] || backports=$(apt-cache policy | sed -n 's/.*n=\([a-z]*-backports\).*/-t \1/p' | head -n 1)
    # shellcheck disable=SC2086 # two words or none
    [ -z "$qemu" ] || apt-get install -y -qq --no-install-recommends $backports $qemu >/dev/null ||
        apt-get install -y -qq --no-install-recommends $qemu >/dev/null || echo "qemu-utils cannot be installed" >&2
fi
if have qemu-img; then
    qemu_major=$(qemu-img --version | sed -n '1s/^qemu-img version \([0-9]*\).*/\1/p')
fi
if [ "${qemu_major:-0}" -lt $wanted_major ]; then
    echo "QEMU's tools here are ${qemu_major:-none}, not 10: less is compared (Debian 12: bookworm-backports has them)" >&2
fi
