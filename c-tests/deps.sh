#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Installs what building and testing need and this machine lacks. Debian; as root. "build" or "test".
set -eu

need=
have() { command -v "$1" >/dev/null 2>&1; }
want() { have "$1" || need="$need $2"; }

want meson meson
want ninja ninja-build
want pkg-config pkg-config
want cc gcc
want python3 python3
want qemu-img qemu-utils
if [ "${1:-build}" = test ]; then
    want g++ g++
    want valgrind valgrind
    # For the C tests under the sanitizers: libasan and libubsan come with gcc.
fi
if ! have cargo; then
    echo "cargo is missing: install Rust 1.85 or later (rustup, or a distribution's package)" >&2
    exit 1
fi
[ -n "$need" ] || exit 0
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "missing:$need (install them, or run this as root on Debian)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# QEMU 10 is what the tests compare with; Debian 12 has it among its backports.
if ! have qemu-img && apt-cache policy qemu-utils | grep -q bpo12; then
    apt-get install -y -qq -t bookworm-backports qemu-utils >/dev/null || true
fi
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $need >/dev/null
