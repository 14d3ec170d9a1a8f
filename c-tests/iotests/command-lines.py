#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Generated command lines for every subcommand and every pair of its options, good and bad ones, and scripts of several:
run by the stock tools and by ours (under the stock names) in folders that start alike. Exit codes, filtered output, the
files that are there afterwards and what the images show must be the same; docs/differences.md lists where we mean to differ.

A case depends on its seed and number only. The report sorts what differs by cause, the most frequent first.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import shlex
import shutil
import sys
import tempfile

from differ.tools import find_tools
from differential import default_seed
from lines.fixture import make
from lines.generate import cases
from lines.judge import Judge
from lines.meant import RULES, meant


def cause_of(step, found):
    """Differences with the same text, names and numbers apart, have one cause."""
    what, stock, ours = found[0] if len(found) == 1 else next((one for one in found if one[0] in ("stderr", "stdout")), found[0])
    stock, ours = str(stock).splitlines(), str(ours).splitlines()
    first = next((index for index, (a, b) in enumerate(zip(stock, ours)) if a != b), min(len(stock), len(ours)))
    sides = [re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'X'", side[first] if first < len(side) else "-")) for side in (stock, ours)]
    sides = [re.sub(r"\S+\.(qcow2|raw|data|txt)", "F", side) for side in sides]
    return "%s %s: %s | %s" % (step[1] if step[0] == "img" else step[0], what.split()[0], sides[0], sides[1])


class Bench:
    def __init__(self, options, scratch, stock, ours):
        self.options = options
        self.scratch = scratch
        template = os.path.join(scratch, "template")
        os.mkdir(template)
        make(template, stock)
        links = {}
        for name, tools in (("stock", stock), ("ours", ours)):
            links[name] = os.path.join(scratch, "bin-" + name)
            os.mkdir(links[name])
            for tool in ("img", "io"):
                os.symlink(getattr(tools, tool), os.path.join(links[name], "qemu-" + tool))
        self.judge = Judge(template, stock, links)

    def one(self, case):
        number, steps = case
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            index, found = self.judge.compare(steps, directory)
            if found and self.options.keep:
                shutil.copytree(directory, os.path.join(self.options.keep, str(number)), dirs_exist_ok=True, symlinks=True)
        return number, steps[:index + 1], found


def show(number, steps, found, options, seed):
    print("--- case %d: command-lines.py --seed %d --only %d" % (number, seed, number))
    for step in steps:
        print("    qemu-%s %s" % (step[0], shlex.join(step[1:])))
    for what, stock, ours in found:
        limit = 4000 if options.only is not None else 600
        print("  %s\n    stock: %s\n    ours:  %s" % (what, str(stock)[:limit].replace("\n", "\n           "),
                                                      str(ours)[:limit].replace("\n", "\n           ")))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bin-dir", help="where qcow2-img and qcow2-io are (default: PATH)")
    parser.add_argument("--stock-dir", help="where qemu-img and qemu-io are (default: PATH)")
    parser.add_argument("--count", type=int, default=200, help="number of cases (default 200; 2000 for a long run)")
    parser.add_argument("--seed", type=int, default=None, help="default: from the commit")
    parser.add_argument("--only", type=int, default=None, help="this case alone")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="cases at a time")
    parser.add_argument("--each", type=int, default=2, help="examples shown of each cause (default 2)")
    parser.add_argument("--most", type=int, default=None, help="so many may differ (default: one in 200)")
    parser.add_argument("--keep", metavar="DIR", help="copy the folders of cases that differ to DIR")
    parser.add_argument("--meant", action="store_true", help="show what is meant to differ, too")
    return parser.parse_args()


def report(options, seed, different, explained):
    causes = collections.defaultdict(list)
    for number, steps, found in different:
        causes[cause_of(steps[-1], found)].append((number, steps, found))
    ranked = sorted(causes.items(), key=lambda item: -len(item[1]))
    for cause, members in ranked:
        print("=== %d: %s" % (len(members), cause))
        for number, steps, found in members[:options.each]:
            show(number, steps, found, options, seed)
    for name, count in explained.most_common():
        print("meant: %4d %s" % (count, name))


def main():
    options = parse_options()
    stock = find_tools("stock", "qemu-", options.stock_dir)
    ours = find_tools("ours", "qcow2-", options.bin_dir)
    if not stock or not ours:
        print("skipped: no %s" % ("qemu-img and qemu-io" if not stock else "qcow2-img and qcow2-io"))
        return 77
    seed = default_seed() if options.seed is None else options.seed
    todo = list(cases(seed, options.count if options.only is None else options.only + 1))
    if options.only is not None:
        todo = todo[-1:]
    different, explained = [], collections.Counter()
    with tempfile.TemporaryDirectory(prefix="lines.", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as scratch:
        bench = Bench(options, scratch, stock, ours)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for number, steps, found in pool.map(bench.one, todo):
                names = meant(steps, found) if found else None
                if names:
                    explained.update(names)
                    if options.meant:
                        show(number, steps, found, options, seed)
                elif found:
                    different.append((number, steps, found))
    report(options, seed, different, explained)
    most = options.most if options.most is not None else max(1, len(todo) // 200)
    print("%d cases, seed %d: %d the same, %d meant to differ, %d differ (at most %d may); %d rules" % (
        len(todo), seed, len(todo) - len(different) - sum(explained.values()), sum(explained.values()), len(different), most,
        len(RULES)))
    return 1 if len(different) > most else 0


if __name__ == "__main__":
    sys.exit(main())
