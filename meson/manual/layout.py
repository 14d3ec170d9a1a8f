#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Draws how an image is laid out, from an image that it makes: every cluster of the file, and what leads to what.

usage: layout.py BIN-DIR OUTPUT.svg

The image is always the same, so the picture is. docs/layout.svg is what it gives; a test compares them.
"""

import os
import struct
import subprocess
import sys
import tempfile
from collections import namedtuple

CLUSTER = 4096
OFFSET = 0x00FFFFFFFFFFFE00
COMPRESSED, ZERO = 1 << 62, 1

Kind = namedtuple("Kind", "name colour")
KINDS = {
    "header": Kind("header", "#d9534f"), "refcount table": Kind("refcount table", "#8e6bbf"),
    "refcount block": Kind("refcount block", "#b79be0"), "l1": Kind("L1 table", "#2f6fb0"),
    "l2": Kind("L2 table", "#7fb2e5"), "data": Kind("data", "#5aa469"),
    "compressed": Kind("compressed", "#a6d189"), "snapshots": Kind("snapshot table", "#d08a2e"),
    "snapshot l1": Kind("L1 of a snapshot", "#e8b66b"), "free": Kind("free", "#dddddd"),
}


def make_image(bin_dir, path):
    def run(tool, *arguments):
        subprocess.run([os.path.join(bin_dir, tool), *arguments], check=True, stdout=subprocess.DEVNULL)
    run("qcow2-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, "8M")
    run("qcow2-io", "-c", "write 0 8k", "-c", "write 3M 4k", path)
    run("qcow2-io", "-c", "write -c 1M 4k", "-c", "write -c 1028k 4k", path)
    run("qcow2-img", "snapshot", "-c", "before the upgrade", path)
    run("qcow2-io", "-c", "write -P 1 4k 4k", "-c", "write -z 64k 64k", path)


class Image:
    """What each cluster of the file is, and the references between them: (from, to, text)."""

    def __init__(self, data):
        self.data = data
        self.count = (len(data) + CLUSTER - 1) // CLUSTER
        self.kinds = {}
        self.notes = {}
        self.references = []
        fields = struct.unpack_from(">4sIQIIQIIQQIIQ", data)
        self.l1_size, self.l1_offset, table, table_clusters, self.snapshots, snapshots_at = fields[7:13]
        self.put(0, "header")
        for number in range(table_clusters):
            self.put(table // CLUSTER + number, "refcount table", 0)
        for at in range(table, table + table_clusters * CLUSTER, 8):
            block = self.word(at) & ~511
            if block:
                self.put(block // CLUSTER, "refcount block", table // CLUSTER)
        self.tables(self.l1_offset, self.l1_size, "l1", 0)
        if self.snapshots:
            self.put(snapshots_at // CLUSTER, "snapshots", 0)
            offset, size = struct.unpack_from(">QI", data, snapshots_at)
            self.tables(offset, size, "snapshot l1", snapshots_at // CLUSTER)

    def word(self, at):
        return struct.unpack_from(">Q", self.data, at)[0]

    def put(self, cluster, kind, leader=None, note=None):
        self.kinds.setdefault(cluster, kind)
        if note and note not in self.notes.setdefault(cluster, []):
            self.notes[cluster].append(note)
        if leader is not None and (leader, cluster) not in self.references:
            self.references.append((leader, cluster))

    def tables(self, l1_offset, l1_size, kind, leader):
        self.put(l1_offset // CLUSTER, kind, leader)
        for number in range(l1_size):
            l2 = self.word(l1_offset + 8 * number) & OFFSET
            if l2:
                self.put(l2 // CLUSTER, "l2", l1_offset // CLUSTER)
                self.entries(l2, number)

    def entries(self, l2, number):
        for slot in range(CLUSTER // 8):
            entry = self.word(l2 + 8 * slot)
            guest = (number * (CLUSTER // 8) + slot) * CLUSTER
            note = f"{guest >> 20}M" if guest % (1 << 20) == 0 else f"{guest >> 10}k"
            note = note if guest else "0"
            if entry & COMPRESSED:
                # 62 - (cluster_bits - 8) bits of offset; the sectors behind it are not needed for a picture.
                offset = entry & ((1 << (62 - (12 - 8))) - 1)
                self.put(offset // CLUSTER, "compressed", l2 // CLUSTER, note)
            elif entry & OFFSET and not entry & ZERO:
                self.put((entry & OFFSET) // CLUSTER, "data", l2 // CLUSTER, note)


BOX, GAP, LEFT, MIDDLE, HIGH, BOTTOM = 52, 8, 24, 150, 74, 366


def centre(cluster):
    return LEFT + cluster * (BOX + GAP) + BOX / 2


def wrapped(text):
    return {"refcount table": ["refcount", "table"], "refcount block": ["refcount", "block"],
            "L1 table": ["L1", "table"], "L2 table": ["L2", "table"], "snapshot table": ["snapshot", "table"],
            "L1 of a snapshot": ["L1 of a", "snapshot"], "compressed": ["com-", "pressed"]}.get(text, [text])


def arc(leader, cluster, kinds, spread):
    """Above the file what leads to guest data, below it counts and snapshots."""
    below = {"refcount table", "refcount block", "snapshots", "snapshot l1"} & {kinds[cluster], kinds[leader]}
    start, end = centre(leader) + spread, centre(cluster)
    edge = MIDDLE + HIGH if below else MIDDLE
    height = 26 + 15 * abs(cluster - leader) ** 0.82
    top = edge + height if below else edge - height
    colour = KINDS[kinds[cluster]].colour
    tip = "5,7 -5,7" if below else "5,-7 -5,-7"
    return (f'<path d="M{start:.1f},{edge} C{start:.1f},{top:.1f} {end:.1f},{top:.1f} {end:.1f},{edge}" fill="none" '
            f'stroke="{colour}" stroke-width="1.8"/>'
            f'<polygon points="0,0 {tip}" transform="translate({end:.1f},{edge})" fill="{colour}"/>')


def box(cluster, kind, notes):
    left, name = LEFT + cluster * (BOX + GAP), KINDS[kind]
    out = [f'<rect x="{left}" y="{MIDDLE}" width="{BOX}" height="{HIGH}" rx="4" fill="{name.colour}"/>',
           f'<text x="{centre(cluster)}" y="{MIDDLE + HIGH - 6}" class="number">{cluster}</text>']
    for number, line in enumerate(wrapped(name.name)):
        out.append(f'<text x="{centre(cluster)}" y="{MIDDLE + 15 + 12 * number}">{line}</text>')
    for number, note in enumerate(notes):
        out.append(f'<text x="{centre(cluster)}" y="{MIDDLE + 41 + 12 * number}" class="guest">{note}</text>')
    return "".join(out)


def draw(image):
    width = 2 * LEFT + image.count * (BOX + GAP) - GAP
    kinds = {cluster: image.kinds.get(cluster, "free") for cluster in range(image.count)}
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {BOTTOM}" font-family="sans-serif" '
           'font-size="10.5" text-anchor="middle">',
           "<style>.number{fill:#0008;font-size:9px}.guest{font-weight:bold}.say{font-size:12px;text-anchor:start}"
           "</style>", f'<rect width="{width}" height="{BOTTOM}" fill="#fff"/>',
           f'<text x="{LEFT}" y="22" class="say">From the guest to its bytes: header, L1 table, L2 table, cluster. '
           "Bold: where a cluster is on the guest's disk.</text>",
           f'<text x="{LEFT}" y="{BOTTOM - 14}" class="say">Who owns what: header, refcount table, refcount block, which '
           "has a count for each cluster; and a snapshot with its own tables.</text>"]
    leaders = {}
    for leader, cluster in image.references:
        spread = leaders.setdefault(leader, 0)
        leaders[leader] += 1
        out.append(arc(leader, cluster, kinds, -14 + 5 * (spread % 6)))
    out += [box(cluster, kind, image.notes.get(cluster, [])) for cluster, kind in kinds.items()]
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "disk.qcow2")
        make_image(sys.argv[1], path)
        with open(path, "rb") as file:
            image = Image(file.read())
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(draw(image))


if __name__ == "__main__":
    main()
