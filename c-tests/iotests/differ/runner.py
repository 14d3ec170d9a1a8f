# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs one script: two images that start alike, A written by our tools and B by the stock ones (in "swap" steps the
other way round), each with its model, compared as compare.py says."""

import os
import re
import shlex
import shutil
import zlib

from . import compare
from .layers import make_chain
from .model import Model
from .script import DATA_NAME
from .session import Session
from .tools import ABORTED, KILLED, SECTOR, Failure, tail

NAME = "disk.qcow2"
# The stock tools' time to change the width of refcounts grows with the counts that the refcount table's clusters can
# lead to: half a second for 64 KiB clusters and 16 bits (2 ** 28), minutes for 1 MiB.
AMEND_COUNTS = 1 << 30
# What the stock tools round a raw data file's length up to, where clusters are smaller.
HOST_BLOCK = 4096
# Why the stock tools may refuse a resize that ours do (compare.py).
STOCK_REFUSES = ("Cannot use preallocation for shrinking files", "Failed to zero out new clusters",
                 "is inconsistent and cannot be used")
# Where clusters go is each engine's choice.
CLUSTER_OFFSET = re.compile("0x[0-9a-f]+")


class Side:
    """One of the two images: its directory, its models, and what is known about it."""

    def __init__(self, label, directory):
        self.label = label
        self.directory = directory
        self.model = None
        self.bases = []
        self.leaks_allowed = False
        # A writer was killed: the file may have contents past what the image knows of.
        self.killed = False
        # A kill of the stock tools left something that cannot be read.
        self.unreadable = False

    def path(self, name=NAME):
        return os.path.join(self.directory, name)

    def is_dirty(self):
        """Whether the header says that the refcounts may be wrong."""
        with open(self.path(), "rb") as file:
            header = file.read(80)
        return header[4:8] >= b"\0\0\0\3" and bool(header[79] & 1)

    def refcount_order(self):
        """The binary logarithm of the bits of a refcount."""
        with open(self.path(), "rb") as file:
            header = file.read(104)
        return int.from_bytes(header[96:100], "big") if header[4:8] >= b"\0\0\0\3" else 4


class Runner:
    def __init__(self, script, stock, ours, directory, direct):
        self.script = script
        self.stock = stock
        self.ours = ours
        self.directory = directory
        self.direct = direct
        self.history = []
        self.sides = [Side("A", os.path.join(directory, "A")), Side("B", os.path.join(directory, "B"))]
        self.noise = []
        # Both files have the same bytes.
        self.identical = False
        # The engines had a choice in this step (compare.py lists them): where things are need not be the same.
        self.parted = False

    def tools(self):
        return list({id(tools): tools for tools in (self.stock, self.ours)}.values())

    def writer(self, side, step):
        return self.ours if (side.label == "A") != step.swap else self.stock

    def other(self, tools):
        return self.stock if tools is self.ours else self.ours

    def call(self, side, tools, program, arguments, **more):
        self.history.append("cd %s; %s" % (side.label, shlex.join(
            [os.path.basename(getattr(tools, program))] + arguments)))
        return tools.run(program, arguments, side.directory, **more)

    def run(self):
        for number in range(4):
            noise = self.script.noise[number * 1000:] + self.script.noise[:number * 1000]
            self.noise.append(noise)
            with open(os.path.join(self.directory, "noise%d" % number), "wb") as file:
                file.write(noise)
        for side in self.sides:
            os.mkdir(side.directory)
            self.make(side)
        # Snapshots and bitmaps apart, two creations give the same bytes.
        self.identical = True
        self.compare_all(full=True)
        for step in self.script.steps:
            self.history.append("# step %d: %s" % (step.number, step.kind))
            dirty = [side.is_dirty() for side in self.sides]
            done = getattr(self, "do_" + step.kind)(step)
            if done == "skipped":
                continue
            self.identical = False
            if step.kind != "check" or step.args["repair"]:
                for side, was_dirty in zip(self.sides, dirty):
                    # A writable open repairs, leaks too. (What was only given up does not make an image dirty.)
                    if was_dirty and done != "killed":
                        side.leaks_allowed = False
            if done == "killed":
                readable = [side for side in self.sides if not side.unreadable]
                if not readable:
                    self.history.append("# the stock tools left nothing to go on with")
                    return
                self.follow(readable[step.args["follow"] % len(readable)])
            self.compare_all(full=step.full or self.parted or done == "killed")
            if self.parted:
                self.follow(self.sides[step.number % 2])
        self.finish()

    def make(self, side):
        script = self.script
        contents = make_chain(self, side)
        maker = self.ours if script.ours_makes else self.stock
        base = ["-b", "base0", "-F", script.backing[0]["format"]] if script.backing else []
        self.call(side, maker, "img", ["create", "-q", "-f", "qcow2", "-o", script.options()] + base
                  + [NAME, str(script.size)])
        for number in range(script.bitmaps):
            self.call(side, self.stock, "img", ["bitmap", "--add", NAME, "b%d" % number])
        contents = contents[:script.size]
        side.model = Model(contents + bytearray(script.size - len(contents)))

    # Steps. Each returns None, "skipped" or "killed".

    def do_io(self, step):
        end = step.args["end"]
        killed = end != "close"
        for side in self.sides:
            writer = self.writer(side, step)
            cache = step.args["cache"]
            if cache in ("none", "directsync") and not self.direct:
                cache = "writeback" if cache == "none" else "writethrough"
            session = Session(self, side, step, cache in ("writethrough", "directsync"))
            arguments = ["-t", cache, "-d", step.args["discard"]] + ["-C"] * step.args["copy_on_read"]
            for command in session.commands:
                arguments += ["-c", command]
            if step.args["options"]:
                arguments += ["--image-opts", ",".join(["driver=qcow2,file.filename=" + NAME] + step.args["options"])]
            else:
                arguments += ["-f", "qcow2", NAME]
            done = self.call(side, writer, "io", arguments,
                             expect=({"close": 0, "abort": ABORTED}.get(end, KILLED),))
            if b"failed" in done.stdout:
                # The status of a killed writer does not tell.
                raise Failure("io", "%s by %s: %s" % (side.label, writer.name, tail(done.stdout)))
            if killed:
                self.after_kill(side, writer, session.lazy)
            else:
                side.model.flushed()
        return "killed" if killed else None

    def after_kill(self, side, writer, lazy):
        side.leaks_allowed = side.killed = True
        if side.is_dirty() and not lazy:
            raise Failure("dirty", "%s: %s left an eager image dirty" % (side.label, writer.name))
        self.check(side)
        if writer.name == "stock" and side.model.dropped:
            # What was_dropped() excuses may be unreadable as well, where it was compressed.
            done = self.stock.run("img", ["convert", "-f", "qcow2", "-O", "raw", NAME, "../copy.raw"], side.directory,
                                  expect=(0, 1))
            side.unreadable = done.returncode != 0 and bool(side.model.compressed)
            if side.unreadable:
                return
        self.settle(side, writer)
        # A dirty image reads the same for everybody, before anybody repairs it.
        self.compare_contents(side, self.ours)

    def follow(self, chosen):
        """Both sides go on with one image: they will repair the same one."""
        kept = os.path.join(self.directory, "kept")
        os.rename(chosen.directory, kept)
        for side in self.sides:
            shutil.rmtree(side.directory, ignore_errors=True)
            # Holes stay holes, so that `map` has the same to say on both sides.
            self.stock_copy(kept, side.directory)
            side.unreadable = False
            if side is not chosen:
                side.model = chosen.model.copy()
                side.bases = [base.copy() for base in chosen.bases]
                side.leaks_allowed = chosen.leaks_allowed
                side.killed = chosen.killed
        self.parted = False
        shutil.rmtree(kept)
        self.history.append("# both go on with image %s" % chosen.label)
        self.identical = True

    def stock_copy(self, source, target):
        status = os.spawnlp(os.P_WAIT, "cp", "cp", "-R", "--sparse=always", source, target)
        if status != 0:
            raise Failure("harness", "cp: status %d" % status)

    def do_compress(self, step):
        """Compressed clusters, where nothing is stored yet."""
        for side in self.sides:
            model = side.model
            free = self.free_clusters(side)
            arguments = ["-f", "qcow2"]
            for op in step.ops:
                first = op.offset % len(model.now) // self.script.cluster
                for cluster in range(first, first + op.length):
                    if cluster not in free:
                        continue
                    free.remove(cluster)
                    offset = cluster * self.script.cluster
                    length = min(self.script.cluster, len(model.now) - offset)
                    if op.kind == "noise":
                        # Half of it: all of it would not get smaller, and be stored as it is.
                        data = (self.noise[op.value % 4][:length // 2] * 2)[:length]
                        if len(data) < length:
                            continue
                        name = "half%d-%d" % (op.value % 4, length)
                        with open(os.path.join(self.directory, name), "wb") as file:
                            file.write(data)
                        arguments += ["-c", "write -q -c -s ../%s %d %d" % (name, offset, length)]
                    else:
                        data = bytes([op.value]) * length
                        arguments += ["-c", "write -q -c -P %d %d %d" % (op.value, offset, length)]
                    model.put(offset, data)
                    model.compressed.append((offset, length))
            writer = self.writer(side, step)
            done = self.call(side, writer, "io", arguments + [NAME])
            if b"failed" in done.stdout:
                raise Failure("io", "%s: %s" % (side.label, tail(done.stdout)))
            if len(arguments) > 2:
                model.flushed()
        return None

    def free_clusters(self, side):
        free = set()
        if self.script.extended_l2 and self.script.backing and self.script.preallocates():
            # What a preallocated cluster shows is below: the map does not tell it from one that is not there.
            return free
        cluster = self.script.cluster
        for one in self.stock.json(["map", "--output=json", NAME], side.directory):
            # With an offset, only a part of the cluster is a hole (extended L2 entries).
            if one["depth"] > 0 or not (one["present"] or "offset" in one):
                end = one["start"] + one["length"]
                last = end // cluster if end < len(side.model.now) else -(-end // cluster)
                free.update(range(-(-one["start"] // cluster), last))
        return free

    def both(self, step, arguments, safe=False):
        """Runs one command on both sides, each with its writer: [(side, status, what a failing one said)].
        `safe`: not by the stock tools once a writer was killed; "always": never by them."""
        outcomes = []
        for side in self.sides:
            writer = self.ours if safe == "always" or safe and side.killed else self.writer(side, step)
            done = self.call(side, writer, "img", arguments(side), expect=(0, 1))
            words = done.stderr.decode("utf-8", "replace") if done.returncode else ""
            for tools in self.tools():
                words = words.replace(os.path.basename(tools.img), "img")
            outcomes.append((side, done.returncode, words))
        return outcomes

    def do_resize(self, step):
        size = step.args["size"]
        options = []
        if size < len(self.sides[0].model.now):
            options.append("--shrink")
        elif step.args["preallocation"]:
            options.append("--preallocation=" + step.args["preallocation"])
        grows = "--shrink" not in options
        safe = grows and bool(options)
        if grows and len(self.sides[0].model.now) % self.script.cluster:
            safe = "always"
        outcomes = self.both(step, lambda side: ["resize", "-q", "-f", "qcow2"] + options + [NAME, str(size)],
                             safe=safe)
        resized = [side for side, status, _ in outcomes if status == 0]
        for side in resized:
            self.note_size(side, size)
        refused = [side for side, _, words in outcomes if any(reason in words for reason in STOCK_REFUSES)]
        if refused and len(resized) == 1:
            self.follow(resized[0])
            return
        compare.same_results("resize", [(side.label, {"status": status, "words": words})
                                        for side, status, words in outcomes])

    def note_size(self, side, size):
        if size > len(side.model.now) and (self.script.backing or self.script.extended_l2):
            self.parted = True
        side.model.resize(size)

    def repairer(self, side, tools):
        """Who may repair an image: see compare.py."""
        return self.ours if self.script.bitmaps and side.model.snapshots else tools

    def do_check(self, step):
        repair = step.args["repair"]
        if not repair:
            return None
        if any(side.is_dirty() for side in self.sides):
            repair = "all"
        answers = []
        for side in self.sides:
            writer = self.repairer(side, self.writer(side, step))
            arguments = ["check", "-f", "qcow2", "--output=json", "-r", repair, NAME]
            done = self.call(side, writer, "img", arguments)
            said = re.sub(r'\s*"image-end-offset": \d+,', "", done.stdout.decode())
            answers.append((side.label, {"status": done.returncode, "answer": said}))
            side.leaks_allowed = False
        if self.identical:
            compare.same_results("repair", answers)
        return None

    def do_snapshot(self, step):
        action, name = step.args["action"], step.args["name"]
        names = sorted(self.sides[0].model.snapshots)
        if action != "-c":
            if not names:
                return "skipped"
            name = names[step.args["pick"] % len(names)]
        outcomes = self.both(step, lambda _: ["snapshot", "-q", action, name, NAME])
        compare.same_results("snapshot", [(side.label, {"status": status, "words": words})
                                          for side, status, words in outcomes])
        if outcomes[0][1] != 0:
            # When a count has no room, the stock tools leave leaks, and flags that say more than the counts.
            self.follow(next(side for side in self.sides if self.writer(side, step) is self.ours))
            return None
        for side in self.sides:
            model = side.model
            model.flushed()
            if action == "-c":
                model.snapshots[name] = bytes(model.now)
            elif action == "-a":
                model.now = bytearray(model.snapshots[name])
            else:
                del model.snapshots[name]
        return None

    def do_amend(self, step):
        settings = step.args["settings"]
        if settings[0].startswith("compat") and self.script.bitmaps:
            return "skipped"
        if settings[0].startswith("refcount") and any(side.leaks_allowed for side in self.sides):
            # What is leaked on one side may have a count that does not fit.
            return "skipped"
        if settings[0].startswith("refcount") and any(
                self.script.cluster ** 2 >> side.refcount_order() > AMEND_COUNTS for side in self.sides):
            return "skipped"
        for setting in settings:
            down = setting == "compat=0.10"
            outcomes = self.both(step, lambda _, setting=setting: ["amend", "-q", "-f", "qcow2", "-o", setting, NAME],
                                 safe="always" if down and self.sides[0].model.snapshots else False)
            compare.same_results("amend", [(side.label, {"status": status, "words": CLUSTER_OFFSET.sub("OFFSET", words)})
                                           for side, status, words in outcomes])
            # Refused because of zstd clusters, the stock tools have written zero clusters out by then.
            self.parted |= down
            if outcomes[0][1] != 0:
                return None
            for side in self.sides:
                side.model.flushed()
        return None

    def do_commit(self, step):
        if not self.script.backing or self.sides[0].model.snapshots:
            # What a snapshot shows through its holes would change with the file below.
            return "skipped"
        for side, status, words in self.both(step, lambda _: ["commit", "-q", "-f", "qcow2", NAME]):
            if status != 0:
                raise Failure("commit", "%s: commit fails: %s" % (side.label, words))
        for side in self.sides:
            base = side.bases[0]
            base.now[:len(side.model.now)] = side.model.now
            self.parted = True
            self.compare_base(side)
        return None

    # Comparisons.

    def read_whole(self, side, tools, name=NAME, kind="qcow2"):
        """A file with the guest contents, as one pair of tools sees them."""
        copy = os.path.join(self.directory, "copy.raw")
        if os.path.exists(copy):
            os.unlink(copy)
        tools.run("img", ["convert", "-f", kind, "-O", "raw", name, copy], side.directory)
        return copy

    def settle(self, side, writer):
        """After a kill: each sector must be something it may be; from here on it is what it is."""
        model = side.model
        changed = []
        with open(self.read_whole(side, self.stock), "rb") as file:
            for sector, actual in model.mismatches(file):
                if not model.possible(sector, actual) and not (
                        writer.name == "stock" and model.was_dropped(sector)):
                    raise Failure("kill", "%s after a kill of %s: sector at %d holds %s..., which it never held since "
                                  "the last flush" % (side.label, writer.name, sector, actual[:8].hex()))
                changed.append((sector, actual))
        for sector, actual in changed:
            model.now[sector:sector + len(actual)] = actual
        model.flushed()

    def compare_contents(self, side, tools):
        if tools.name == "ours":
            done = tools.run("img", ["checksum", "-f", "qcow2", NAME], side.directory)
            if done.stdout.split()[:1] == [b"%08x" % zlib.crc32(side.model.now)]:
                return
            # The whole tells that, the sectors tell where.
        self.compare_raw(side, tools, side.model, NAME, "qcow2")
        if tools.name == "ours":
            raise Failure("checksum", "%s: checksum says %r, the contents have %08x" % (
                side.label, done.stdout, zlib.crc32(side.model.now)))

    def compare_raw(self, side, tools, model, name, kind):
        self.compare_file(self.read_whole(side, tools, name, kind), model,
                          "%s/%s read through %s" % (side.label, name, tools.name))

    def compare_file(self, path, model, what):
        with open(path, "rb") as file:
            for sector, actual in model.mismatches(file):
                want = model.now[sector:sector + SECTOR]
                at = next((i for i, byte in enumerate(actual) if byte != want[i]), len(actual))
                raise Failure("contents", "%s: at %d is %s..., should be %s..." % (
                    what, sector + at, actual[at:at + 8].hex(), want[at:at + 8].hex()))

    def compare_raw_data(self, side):
        """A raw data file shows the disk by itself; the stock tools leave up to a cluster, or a block of the
        host, behind its end."""
        view = os.path.join(self.directory, "view.raw")
        shutil.copyfile(side.path(DATA_NAME), view)
        length = len(side.model.now)
        if not length <= os.path.getsize(view) < length + max(self.script.cluster, HOST_BLOCK):
            raise Failure("data file", "%s: the data file of %d bytes has %d" % (
                side.label, length, os.path.getsize(view)))
        os.truncate(view, length)
        self.compare_file(view, side.model, "%s/%s" % (side.label, DATA_NAME))

    def compare_base(self, side):
        kind = self.script.backing[0]["format"]
        if kind == "raw":
            self.compare_file(side.path("base0"), side.bases[0], "%s/base0" % side.label)
        else:
            for tools in self.tools():
                self.compare_raw(side, tools, side.bases[0], "base0", kind)
            report = self.stock.json(["check", "-f", "qcow2", "--output=json", "base0"], side.directory)
            if report.get("leaks") or report.get("corruptions"):
                raise Failure("check", "%s/base0 after a commit: %r" % (side.label, report))

    def check(self, side):
        """Both tools' check of one image: the same answer, and no worse than what may be."""
        arguments = ["check", "-f", "qcow2", "--output=json", NAME]
        answers = [(tools.name, tools.json(arguments, side.directory, expect=(0, 2, 3))) for tools in self.tools()]
        compare.same_answers("check", side.label, answers)
        report = answers[0][1]
        if not side.is_dirty():
            bad = [key for key in ("corruptions", "check-errors") if report.get(key)]
            if report.get("leaks") and not side.leaks_allowed:
                bad.append("leaks")
            if bad:
                raise Failure("check", "check of %s: %s: %r" % (side.label, ", ".join(bad), report))
        return report

    def compare_all(self, full):
        checks, maps, infos = [], [], []
        for side in self.sides:
            checks.append((side.label, self.check(side)))
            if self.script.data_file == "raw" and not side.killed:
                self.compare_raw_data(side)
            # The image that ours wrote through the stock tools, and the other way round.
            for tools in self.tools() if full else [self.stock if side.label == "A" else self.ours]:
                self.compare_contents(side, tools)
            if full:
                maps.append((side.label, self.ask(side, "map", compare.map_rows)))
                infos.append((side.label, self.ask(side, "info", compare.without_choice)))
        if self.parted:
            checks, maps = [checks[0]] * 2, [maps[0]] * 2
        leaks = not any(side.leaks_allowed for side in self.sides)
        compare.same_results("check", [(label, compare.check_result(answer, leaks)) for label, answer in checks])
        if full:
            compare.same_results("map", [
                (label, compare.map_result(rows)) for label, rows in maps])
            compare.same_results("info", [(label, compare.info_result(answer)) for label, answer in infos])

    def ask(self, side, what, cleaned):
        answers = [(tools.name, cleaned(tools.json([what, "-f", "qcow2", "--output=json", NAME], side.directory)))
                   for tools in self.tools()]
        compare.same_answers(what, side.label, answers)
        return answers[0][1]

    def finish(self):
        for side in self.sides:
            if side.leaks_allowed or side.is_dirty():
                # Each mends what the other left.
                tools = self.repairer(side, self.stock if side.label == "A" else self.ours)
                self.call(side, tools, "img", ["check", "-q", "-f", "qcow2", "-r", "all", NAME])
                side.leaks_allowed = False
        self.compare_all(full=True)
        for side in self.sides:
            for number in range(self.script.bitmaps):
                # No snapshot is applied beside bitmaps.
                self.call(side, self.ours if side.label == "A" else self.stock, "img",
                          ["bitmap", "--remove", NAME, "b%d" % number])
            for number, name in enumerate(sorted(side.model.snapshots)):
                if number == 3:
                    break
                done = self.call(side, self.stock, "img", ["snapshot", "-q", "-a", name, NAME],
                                 expect=(0, 1) if side.refcount_order() < 4 else (0,))
                if done.returncode != 0:
                    # A narrow count has no room for one more user.
                    continue
                side.model.now = bytearray(side.model.snapshots[name])
                for tools in self.tools():
                    self.compare_contents(side, tools)
