#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every create option and every pair of them, with values other than the default: an image made by either side, written
by the other, read back equal and checked clean by both.

The options are those that `qemu-img create -f qcow2 -o help` lists, encryption apart. A pair that the stock tool refuses
must be refused by ours as well, and the other way round. An ordinary run takes a sample by the seed; --all takes all.
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from differ.tools import Failure, find_tools

KIB = 1 << 10
SIZE = 3 << 20
BASE_SIZE = 2 << 20

# Values for each option that lead to different images. An option of the stock tool that is not here is a failure.
VALUES = {
    "backing_file": ["base.qcow2", "base.raw"],
    "backing_fmt": [],  # goes with backing_file
    "cluster_size": ["512", "4k", "16k", "2M"],
    "compat": ["0.10", "1.1"],
    "compression_type": ["zlib", "zstd"],
    "data_file": ["disk.data"],
    "data_file_raw": ["on"],
    "extended_l2": ["on"],
    "lazy_refcounts": ["on"],
    "preallocation": ["metadata", "falloc", "full"],
    "refcount_bits": ["1", "8", "64"],
    "size": ["1048576", "1049088"],
}
# What ours refuses though the stock tool does not, for want of code. It is to be empty.
NOT_YET = ()


def stock_options(stock):
    text = stock.run("img", ["create", "-f", "qcow2", "-o", "help"], ".").stdout.decode()
    names = [line.split("=")[0].strip() for line in text.splitlines() if line.startswith("  ")]
    return [name for name in names if not name.startswith("encrypt")]


def settings(names):
    """Each option by itself and each pair of two different ones, every value with every other."""
    single = [((name, value),) for name in names for value in VALUES[name]]
    pairs = [(a[0], b[0]) for a, b in itertools.combinations(single, 2) if a[0][0] != b[0][0]]
    return [()] + single + pairs


def option_text(setting):
    words = ["%s=%s" % pair for pair in setting]
    for name, value in setting:
        if name == "backing_file":
            words.append("backing_fmt=" + value.rsplit(".", 1)[1])
    return ",".join(words)


