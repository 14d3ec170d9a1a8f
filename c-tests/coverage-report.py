#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Line coverage of the engine from lcov files, one for each program: a table, the lines that were not reached, and a bar.

A line counts as reached if any of the programs reached it. Unit tests stand in the files that they test: their
lines are left out, for they would only flatter the figure.
"""

import argparse
import os
import sys


def read_lcov(path, top, files):
    """Adds the counts to {file below top: {line: count}}."""
    lines = None
    with open(path, encoding="utf-8") as file:
        for record in file:
            kind, _, rest = record.rstrip("\n").partition(":")
            if kind == "SF":
                name = os.path.realpath(rest)
                inside = name.startswith(top + os.sep)
                lines = files.setdefault(os.path.relpath(name, top), {}) if inside else None
            elif kind == "DA" and lines is not None:
                number, count = rest.split(",")[:2]
                lines[int(number)] = lines.get(int(number), 0) + int(count)


def test_lines(path):
    """The lines of the test modules in a source file."""
    found = set()
    with open(path, encoding="utf-8") as file:
        text = file.read().split("\n")
    number = 0
    while number < len(text):
        if text[number].strip() == "#[cfg(test)]":
            indent = text[number][:len(text[number]) - len(text[number].lstrip())]
            while number < len(text):
                found.add(number + 1)
                ends = text[number].startswith(indent + "}") or text[number].rstrip().endswith(";")
                if ends and text[number].startswith(indent) and not text[number].startswith(indent + " "):
                    break
                number += 1
        number += 1
    return found


def is_test_file(name):
    return os.path.basename(name) == "tests.rs" or "/tests/" in name


def spans(numbers):
    """1, 2, 3, 7 -> "1-3, 7"."""
    out = []
    for number in numbers:
        if out and out[-1][1] == number - 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(str(first) if first == last else "%d-%d" % (first, last) for first, last in out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="the directory to report on")
    parser.add_argument("lcov", nargs="+")
    parser.add_argument("--bar", type=float, default=90.0, help="least percentage of all lines (default 90)")
    parser.add_argument("--file-bar", type=float, default=85.0, help="name files below this (default 85)")
    parser.add_argument("--uncovered", help="write the lines that were not reached to this file")
    options = parser.parse_args()
    top = os.path.realpath(options.source)

    files = {}
    for path in options.lcov:
        read_lcov(path, top, files)
    total = reached = 0
    table = []
    for name, lines in sorted(files.items()):
        if is_test_file(name):
            continue
        skip = test_lines(os.path.join(top, name))
        counts = {number: count for number, count in lines.items() if number not in skip}
        if not counts:
            continue
        missed = sorted(number for number, count in counts.items() if count == 0)
        total += len(counts)
        reached += len(counts) - len(missed)
        table.append((name, len(counts), missed))
    if not total:
        print("no line of %s is in %s" % (top, " ".join(options.lcov)))
        return 1

    if options.uncovered:
        with open(options.uncovered, "w", encoding="utf-8") as out:
            for name, count, missed in table:
                if missed:
                    out.write("%s (%d of %d): %s\n" % (name, len(missed), count, spans(missed)))
                    with open(os.path.join(top, name), encoding="utf-8") as source:
                        text = source.read().split("\n")
                    for number in missed:
                        out.write("%8d  %s\n" % (number, text[number - 1]))
    for name, count, missed in table:
        share = 100.0 * (count - len(missed)) / count
        print("%-28s %5d lines  %6.2f %%%s" % (name, count, share, "  below %g %%" % options.file_bar
                                               if share < options.file_bar else ""))
    share = 100.0 * reached / total
    print("line coverage of src/: %.2f %% (%d of %d lines), the bar is %g %%" % (share, reached, total, options.bar))
    return 0 if share >= options.bar else 1


if __name__ == "__main__":
    sys.exit(main())
