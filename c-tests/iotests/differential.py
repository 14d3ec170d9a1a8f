#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Random scripts over two images, the stock tools, ours, and an array of bytes.

For each script, image A is created by the stock tools and written by ours, image B the other way
round; in "swap" scripts the writer changes at every open, so that each repairs what the other left.
Both get the same operations: write, write zeroes, discard, read, flush, close and open, kill.
A model of plain bytes says what a guest must see. In the end both images are read through both
tools and compared with the model, and checked with both tools.

What a kill may do: whatever was flushed (or, except for a discard, done with -t writethrough) stays. A sector touched
after the last flush may have its flushed contents or those after any later operation. Leaks are
allowed, and with lazy refcounts a dirty image; `check -r all` or the next writable open mends both.
Anything else that `check` calls an error is a failure.

A script depends on its seed and --ops only; a failure prints the line that replays it.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

SECTOR = 512
MIB = 1 << 20
KILLED = -9


class Failure(Exception):
    """Something that a script found to be wrong."""


class Tools:
    """One pair of programs."""

    def __init__(self, name, img, io):
        self.name = name
        self.img = img
        self.io = io

    def run(self, program, arguments, expect=(0,), timeout=60):
        command = [getattr(self, program)] + arguments
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise Failure("%s: more than %d s: %s" % (self.name, timeout, " ".join(command)))
        if done.returncode not in expect:
            raise Failure("%s: status %d, not %s: %s\n%s%s" % (
                self.name, done.returncode, " or ".join(map(str, expect)),
                " ".join(repr(word) if " " in word else word for word in command),
                tail(done.stdout), tail(done.stderr)))
        return done


def tail(data):
    text = data.decode("utf-8", "replace")
    return text[-1500:]


class Model:
    """What one guest disk must hold, and what it may hold after a kill."""

    def __init__(self, contents):
        self.now = contents
        # Since the last flush: (offset, bytes that were there before), oldest first.
        self.undo = []
        # Since the last flush: ranges whose clusters may have been given up.
        self.dropped = []

    def put(self, offset, data):
        self.undo.append((offset, bytes(self.now[offset:offset + len(data)])))
        self.now[offset:offset + len(data)] = data

    def drop(self, offset, length):
        self.put(offset, bytes(length))
        self.dropped.append((offset, length))

    def flushed(self):
        self.undo = []
        self.dropped = []

    def was_dropped(self, sector):
        """Whether a sector was discarded or zeroed since the last flush. The stock tools hand out
        such a cluster again before the table entry that gave it up is on disk; after a kill the old
        entry then shows somebody else's data. Ours must not, so only they are excused."""
        return any(offset < sector + SECTOR and sector < offset + length for offset, length in self.dropped)

    def runs(self, offset, length):
        """(offset, length, value) of the runs of equal bytes in a range."""
        end = offset + length
        while offset < end:
            value = self.now[offset]
            stop = offset + 1
            step = 4096
            same = bytes([value]) * step
            while stop < end:
                part = bytes(self.now[stop:min(stop + step, end)])
                if part == same[:len(part)]:
                    stop += len(part)
                    continue
                stop += len(part) - len(part.lstrip(same[:1]))
                break
            yield offset, stop - offset, value
            offset = stop

    def mismatches(self, read_chunk):
        """Sectors (start, actual bytes) that differ from the model. Reads a megabyte at a time."""
        view = memoryview(self.now)
        for start in range(0, len(self.now), MIB):
            want = view[start:start + MIB]
            have = read_chunk(start, len(want))
            if have == want:
                continue
            if len(have) != len(want):
                raise Failure("guest contents end at %d of %d" % (start + len(have), len(self.now)))
            for at in range(0, len(want), SECTOR):
                if have[at:at + SECTOR] != want[at:at + SECTOR]:
                    yield start + at, have[at:at + SECTOR]

    def possible(self, sector, actual):
        """Whether a sector may hold this after a kill: one of its states since the last flush."""
        state = bytearray(self.now[sector:sector + SECTOR])
        if state == actual:
            return True
        for offset, old in reversed(self.undo):
            first = max(offset, sector)
            last = min(offset + len(old), sector + SECTOR)
            if first < last:
                state[first - sector:last - sector] = old[first - offset:last - offset]
                if state == actual:
                    return True
        return False


