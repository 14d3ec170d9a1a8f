#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Random lists of operations on two images that start alike: one written by our tools, one by the stock tools.

For each list, both images are made by the same commands, by the stock tools or by ours, with any create options that
the library opens: compat, cluster_size, refcount_bits, lazy_refcounts, preallocation, extended_l2, compression_type, data_file,
data_file_raw, backing files of every size, bitmaps; snapshots and compressed clusters come in between. Then both get the same steps:
sessions of qemu-io commands (write, vectored, asynchronous, zeroes, FUA, discard, read, flush, reopen, truncate), some
with copy on read, that end with a close or a kill, resize, commit, snapshot, check and repair. A model of plain bytes
says what a guest must see. After each step contents and `check` are compared, after some of them also `map` and `info`,
between the tools and between the images; differ/compare.py says what may differ.

Encryption is the matter of encryption.py.

A list depends on its seed and --ops only. A failing one is shrunk, and the line that replays it is printed.
"""

import argparse
import concurrent.futures
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time

from differ.runner import Runner
from differ.script import PROPERTIES, Script, keep_text, parse_keep
from differ.shrink import shrink
from differ.tools import Failure, find_tools


def default_seed():
    """The commit, so that every commit tries something new and says what."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              cwd=os.path.dirname(os.path.abspath(__file__)), check=True)
        return int(done.stdout[:8], 16)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return 1


def direct_io_works():
    with tempfile.NamedTemporaryFile(prefix="differential.") as file:
        try:
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
            return True
        except OSError:
            return False


class Bench:
    """Runs scripts with one set of tools."""

    program = "differential.py"

    def __init__(self, stock, ours, options):
        self.stock = stock
        self.ours = ours
        self.options = options
        self.direct = direct_io_works()

    def attempt(self, script, keep_images=None):
        """None, or the failure and the commands that led to it."""
        with tempfile.TemporaryDirectory(prefix="differential.") as directory:
            runner = self.runner(script, directory)
            try:
                runner.run()
                return None
            except Failure as failure:
                failure.text = str(failure).replace(directory, "DIR")
                failure.history = [line.replace(directory, "DIR") for line in runner.history]
                if keep_images:
                    shutil.copytree(directory, os.path.join(keep_images, "seed-%d" % script.seed), dirs_exist_ok=True)
                return failure

    def runner(self, script, directory):
        return Runner(script, self.stock, self.ours, directory, self.direct)

    def replay_line(self, script):
        options = self.options
        words = [self.program]
        for name, value in (("tools", options.tools if options.tools != "both" else None),
                            ("bin-dir", options.bin_dir), ("stock-dir", options.stock_dir)):
            if value:
                words += ["--" + name, value]
        words += ["--seed", str(script.seed), "--ops", str(script.op_count), "--count", "1"]
        if script.keep is not None:
            words += ["--keep", keep_text(script.keep)]
        if script.without:
            words += ["--without", ",".join(name for name in PROPERTIES if name in script.without)]
        return " ".join(words)

    def one(self, script):
        """The lines to print: none if the script passes."""
        failure = self.attempt(script, self.options.keep_images)
        if not failure:
            return []
        lines = ["FAILED seed %d: %s" % (script.seed, script), failure.text,
                 "replay: " + self.replay_line(script)]
        if self.options.shrink_seconds > 0:
            limit = time.monotonic() + self.options.shrink_seconds
            script, failure, tries = shrink(script, failure, self.attempt, limit)
            lines += ["shrunk (%d tries) to: %s" % (tries, script), failure.text]
            lines += ["    " + line for line in failure.history]
            lines.append("replay: " + self.replay_line(script))
        elif self.options.verbose:
            lines += ["    " + line for line in failure.history]
        return lines


def parse_options(description):
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--tools", choices=["both", "stock", "ours"], default="both",
                        help="both (default), or one set on both sides, as a test of this program or of one set alone")
    parser.add_argument("--bin-dir", help="where qcow2-img and qcow2-io are (default: PATH)")
    parser.add_argument("--stock-dir", help="where qemu-img and qemu-io are (default: PATH)")
    parser.add_argument("--count", type=int, default=30, help="number of lists (default 30; 500 for a long run)")
    parser.add_argument("--ops", type=int, default=50, help="operations in each (default 50)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the first list (default: from the commit)")
    parser.add_argument("--keep", help="steps and operations to keep, as a replay line has them")
    parser.add_argument("--without", default="", help="properties of the image to leave at their defaults")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="lists at a time")
    parser.add_argument("--shrink-seconds", type=int, default=90, help="for each failing list; 0: do not shrink")
    parser.add_argument("--keep-images", metavar="DIR", help="copy the images of a failed list to DIR")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each list; of a failed one each command")
    return parser.parse_args()


def main(script_class=Script, bench_class=Bench, description=__doc__, prepare=None):
    options = parse_options(description)
    stock = find_tools("stock", "qemu-", options.stock_dir) if options.tools != "ours" else None
    ours = find_tools("ours", "qcow2-", options.bin_dir) if options.tools != "stock" else None
    if options.tools == "stock":
        ours = stock
    elif options.tools == "ours":
        stock = ours
    if not stock or not ours:
        # A missing tool is a skip, not a failure.
        print("differential: tools not found")
        print("0 passed, 0 failed, %d skipped" % options.count)
        return 0

    if prepare:
        prepare(stock, ours)
    seed = default_seed() if options.seed is None else options.seed
    keep = parse_keep(options.keep) if options.keep is not None else None
    without = [name for name in options.without.split(",") if name]
    scripts = [script_class(seed + index, options.ops, keep, without) for index in range(options.count)]
    bench = bench_class(stock, ours, options)
    print("differential: seeds %d to %d, %d operations each" % (seed, seed + options.count - 1, options.ops), flush=True)
    passed = failed = 0
    properties, pairs, steps = set(), set(), 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for script, lines in zip(scripts, pool.map(bench.one, scripts)):
            steps += len(script.steps)
            words = script.properties()
            properties.update(words)
            pairs.update(itertools.combinations(sorted(words), 2))
            if options.verbose:
                print("seed %d: %s: %s" % (script.seed, "FAILED" if lines else "ok", script), flush=True)
            if lines:
                failed += 1
                print("\n".join(lines), flush=True)
            else:
                passed += 1
            if not options.verbose and (passed + failed) % 10 == 0:
                print("%d of %d" % (passed + failed, options.count), flush=True)
    print("%d steps compared; images with %d properties and %d pairs of them" % (steps, len(properties), len(pairs)))
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