class Case:
    """One setting, made by `maker` and written by `writer`."""

    def __init__(self, setting, maker, writer, directory):
        self.options = option_text(setting)
        self.names = dict(setting)
        self.maker = maker
        self.writer = writer
        self.directory = directory
        self.size = int(self.names.get("size", SIZE))
        self.compressed = "data_file" not in self.names and "data_file_raw" not in self.names
        self.model = bytearray(self.size)

    def __str__(self):
        return "-o '%s', made by %s, written by %s" % (self.options, self.maker.name, self.writer.name)

    def prepare(self):
        """What may be below. The same bytes in both formats."""
        below = bytes([7]) * (BASE_SIZE // 2) + bytes([8]) * (BASE_SIZE // 2)
        with open(os.path.join(self.directory, "base.raw"), "wb") as file:
            file.write(below)
        if "backing_file" in self.names:
            self.maker.run("img", ["convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2"], self.directory)
            length = min(self.size, BASE_SIZE)
            self.model[:length] = below[:length]

    def create(self):
        arguments = ["create", "-q", "-f", "qcow2"]
        if self.options:
            arguments += ["-o", self.options]
        if "size" not in self.names:
            arguments += ["disk.qcow2", str(SIZE)]
        else:
            arguments.append("disk.qcow2")
        return self.maker.run("img", arguments, self.directory, expect=None)

    def fill(self, offset, length, value):
        length = min(length, self.size - offset)
        self.model[offset:offset + length] = bytes([value]) * length
        return offset, length

    def write(self):
        """In the first cluster and over the ends of others, zeroes, and a compressed cluster."""
        commands = []
        for value, offset, length in ((1, 0, 5 * KIB), (2, 100 * KIB + 512, 70 * KIB), (3, 900 * KIB, 120 * KIB)):
            commands.append("write -P %d %d %d" % ((value,) + self.fill(offset, length, value)))
        for flag, offset, length in (("-z", 20 * KIB, 64 * KIB), ("-z -u", 920 * KIB, 40 * KIB)):
            commands.append("write %s %d %d" % ((flag,) + self.fill(offset, length, 0)))
        arguments = ["-f", "qcow2"]
        for command in commands:
            arguments += ["-c", command]
        self.writer.run("io", arguments + ["disk.qcow2"], self.directory)

    def compress(self):
        """Over an empty place of the disk, where the whole cluster is one value."""
        cluster = {"512": 512, "4k": 4 * KIB, "16k": 16 * KIB, "2M": 2 << 20}.get(self.names.get("cluster_size"), 64 * KIB)
        if not self.compressed or cluster > 64 * KIB or self.names.get("preallocation", "off") != "off":
            return
        offset, length = self.fill(512 * KIB, cluster, 9)
        self.writer.run("io", ["-f", "qcow2", "-c", "write -c -P 9 %d %d" % (offset, length), "disk.qcow2"], self.directory)

    def read(self, reader):
        reader.run("img", ["convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "read.raw"], self.directory)
        with open(os.path.join(self.directory, "read.raw"), "rb") as file:
            data = file.read()
        if data != bytes(self.model):
            first = next((i for i, (a, b) in enumerate(zip(data, self.model)) if a != b), min(len(data), self.size))
            raise Failure("contents", "%s reads %d bytes, %d expected; byte %d differs" % (
                reader.name, len(data), self.size, first))

    def run(self, tools):
        self.prepare()
        done = self.create()
        if done.returncode != 0:
            return False
        self.write()
        self.compress()
        for reader in tools:
            self.read(reader)
            reader.run("img", ["check", "-q", "-f", "qcow2", "disk.qcow2"], self.directory)
        if self.names.get("data_file_raw") == "on":
            with open(os.path.join(self.directory, self.names["data_file"]), "rb") as file:
                if file.read(self.size) != bytes(self.model):
                    raise Failure("contents", "the raw data file is not what the disk shows")
        return True


def try_case(setting, maker, writer, tools):
    """Whether the setting was accepted, and what was wrong."""
    with tempfile.TemporaryDirectory(prefix="option-pairs.") as directory:
        case = Case(setting, maker, writer, directory)
        try:
            return case.run(tools), None
        except Failure as failure:
            return True, "%s: %s" % (case, str(failure).replace(directory, "DIR"))


def judge(setting, tools):
    """How many images were looked at, and what was wrong."""
    stock, ours = tools
    answers = [try_case(setting, maker, writer, tools) for maker, writer in ((stock, ours), (ours, stock))]
    wrong = [text for _, text in answers if text]
    accepted = [answer for answer, _ in answers]
    if accepted[0] != accepted[1] and not any(name in NOT_YET for name, _ in setting):
        wrong.append("-o '%s' is accepted by %s only" % (option_text(setting), "stock" if accepted[0] else "ours"))
    return sum(accepted), wrong


def seed_of_commit():
    text = os.environ.get("QCOW2_TEST_SEED")
    if text:
        return int(text)
    done = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, check=False,
                          cwd=os.path.dirname(os.path.abspath(__file__)))
    return int(done.stdout, 16) if done.returncode == 0 else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin-dir", help="where qcow2-img and qcow2-io are (default: PATH)")
    parser.add_argument("--stock-dir", help="where qemu-img and qemu-io are (default: PATH)")
    parser.add_argument("--all", action="store_true", help="every pair, not a sample")
    parser.add_argument("--seconds", type=float, default=20, help="length of an ordinary run (default 20)")
    parser.add_argument("--seed", type=int, default=None, help="of the sample (default: from the commit)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="settings at a time")
    parser.add_argument("--only", help="one setting: name=value,name=value")
    options = parser.parse_args()
    stock = find_tools("stock", "qemu-", options.stock_dir)
    ours = find_tools("ours", "qcow2-", options.bin_dir)
    if not stock or not ours:
        print("skipped: no %s" % ("qemu-img and qemu-io" if not stock else "qcow2-img and qcow2-io"))
        return 77
    names = stock_options(stock)
    unknown = [name for name in names if name not in VALUES]
    if unknown or len(names) < 10:
        print("the stock tool's options are %s: no values for %s" % (names, unknown))
        return 1
    todo = settings(names)
    seed = seed_of_commit() if options.seed is None else options.seed
    if options.only:
        todo = [tuple(tuple(word.split("=", 1)) for word in options.only.split(","))]
    elif not options.all:
        # Each option by itself first: a pair of what does not work tells nothing.
        singles = [setting for setting in todo if len(setting) < 2]
        pairs = [setting for setting in todo if len(setting) == 2]
        random.Random("option pairs %d" % seed).shuffle(pairs)
        todo = singles + pairs
    limit = time.monotonic() + (1e9 if options.all or options.only else options.seconds)
    tried, images, wrong = 0, 0, []
    with ThreadPoolExecutor(options.jobs) as pool:
        def work(setting):
            return judge(setting, (stock, ours)) if time.monotonic() < limit else None
        for setting, answer in zip(todo, pool.map(work, todo)):
            if answer:
                tried += 1
                images += answer[0]
                wrong += ["%s\nreplay: option-pairs.py --only '%s'" % (text, ",".join("%s=%s" % p for p in setting))
                          for text in answer[1]]
    for text in wrong:
        print(text)
    print("%d of %d settings, %d images, seed %d: %d failures" % (tried, len(todo), images, seed, len(wrong)))
    return 1 if wrong or images == 0 or (not options.only and tried < 20) else 0


if __name__ == "__main__":
    sys.exit(main())