class Script:
    """A geometry and a list of sessions, both drawn from one seed."""

    def __init__(self, seed, op_count):
        self.seed = seed
        rng = random.Random("differential %d" % seed)
        self.rng = rng  # Draws everything here, nothing later: a replay must not depend on the run.
        self.version = rng.choice([2, 3, 3, 3])
        self.cluster_bits = rng.choice(range(9, 22))
        self.cluster = 1 << self.cluster_bits
        self.refcount_bits = 16 if self.version == 2 else rng.choice([1, 2, 4, 8, 16, 32, 64])
        self.lazy = self.version == 3 and rng.random() < 0.5
        if self.cluster_bits >= 19 and rng.random() < 0.3:
            self.size = 64 * MIB
        else:
            self.size = rng.randint(1, 8) * MIB
        if rng.random() < 0.3:
            self.size -= rng.randrange(1, 1000) * SECTOR
        self.backing = rng.choice([None, None, "raw", "qcow2"])
        self.backing_size = 0
        if self.backing:
            self.backing_size = rng.choice([self.size, self.size, self.size // 2 + 12345, self.size + MIB,
                                            1, self.size - 100])
            if self.backing == "qcow2":
                self.backing_size = -(-self.backing_size // SECTOR) * SECTOR
        self.backing_runs = []
        for _ in range(rng.randint(0, 6) if self.backing else 0):
            offset = rng.randrange(self.backing_size)
            length = min(rng.randint(1, max(1, self.backing_size // 3)), self.backing_size - offset)
            self.backing_runs.append((offset, length, rng.randint(1, 255)))
        self.swap = rng.random() < 0.4
        self.sessions = []
        left = op_count
        while left > 0:
            count = min(left, rng.randint(1, max(2, op_count // 3)))
            left -= count
            self.sessions.append(self.draw_session(count))

    def options(self):
        text = "compat=%s,cluster_size=%d" % ("0.10" if self.version == 2 else "1.1", self.cluster)
        if self.version == 3:
            text += ",refcount_bits=%d,lazy_refcounts=%s" % (self.refcount_bits, "on" if self.lazy else "off")
        return text

    def __str__(self):
        base = "no backing" if not self.backing else "%s backing of %d" % (self.backing, self.backing_size)
        return "%s size=%d, %s%s, %d sessions" % (self.options(), self.size, base,
                                                   ", swap" if self.swap else "", len(self.sessions))

    def draw_range(self):
        """Half of the ranges near a few hot places, some aligned, most a few clusters at most."""
        rng = self.rng
        top = min(self.size, max(4 * self.cluster, 256 << 10), 4 * MIB)
        length = rng.choice([rng.randint(1, 2 * SECTOR), rng.randint(1, min(top, 3 * self.cluster)), rng.randint(1, top)])
        if rng.random() < 0.5:
            place = rng.randrange(4) * self.size // 4
            offset = place + rng.randrange(max(1, min(self.size // 4, 8 * self.cluster)))
        else:
            offset = rng.randrange(self.size)
        grain = rng.choice([1, SECTOR, SECTOR, 4096, self.cluster, self.cluster])
        offset = offset // grain * grain
        length = -(-length // grain) * grain
        return offset, max(1, min(length, self.size - offset))

    def draw_session(self, count):
        rng = self.rng
        operations = []
        for _ in range(count):
            kind = rng.choices(["write", "zero", "unmap", "discard", "read", "flush"], [40, 12, 10, 12, 16, 6])[0]
            if kind == "flush":
                operations.append((kind, 0, 0, 0))
            else:
                offset, length = self.draw_range()
                operations.append((kind, offset, length, rng.randint(1, 255)))
        cache = rng.choice(["writeback", "writeback", "writethrough"])
        end = rng.choices(["close", "flush-kill", "kill"], [50, 30, 20])[0]
        mend = rng.choice(["open", "open", "check by stock", "check by ours"])
        return operations, cache, end, mend


class Image:
    """One image under test: its file, its model, and whose turn it is."""

    def __init__(self, label, path, maker, writers, model):
        self.label = label
        self.path = path
        self.maker = maker
        self.writers = writers
        self.model = model
        self.leaks_allowed = False

    def writer(self, session):
        return self.writers[session % len(self.writers)]


class Runner:
    def __init__(self, script, stock, ours, directory, verbose):
        self.script = script
        self.stock = stock
        self.ours = ours
        self.directory = directory
        self.verbose = verbose
        self.history = []

    def path(self, name):
        return os.path.join(self.directory, name)

    def run(self):
        script = self.script
        contents = bytearray(script.size)
        base_arguments = []
        if script.backing:
            maker = self.ours if script.seed & 1 and script.backing == "qcow2" else self.stock
            base = self.path("base")
            maker.run("img", ["create", "-q", "-f", script.backing, base, str(script.backing_size)])
            commands = []
            for offset, length, value in script.backing_runs:
                commands += ["-c", "write -q -P %d %d %d" % (value, offset, length)]
                shown = min(offset + length, script.size) - offset
                if shown > 0:
                    contents[offset:offset + shown] = bytes([value]) * shown
            if commands:
                maker.run("io", ["-f", script.backing] + commands + [base])
            base_arguments = ["-b", base, "-F", script.backing]
        pairs = [("A", self.stock, self.ours), ("B", self.ours, self.stock)]
        for label, maker, writer in pairs:
            other = maker if script.swap else writer
            path = self.path(label + ".qcow2")
            image = Image(label, path, maker, [writer, other], Model(bytearray(contents)))
            maker.run("img", ["create", "-q", "-f", "qcow2", "-o", script.options()] + base_arguments
                      + [path, str(script.size)])
            self.history.append("%s: made by %s" % (label, maker.name))
            for index, session in enumerate(script.sessions):
                self.session(image, index, session)
            self.finish(image)

    # One open of the image, to its close or kill.
    def session(self, image, index, session):
        operations, cache, end, mend = session
        writer = image.writer(index)
        model = image.model
        through = cache == "writethrough"
        commands = []
        for kind, offset, length, value in operations:
            if kind == "write":
                commands.append("write -q -P %d %d %d" % (value, offset, length))
                model.put(offset, bytes([value]) * length)
            elif kind == "zero":
                commands.append("write -q -z %d %d" % (offset, length))
                model.drop(offset, length)
            elif kind == "unmap":
                commands.append("write -q -z -u %d %d" % (offset, length))
                model.drop(offset, length)
            elif kind == "discard":
                commands.append("discard -q %d %d" % (offset, length))
                self.discard(model, offset, length)
            elif kind == "read":
                for number, (at, size, want) in enumerate(model.runs(offset, length)):
                    if number == 12:
                        break
                    commands.append("read -q -P %d %d %d" % (want, at, size))
            else:
                commands.append("flush")
                model.flushed()
            if through and kind != "discard":
                # A discard is only advice: the stock tools do not make it durable by itself.
                model.flushed()
        if end != "close":
            if end == "flush-kill":
                commands.append("flush")
                model.flushed()
            commands.append("sigraise 9")
        else:
            model.flushed()
        arguments = ["-f", "qcow2", "-t", cache]
        for command in commands:
            arguments += ["-c", command]
        self.history.append("%s: %s-io %s" % (image.label, writer.name, " ".join(
            "-c '%s'" % word if " " in word else word for word in arguments if word != "-c")))
        done = writer.run("io", arguments + [image.path], expect=(0,) if end == "close" else (KILLED,))
        if b"failed" in done.stdout:
            # The status of a killed writer does not tell.
            raise Failure("%s: %s" % (image.label, tail(done.stdout)))
        if end == "close":
            # A clean close: no corruption, and no leak but those of an earlier kill.
            self.check(image, self.stock)
        else:
            self.after_kill(image, writer, mend)

    def discard(self, model, offset, length):
        """Whole clusters become zero, the last one counting as whole; in version 2 with a backing
        file nothing happens, since there is no way to say "zero"."""
        script = self.script
        if script.version == 2 and script.backing:
            return
        first = -(-offset // script.cluster) * script.cluster
        end = offset + length
        last = end if end == script.size else end // script.cluster * script.cluster
        if first < last:
            model.drop(first, last - first)

    def after_kill(self, image, writer, mend):
        image.leaks_allowed = True
        if not self.script.lazy:
            self.check(image, self.stock)
        self.settle(image, writer)
        # A dirty image reads the same for everybody, before anybody repairs it.
        self.compare(image, self.ours)
        if mend != "open":
            tools = self.ours if mend == "check by ours" else self.stock
            self.history.append("%s: %s-img check -r all" % (image.label, tools.name))
            tools.run("img", ["check", "-q", "-f", "qcow2", "-r", "all", image.path])
            image.leaks_allowed = False
            self.check(image, self.stock)
            self.compare(image, self.stock)
        elif is_dirty(image.path):
            # The next writable open repairs, leaks too. (What was only given up does not make an image dirty.)
            image.leaks_allowed = False

    def read_whole(self, image, tools):
        """A file with the guest contents, as one tool sees them."""
        copy = self.path("copy.raw")
        if os.path.exists(copy):
            os.unlink(copy)
        tools.run("img", ["convert", "-f", "qcow2", "-O", "raw", image.path, copy])
        return copy

    def settle(self, image, writer):
        """After a kill: each sector must be something it may be; from here on it is what it is."""
        model = image.model
        copy = self.read_whole(image, self.stock)
        changed = []
        with open(copy, "rb") as file:
            for sector, actual in model.mismatches(lambda at, length: read_at(file, at, length)):
                if not model.possible(sector, actual) and not (
                        writer.name == "stock" and model.was_dropped(sector)):
                    raise Failure("%s after a kill: sector at %d holds %s..., which it never held since the last flush"
                                  % (image.label, sector, actual[:8].hex()))
                changed.append((sector, actual))
        for sector, actual in changed:
            model.now[sector:sector + len(actual)] = actual
        model.flushed()

    def compare(self, image, tools):
        model = image.model
        copy = self.read_whole(image, tools)
        with open(copy, "rb") as file:
            for sector, actual in model.mismatches(lambda at, length: read_at(file, at, length)):
                want = model.now[sector:sector + SECTOR]
                at = next(i for i, byte in enumerate(actual) if byte != want[i])
                raise Failure("%s read through %s: at %d is %s..., should be %s..." % (
                    image.label, tools.name, sector + at, actual[at:at + 8].hex(), want[at:at + 8].hex()))

    def check(self, image, tools):
        done = tools.run("img", ["check", "-f", "qcow2", "--output=json", image.path], expect=(0, 2, 3))
        try:
            report = json.loads(done.stdout)
        except ValueError:
            raise Failure("%s: check of %s: no JSON: %s" % (tools.name, image.label, tail(done.stdout)))
        bad = [key for key in ("corruptions", "check-errors") if report.get(key)]
        if report.get("leaks") and not image.leaks_allowed:
            bad.append("leaks")
        if bad or (done.returncode != 0 and not image.leaks_allowed):
            raise Failure("%s: check of %s: %s\n%s%s" % (tools.name, image.label, ", ".join(bad),
                                                         tail(done.stdout), tail(done.stderr)))

    def finish(self, image):
        # The last session may have left a dirty or a leaking image.
        if image.leaks_allowed or (self.script.lazy and self.script.sessions[-1][2] != "close"):
            self.stock.run("img", ["check", "-q", "-f", "qcow2", "-r", "all", image.path])
            image.leaks_allowed = False
        for tools in {id(self.stock): self.stock, id(self.ours): self.ours}.values():
            self.check(image, tools)
            self.compare(image, tools)


def is_dirty(path):
    """Whether the header of an image says that its refcounts may be wrong."""
    with open(path, "rb") as file:
        header = file.read(80)
    return header[4:8] >= b"\0\0\0\3" and bool(header[79] & 1)


def read_at(file, offset, length):
    file.seek(offset)
    return file.read(length)


def default_seed():
    """The commit, so that every commit tries something new and says what."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              cwd=os.path.dirname(os.path.abspath(__file__)), check=True)
        return int(done.stdout[:8], 16)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return 1


def find_tools(name, prefix, directory):
    paths = []
    for tool in ("img", "io"):
        program = prefix + tool
        path = shutil.which(program, path=directory) if directory else shutil.which(program)
        if not path:
            return None
        paths.append(os.path.abspath(path))
    return Tools(name, *paths)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tools", choices=["both", "stock", "ours"], default="both",
                        help="both (default), or one set on both sides, as a test of this program or of one set alone")
    parser.add_argument("--bin-dir", help="where qcow2-img and qcow2-io are (default: PATH)")
    parser.add_argument("--stock-dir", help="where qemu-img and qemu-io are (default: PATH)")
    parser.add_argument("--count", type=int, default=20, help="number of scripts (default 20; 200 for the bar)")
    parser.add_argument("--ops", type=int, default=50, help="operations in each (default 50)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the first script (default: from the commit)")
    parser.add_argument("--keep", metavar="DIR", help="copy the images of a failed script to DIR")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each script; of a failed one each command")
    options = parser.parse_args()
    seed = default_seed() if options.seed is None else options.seed

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

    passed = failed = 0
    replay = "".join(" --%s %s" % (name, value) for name, value in (
        ("tools", options.tools), ("bin-dir", options.bin_dir), ("stock-dir", options.stock_dir)) if value)
    for index in range(options.count):
        script = Script(seed + index, options.ops)
        if options.verbose:
            print("seed %d: %s" % (script.seed, script), flush=True)
        with tempfile.TemporaryDirectory(prefix="differential.") as directory:
            runner = Runner(script, stock, ours, directory, options.verbose)
            try:
                runner.run()
                passed += 1
            except Failure as failure:
                failed += 1
                print("FAILED seed %d: %s" % (script.seed, script))
                print(str(failure).replace(directory, "DIR"))
                for line in runner.history if options.verbose else runner.history[-1:]:
                    print("    " + line)
                print("replay: differential.py%s --seed %d --ops %d --count 1 -v" % (replay, script.seed, options.ops),
                      flush=True)
                if options.keep:
                    shutil.copytree(directory, os.path.join(options.keep, "seed-%d" % script.seed), dirs_exist_ok=True)
        if not options.verbose and sys.stdout.isatty():
            print("\r%d of %d" % (index + 1, options.count), end="", flush=True)
        elif not options.verbose and (index + 1) % 10 == 0:
            print("%d of %d" % (index + 1, options.count), flush=True)
    if not options.verbose and sys.stdout.isatty():
        print()
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
