#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Installs what building and testing need and this machine lacks. Debian; as root. "build", "test" or "bench".
set -eu

need=
have() { command -v "$1" >/dev/null 2>&1; }
want() { have "$1" || need="$need $2"; }

want meson meson
want ninja ninja-build
want pkg-config pkg-config
want cc gcc
want python3 python3
if [ "${1:-build}" = test ]; then
    want g++ g++
    want valgrind valgrind
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

# QEMU 10 is what the tests compare with. Debian 12 itself has 7.2; its backports have 10.
qemu_major=0
if have qemu-img; then
    qemu_major=$(qemu-img --version | sed -n '1s/^qemu-img version \([0-9]*\).*/\1/p')
fi
[ -n "$need" ] || [ "$qemu_major" -lt 10 ] || exit 0
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    [ "$qemu_major" -ge 10 ] || need="$need qemu-utils"
    echo "missing:$need (install them, or run this as root on Debian)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if [ -n "$need" ]; then
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -qq --no-install-recommends $need >/dev/null
fi
[ "$qemu_major" -lt 10 ] || exit 0
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
backports=
if [ "$codename" = bookworm ]; then
    # The mirror that the machine uses already.
    # shellcheck disable=SC2016 # apt-get's own variables
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Identifier: Packages' |
        awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
    if [ -n "$mirror" ] && ! apt-cache policy | grep -q bookworm-backports; then
        echo "deb $mirror bookworm-backports main" >/etc/apt/sources.list.d/libqcow2-backports.list
        apt-get update -qq || true
    fi
    backports="-t bookworm-backports"
fi
# shellcheck disable=SC2086 # two words or none
apt-get install -y -qq --no-install-recommends $backports qemu-utils >/dev/null ||
    apt-get install -y -qq --no-install-recommends qemu-utils >/dev/null
