#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: debian.sh [DIRECTORY]
#
# Builds the Debian packages of this tree (what git knows of it, as it is now) into DIRECTORY, by default build-debian; has
# lintian look at them; and in an empty Debian installs them, builds and runs a program with them, and removes them, after
# which nothing may be left. As root, on Debian; installs what it needs from the machine's package sources. It takes some
# minutes: meson's tests have the quick part of it (debian-lists, package, abi).
#
# QCOW2_DEBIAN_ROOT: a tar file with the empty Debian, made if it is not there. QCOW2_DEBIAN_PROFILES: build profiles.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${1:-$top/build-debian}")
tarball=${QCOW2_DEBIAN_ROOT:-$out/root.tar}
profiles=${QCOW2_DEBIAN_PROFILES:-}
[ "$(id -u)" = 0 ] || { echo "root is needed: packages are installed" >&2; exit 77; }
. "$top/c-tests/steps.sh"

need=()
for package in debhelper dh-exec dpkg-dev lintian meson mmdebstrap pkg-config; do
    dpkg-query -W -f '${Status}' $package 2>/dev/null | grep -q 'ok installed' || need+=($package)
done
if [ -z "$profiles" ]; then need+=(libfuse3-dev libnbd-dev nbdkit-plugin-dev); fi
[ ${#need[@]} = 0 ] || apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null || exit 1

version=$(sed -n '1s/^libqcow2 (\(.*\)).*/\1/p' "$top/debian/changelog")
source=$out/libqcow2-$version
[ -n "$version" ] || exit 1
rm -rf "$source" "$out"/*.deb "$out"/*.dsc "$out"/*.tar.xz "$out"/*.changes "$out"/*.buildinfo
mkdir -p "$source"
(cd "$top" && git ls-files -z | tar -c --null -T - | tar -x -C "$source") || exit 1

build() {
    # Where cargo is rustup's, no package can be asked for its version.
    local asked=()
    dpkg-query -W cargo >/dev/null 2>&1 || asked=(-d)
    mkdir -p "$out/cargo"
    (cd "$source" && QCOW2_CARGO_DIR=$out/cargo DEB_BUILD_PROFILES=$profiles dpkg-buildpackage -us -uc "${asked[@]}")
}
look() { lintian --fail-on error --info --allow-root "$out"/*.changes; }

# In the empty Debian: the list of its files before, while, and after.
files() { find "$1" -xdev \( -path "$1/proc" -o -path "$1/sys" -o -path "$1/var/lib/apt" -o -path "$1/var/cache" -o -path "$1/var/log" \
    -o -path "$1/var/lib/dpkg" -o -path "$1/tmp" -o -path "$1/dev" \) -prune -o -print | LC_ALL=C sort; }
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
install_and_use() {
    inside apt-get install -y -q --no-install-recommends "$@" >"$out/install.log" 2>&1 || { cat "$out/install.log"; return 1; }
    # A back end in a small C program, from what is installed alone.
    inside sh -euc 'cd /tmp
        for name in disk threads blockdev memory; do
            cp /usr/share/doc/libqcow2-dev/examples/$name.c .
            cc -D_GNU_SOURCE -Wall -Wextra -Werror $name.c $(pkg-config --cflags --libs qcow2) -pthread -o $name
            ./$name $name.qcow2
        done
        cc -static disk.c $(pkg-config --cflags --static --libs qcow2) -o static && ./static static.qcow2
        for name in disk threads blockdev static; do qcow2-img check -q $name.qcow2; done
        qcow2-io -c "read -P 0x68 512000 1" disk.qcow2'
}
# The files of the guide to embedding, as printed, by plain make.
follow_the_guide() {
    [ -f "$top/docs/embedding.md" ] || return 0
    mkdir "$root/tmp/guide"
    awk -v out="$root/tmp/guide" '
        /^```[a-z]+ [^ ]+$/ { file = out "/" $2; next }
        /^```/ { file = "" }
        file != "" { print > file }' "$top/docs/embedding.md"
    inside sh -euc 'cd /tmp/guide && make && ./emulator create disk.qcow2 1073741824 && ./emulator qcow2 disk.qcow2 &&
        qcow2-img check -q disk.qcow2'
}
remove() {
    inside apt-get purge -y -q "$@" >"$out/purge.log" 2>&1 || { cat "$out/purge.log"; return 1; }
    inside apt-get autoremove -y -q --purge >>"$out/purge.log" 2>&1
    rm -rf "$root"/tmp/*
}
try() {
    [ -f "$tarball" ] ||
        mmdebstrap --quiet --variant=minbase --include=gcc,libc6-dev,make,pkg-config "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$tarball" ||
        return 1
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    tar -x -C "$root" --exclude='./dev/*' -f "$tarball" || return 1
    mkdir -p "$root/dev"
    local device
    for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9"; do
        # shellcheck disable=SC2086 # a name and two numbers
        set -- $device
        mknod -m 666 "$root/dev/$1" c "$2" "$3" || return 1
    done
    cp "$out"/*_*.deb "$root/tmp/"
    inside apt-get update -qq || return 1
    # What the packages need of Debian itself is not what is looked at.
    files "$root" >"$out/before"
    local debs=() names=() name
    for name in libqcow2-0 libqcow2-dev qcow2-utils libqcow2-preload nbdkit-plugin-qcow2; do
        for file in "$root/tmp/${name}"_*.deb; do
            [ -f "$file" ] && debs+=("/tmp/$(basename "$file")") && names+=("$name")
        done
    done
    local status=0
    { install_and_use "${debs[@]}" && follow_the_guide && files "$root" >"$out/installed" && remove "${names[@]}"; } || status=1
    files "$root" >"$out/after"
    [ $status = 0 ] || return 1
    diff "$out/before" "$out/after" || { echo "the packages leave something"; return 1; }
    echo "$(comm -13 "$out/before" "$out/installed" | wc -l) files came and went"
}

root=$out/root
step "dpkg-buildpackage" build
step "lintian" look
step "install, use and remove in an empty Debian" try
summary
