#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Installs what is missing, builds, and shows the main job on a real image: create with lazy refcounts, write
# from eight threads, kill, reopen with repair, verify. QEMU's own check and reader have the last word.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
sh c-tests/deps.sh build
build=${QCOW2_BUILD:-$top/build-demo}
[ -f "$build/build.ninja" ] || meson setup "$build" >/dev/null
echo "== building the engine, qcow2-img and the example (some minutes the first time; cargo says where it is) =="
meson compile -C "$build" qcow2-img example-crash

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
img=$build/tools/qcow2-img
echo
"$build/examples/example-crash" "$work/disk.qcow2" "${1:-2}" "${2:-3}"

echo
echo "== what QEMU says =="
if command -v qemu-img >/dev/null 2>&1; then
    qemu-img --version | head -n 1
    qemu-img check "$work/disk.qcow2"
    qemu-img convert -f qcow2 -O raw "$work/disk.qcow2" "$work/disk.raw"
    ours=$("$img" checksum "$work/disk.qcow2")
    theirs=$("$img" checksum -f raw "$work/disk.raw")
    echo "contents as this library reads them: $ours"
    echo "contents as QEMU reads them:         $theirs"
    [ "${ours%% *}" = "${theirs%% *}" ] || { echo "they differ" >&2; exit 1; }
else
    echo "qemu-img is not installed; our own check instead:"
    "$img" check "$work/disk.qcow2"
fi
echo
echo "the main job works: create, crash, repair, nothing lost"
