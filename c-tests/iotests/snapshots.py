#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Random lists of write, zero, discard, snapshot create, apply and delete on three images that start alike: one that our
tools change, one that the stock tools change, and one that both change in turn. In the end, and now and then before,
both tools read each snapshot of each image back, and the disk; a model of plain bytes says what they must read.

A list depends on its seed and --ops only; a failing one is printed as the commands that led to it.
"""

import argparse
import concurrent.futures
import os
import random
import shlex
import shutil
import sys
import tempfile

from differ.tools import Failure, find_tools
from differential import default_seed

KIB = 1024
NAME = "disk.qcow2"
MOST_SNAPSHOTS = 6


class Geometry:
    """What the images of a list are made with."""

    def __init__(self, rng):
        self.version = 2 if rng.random() < 0.2 else 3
        self.extended = self.version == 3 and rng.random() < 0.2
        self.cluster = KIB << (rng.choice([4, 6]) if self.extended else rng.choice([0, 2, 4, 6, 6]))
        self.size = rng.randrange(1, 3 * KIB) * 512 + rng.randrange(2) * 512 * KIB
        self.backing = rng.randrange(1, 2 * KIB) * 512 if rng.random() < 0.4 else None
        bits = 16 if self.version == 2 else rng.choice([4, 8, 16, 16, 16, 64])
        lazy = self.version == 3 and rng.random() < 0.3
        self.options = "compat=%s,cluster_size=%d,refcount_bits=%d,lazy_refcounts=%s%s" % (
            "0.10" if self.version == 2 else "1.1", self.cluster, bits, "on" if lazy else "off",
            ",extended_l2=on" if self.extended else "")


class Disk:
    """What the disk and its snapshots hold."""

    def __init__(self, contents):
        self.now = bytearray(contents)
        # (ID, name, contents), in table order.
        self.snapshots = []

    def next_id(self):
        return str(1 + max((int(one[0]) for one in self.snapshots), default=0))

    def meant(self, text):
        """The snapshot that `-a` means: an ID goes before a name."""
        return next((one for key in (0, 1) for one in self.snapshots if one[key] == text), None)


class List:
    """One list of operations, and the images that it is run on."""

    def __init__(self, seed, ops, tools, directory):
        self.rng = random.Random(seed)
        self.ops = ops
        self.tools = tools
        self.directory = directory
        self.history = []
        self.read_back = 0
        self.geometry = Geometry(self.rng)
        base = bytes(self.rng.randrange(1, 256) for _ in range(512)) * ((self.geometry.backing or 0) // 512)
        contents = base[:self.geometry.size]
        self.disk = Disk(contents + bytes(self.geometry.size - len(contents)))
        if base:
            with open(os.path.join(directory, "base.raw"), "wb") as file:
                file.write(base)
        self.images = {"ours": ["ours"], "stock": ["stock"], "both": ["ours", "stock"]}
        for name in self.images:
            os.mkdir(os.path.join(directory, name))
            below = ["-b", os.path.join("..", "base.raw"), "-F", "raw"] if base else []
            self.call(name, "stock", "img", ["create", "-q", "-f", "qcow2", "-o", self.geometry.options] + below
                      + [NAME, str(self.geometry.size)])

    def call(self, image, side, program, arguments):
        path = getattr(self.tools[side], program)
        self.history.append("cd %s; %s" % (image, shlex.join([os.path.basename(path)] + arguments)))
        return self.tools[side].run(program, arguments, os.path.join(self.directory, image))

    def change(self, program, arguments):
        for image, sides in self.images.items():
            self.call(image, self.rng.choice(sides), program, arguments)

    def run(self):
        for _ in range(self.ops):
            kinds = ["io"] * 4 + ["create"] * 2 + (["apply", "delete"] if self.disk.snapshots else [])
            getattr(self, "do_" + self.rng.choice(kinds))()
            if self.rng.random() < 0.08:
                self.read_all()
        self.read_all()
        for image in self.images:
            for side in self.tools:
                self.call(image, side, "img", ["check", "-q", "-f", "qcow2", NAME])

    def extent(self):
        """A range, mostly small, often at a boundary of clusters."""
        rng, size, cluster = self.rng, self.geometry.size, self.geometry.cluster
        offset = rng.randrange(0, size, 512)
        if rng.random() < 0.5:
            offset = offset // cluster * cluster
        length = rng.choice([512 * rng.randrange(1, 9), cluster * rng.randrange(1, 5), rng.randrange(512, size + 512)])
        return offset, min((length + 511) // 512 * 512, size - offset)

    def do_io(self):
        commands = []
        for _ in range(self.rng.randrange(1, 5)):
            offset, length = self.extent()
            kind = self.rng.choice(["write", "write", "write", "zero", "zero -u", "discard"])
            if kind == "write":
                value = self.rng.randrange(1, 256)
                commands += ["-c", "write -q -P %d %d %d" % (value, offset, length)]
                self.disk.now[offset:offset + length] = bytes([value]) * length
            elif kind != "discard":
                commands += ["-c", "write -q -z%s %d %d" % (" -u" if kind == "zero -u" else "", offset, length)]
                self.disk.now[offset:offset + length] = bytes(length)
            elif self.geometry.version == 3 or not self.geometry.backing:
                # Of whole clusters, which then read as zeroes; version 2 cannot say so over a backing file.
                cluster = self.geometry.cluster
                first, end = -(-offset // cluster) * cluster, (offset + length) // cluster * cluster
                if first < end:
                    commands += ["-c", "discard -q %d %d" % (first, end - first)]
                    self.disk.now[first:end] = bytes(end - first)
        if commands:
            self.change("io", ["-f", "qcow2", "-d", "unmap"] + commands + [NAME])

    def do_create(self):
        if len(self.disk.snapshots) >= MOST_SNAPSHOTS:
            return self.do_delete()
        names = [one[1] for one in self.disk.snapshots]
        # Some are called like the ID of another one.
        name = self.rng.choice([name for name in ["1", "2", "3", "a", "b c", "d,e=f", "gg", "h"] if name not in names])
        self.disk.snapshots.append((self.disk.next_id(), name, bytes(self.disk.now)))
        return self.change("img", ["snapshot", "-q", "-c", name, NAME])

    def do_apply(self):
        wanted = self.rng.choice(self.rng.choice(self.disk.snapshots)[:2])
        self.disk.now = bytearray(self.disk.meant(wanted)[2])
        self.change("img", ["snapshot", "-q", "-a", wanted, NAME])

    def do_delete(self):
        gone = self.rng.choice(self.disk.snapshots)
        self.disk.snapshots.remove(gone)
        self.change("img", ["snapshot", "-q", "-d", gone[1], NAME])

    def read_all(self):
        """Both tools read every snapshot of every image, and the disk."""
        listed = [{"id": one[0], "name": one[1]} for one in self.disk.snapshots]
        for image in self.images:
            for side in self.tools:
                info = self.tools[side].json(["info", "--output=json", "-f", "qcow2", NAME],
                                             os.path.join(self.directory, image))
                found = [{key: one[key] for key in ("id", "name")} for one in info.get("snapshots", [])]
                if found != listed:
                    raise Failure("list", "%s lists the snapshots of image %s as %s, must be %s" %
                                  (side, image, found, listed))
                self.read(image, side, [], "the disk", self.disk.now)
                for one in self.disk.snapshots:
                    how = self.rng.choice(["snapshot.id=" + one[0], "snapshot.name=" + one[1].replace(",", ",,")])
                    self.read(image, side, ["-l", how], "snapshot %s (%s)" % one[:2], one[2])

    def read(self, image, side, which, what, wanted):
        self.call(image, side, "img", ["convert", "-f", "qcow2", "-O", "raw"] + which + [NAME, "read.raw"])
        with open(os.path.join(self.directory, image, "read.raw"), "rb") as file:
            found = file.read()
        self.read_back += 1
        if found != wanted:
            at = next((i for i, pair in enumerate(zip(found, wanted)) if pair[0] != pair[1]), min(len(found), len(wanted)))
            raise Failure("contents", "%s reads %s of image %s: %d bytes, must be %d; they differ from %d on" %
                          (side, what, image, len(found), len(wanted), at))


def one(seed, options, tools):
    """How many disks were read back, and the lines to print: none if the list passes."""
    with tempfile.TemporaryDirectory(prefix="snapshots.") as directory:
        ran = None
        try:
            ran = List(seed, options.ops, tools, directory)
            ran.run()
            return ran.read_back, []
        except Failure as failure:
            if options.keep_images:
                shutil.copytree(directory, os.path.join(options.keep_images, "seed-%d" % seed), dirs_exist_ok=True)
            history = ["    " + line for line in ran.history] if ran else []
            return 0, ["FAILED seed %d" % seed, str(failure)] + history + [
                "replay: snapshots.py --bin-dir %s --seed %d --ops %d --count 1" % (options.bin_dir, seed, options.ops)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bin-dir", help="where qcow2-img and qcow2-io are (default: PATH)")
    parser.add_argument("--count", type=int, default=8, help="number of lists (default 8; 500 for a long run)")
    parser.add_argument("--ops", type=int, default=16, help="operations in each (default 16)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the first list (default: from the commit)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="lists at a time")
    parser.add_argument("--keep-images", metavar="DIR", help="copy the images of a failed list to DIR")
    options = parser.parse_args()
    tools = {"ours": find_tools("ours", "qcow2-", options.bin_dir), "stock": find_tools("stock", "qemu-", None)}
    if None in tools.values():
        # A missing tool is a skip, not a failure.
        print("snapshots: tools not found\n0 passed, 0 failed, %d skipped" % options.count)
        return 0
    seed = default_seed() if options.seed is None else options.seed
    print("snapshots: seeds %d to %d, %d operations each" % (seed, seed + options.count - 1, options.ops), flush=True)
    failed = read_back = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for count, lines in pool.map(lambda s: one(s, options, tools), range(seed, seed + options.count)):
            read_back += count
            failed += bool(lines)
            if lines:
                print("\n".join(lines), flush=True)
    print("%d disks and snapshots read back and equal" % read_back)
    print("%d passed, %d failed, 0 skipped" % (options.count - failed, failed))
    return 1 if failed or read_back == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
