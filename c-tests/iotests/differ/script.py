# SPDX-License-Identifier: MIT OR Apache-2.0
"""A random case: how the image is made, and the list of steps. All of it is drawn from one seed, before anything
runs, so that a part of a list can be replayed: `--keep` names the steps and operations to keep, `--without` the
properties of the image to leave at their defaults.
"""

import random

from .tools import MIB, SECTOR

# What --without can name, in the order in which shrinking tries them.
PROPERTIES = ("data_file", "bitmaps", "extended_l2", "compression", "preallocation", "refcount_bits", "copy_on_read", "backing",
              "backing2", "lazy", "compat", "cluster", "options", "cache", "swap")


# The external data file, beside the image.
DATA_NAME = "disk.data"


class Step:
    """One step. kind "io": `ops` in one process, which ends as `end` says; otherwise `args` has the details.
    `swap`: the other pair of tools than usual does it to each image. `full`: compare everything afterwards."""

    def __init__(self, number, kind, rng):
        self.number = number
        self.kind = kind
        self.swap = rng.random() < 0.35
        self.full = rng.random() < 0.4
        self.ops = []
        self.args = {}

    def kept(self, keep):
        if keep is None:
            return True
        return any(step == self.number for step, _ in keep)


class Op:
    def __init__(self, number, kind, offset=0, length=0, value=0, flags=()):
        self.number = number
        self.kind = kind
        self.offset = offset
        self.length = length
        self.value = value
        self.flags = flags


def parse_keep(text):
    """ "0.1,0.4,2" -> {(0, 1), (0, 4), (2, None)}: operation 1 and 4 of step 0, step 2 without operations."""
    keep = set()
    for word in text.split(",") if text else []:
        step, _, op = word.partition(".")
        keep.add((int(step), int(op) if op else None))
    return keep


def keep_text(keep):
    return ",".join(str(step) if op is None else "%d.%d" % (step, op)
                    for step, op in sorted(keep, key=lambda item: (item[0], -1 if item[1] is None else item[1])))


class Script:
    def __init__(self, seed, op_count, keep=None, without=()):
        self.seed = seed
        self.op_count = op_count
        self.keep = keep
        self.without = frozenset(without)
        rng = random.Random("differential %d" % seed)
        self.rng = rng  # Draws everything here, nothing later: a replay must not depend on the run.
        self.draw_image()
        self.draw_data_file()
        self.draw_backing()
        self.noise = rng.randbytes(3 * 65536 + 512)
        self.steps = []
        left = op_count
        while left > 0:
            left -= self.draw_step(left)
        self.draw_copy_on_read()
        # After all draws, so that they do not change what else is drawn.
        self.apply_without()
        self.steps = [step for step in self.steps if step.kept(keep)]
        for step in self.steps:
            if keep is not None:
                step.ops = [op for op in step.ops if (step.number, op.number) in keep]

    # The image.

    def draw_image(self):
        rng = self.rng
        self.version = rng.choice([2, 3, 3, 3, 3])
        v3 = self.version == 3
        self.cluster_bits = rng.choice([9, 9, 10, 11, 12, 12, 13, 14, 14, 15, 16, 16, 16, 17, 18, 19, 20, 21])
        self.extended_l2 = v3 and rng.random() < 0.25
        if self.extended_l2:
            self.cluster_bits = max(14, self.cluster_bits)
        self.cluster = 1 << self.cluster_bits
        self.refcount_bits = rng.choice([16, 16, 1, 2, 4, 8, 32, 64]) if v3 else 16
        self.lazy = v3 and rng.random() < 0.4
        self.compression = rng.choice([None, "zlib", "zstd"]) if v3 else rng.choice([None, None, "zlib"])
        self.preallocation = rng.choice(["off", "off", "off", "metadata", "falloc", "full"])
        self.bitmaps = rng.choice([0, 0, 0, 0, 1, 2]) if v3 else 0
        if self.cluster_bits >= 19 and rng.random() < 0.3:
            self.size = 64 * MIB
        else:
            self.size = rng.randint(1, 8) * MIB
        if rng.random() < 0.3:
            self.size -= rng.randrange(1, 1000) * SECTOR
        self.ours_makes = rng.random() < 0.4
        self.snapshots_wanted = rng.random() < 0.4

    def draw_data_file(self):
        # From numbers of its own: what the image without a data file does is what it was before there were any.
        rng = random.Random("data file %d" % self.seed)
        self.data_file = rng.choice(["plain", "raw"]) if self.version == 3 and rng.random() < 0.25 else None

    def draw_copy_on_read(self):
        """Sessions whose reads make the image's own what they find below."""
        rng = random.Random("copy on read %d" % self.seed)
        for step in self.steps:
            if step.kind == "io":
                step.args["copy_on_read"] = rng.random() < 0.3

    def draw_backing(self):
        """Formats and sizes of the files below, the nearest first."""
        rng = self.rng
        self.backing = []
        for formats in ([None, None, "raw", "qcow2", "qcow2"], [None, None, "raw", "qcow2"]):
            kind = rng.choice(formats)
            size = rng.choice([self.size, self.size, self.size // 2 + 12345, self.size + MIB, 1, self.size - 100])
            if kind == "qcow2":
                size = -(-size // SECTOR) * SECTOR
            runs = []
            for _ in range(rng.randint(0, 6)):
                offset = rng.randrange(size)
                length = min(rng.randint(1, max(1, size // 3)), size - offset)
                runs.append((offset, length, rng.randint(1, 255)))
            layer = {"format": kind, "size": size, "runs": runs, "compressed": rng.random() < 0.3,
                     "cluster": rng.choice([512, 4096, 65536, 65536]), "ours": rng.random() < 0.4}
            if kind and (not self.backing or self.backing[-1]["format"] == "qcow2"):
                self.backing.append(layer)

    def apply_without(self):
        off = self.without
        if "data_file" in off:
            self.data_file = None
        if self.data_file:
            self.without_what_data_files_exclude()
        if "bitmaps" in off:
            self.bitmaps = 0
        if "extended_l2" in off:
            self.extended_l2 = False
        if "compression" in off:
            self.compression = None
            self.steps = [step for step in self.steps if step.kind != "compress"]
        if "preallocation" in off:
            self.preallocation = "off"
        if "refcount_bits" in off:
            self.refcount_bits = 16
        if "backing" in off:
            self.backing = []
        if "backing2" in off:
            self.backing = self.backing[:1]
        if "lazy" in off:
            self.lazy = False
        if "compat" in off:
            self.version = 3
        if "cluster" in off:
            self.cluster_bits, self.cluster = 16, 65536
        # The stock tools take both only with extended L2 entries, and those only in this way.
        if self.backing and self.preallocation != "off":
            self.preallocation = "metadata" if self.extended_l2 else "off"
        for step in self.steps:
            if "copy_on_read" in off or not self.backing:
                step.args["copy_on_read"] = False
            if "swap" in off:
                step.swap = False
            if "options" in off:
                step.args["options"] = []
            if "cache" in off:
                step.args["cache"] = "writeback"
        if self.extended_l2 or self.compression == "zstd":
            self.ours_makes = False
        if self.extended_l2 or self.backing or self.data_file == "raw":
            # Where zeroes in flight and bytes meet in one cluster, the stock tools may lose either (compare.py).
            for op in (op for step in self.steps for op in step.ops if op.kind == "aio"):
                op.value = [value or 77 for value in op.value]

    def without_what_data_files_exclude(self):
        self.bitmaps = 0
        self.compression = None
        self.steps = [step for step in self.steps if step.kind not in ("compress", "snapshot")]
        if self.data_file == "raw":
            self.backing = []
            self.steps = [step for step in self.steps if step.kind != "commit"]
            for step in self.steps:
                # Then the stock tools' discard leaves other bytes in the raw file than in the disk (compare.py).
                step.args["options"] = [one for one in step.args.get("options", [])
                                        if one != "pass-discard-request=off"]

    def preallocates(self):
        return self.preallocation != "off" or any(
            step.kind == "resize" and step.args["preallocation"] for step in self.steps)

    def options(self):
        text = "compat=%s,cluster_size=%d" % ("0.10" if self.version == 2 else "1.1", self.cluster)
        if self.version == 3:
            text += ",refcount_bits=%d,lazy_refcounts=%s" % (self.refcount_bits, "on" if self.lazy else "off")
        if self.extended_l2:
            text += ",extended_l2=on"
        if self.compression and self.version == 3:
            text += ",compression_type=" + self.compression
        if self.preallocation != "off":
            text += ",preallocation=" + self.preallocation
        if self.data_file:
            text += ",data_file=%s,data_file_raw=%s" % (DATA_NAME, "on" if self.data_file == "raw" else "off")
        return text

    def properties(self):
        """What the image has, as words; the run says which pairs of them it has seen."""
        words = ["compat=%d" % self.version, "cluster=%s" % (
            "small" if self.cluster_bits < 12 else "middle" if self.cluster_bits < 17 else "large")]
        words.append("refcount_bits=%s" % (
            "16" if self.refcount_bits == 16 else "narrow" if self.refcount_bits < 16 else "wide"))
        for name, value in (("lazy_refcounts", self.lazy), ("extended_l2", self.extended_l2),
                            ("data_file=%s" % self.data_file, self.data_file), ("bitmaps", self.bitmaps), ("snapshots", any(
                                step.kind == "snapshot" for step in self.steps))):
            if value:
                words.append(name)
        if any(step.kind == "compress" for step in self.steps):
            words.append("compressed=%s" % self.compression)
        if self.preallocation != "off":
            words.append("preallocation=" + self.preallocation)
        if self.backing:
            words.append("backing=%s" % self.backing[0]["format"])
            size = self.backing[0]["size"]
            words.append("backing-size=%s" % (
                "same" if size == self.size else "longer" if size > self.size else "shorter"))
        if len(self.backing) > 1:
            words.append("chain-of-3")
        if any(step.args.get("copy_on_read") for step in self.steps):
            words.append("copy-on-read")
        words.append("made-by=%s" % ("ours" if self.ours_makes else "stock"))
        return words

    def __str__(self):
        below = "".join(" < %s of %d" % (layer["format"], layer["size"]) for layer in self.backing)
        return "%s size=%d%s%s, made by %s, %d steps" % (
            self.options(), self.size, below, ", %d bitmaps" % self.bitmaps if self.bitmaps else "",
            "ours" if self.ours_makes else "stock", len(self.steps))

    # The steps.

    def draw_step(self, left):
        rng = self.rng
        kinds = ["io"] * 12 + ["resize"] * 2 + ["check"] * 2 + ["compress"] * (3 if self.compression else 0)
        kinds += ["amend"] * 2
        kinds += ["snapshot"] * (4 if self.snapshots_wanted else 0) + ["commit"] * (1 if self.backing else 0)
        step = Step(len(self.steps), rng.choice(kinds), rng)
        self.steps.append(step)
        return getattr(self, "draw_" + step.kind)(step, left)

    def draw_io(self, step, left):
        rng = self.rng
        count = min(left, rng.randint(1, max(2, self.op_count // 4)))
        step.ops = [self.draw_op(number) for number in range(count)]
        end = rng.choices(["close", "flush-kill", "kill", "abort"], [60, 20, 12, 8])[0]
        options = []
        if rng.random() < 0.4:
            options.append(rng.choice(["l2-cache-size=4096", "l2-cache-entry-size=512", "overlap-check=all",
                                       "refcount-cache-size=2048", "cache-clean-interval=1",
                                       "pass-discard-request=off"]))
        if self.version == 3 and rng.random() < 0.25:
            options.append(rng.choice(["lazy-refcounts=on", "lazy-refcounts=off"]))
        discard = rng.choice(["unmap", "unmap", "unmap", "ignore"])
        if rng.random() < 0.3:
            options.append(rng.choice(["detect-zeroes=on", "pass-discard-snapshot=off", "pass-discard-other=on"] +
                                      ["detect-zeroes=unmap"] * (discard == "unmap") +
                                      # With snapshots the stock tool loses data that a snapshot shares.
                                      ["discard-no-unref=on"] * 2 * (self.version == 3 and not self.snapshots_wanted)))
        step.args = {"end": end, "cache": rng.choice(["writeback", "writeback", "writethrough", "none", "directsync"]),
                     "discard": discard, "options": options,
                     # After a kill both sides go on with one of the two images.
                     "follow": rng.randrange(2)}
        return count

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
        grain = rng.choice([1, SECTOR, SECTOR, 4096, self.cluster // 32 or 1, self.cluster, self.cluster])
        offset = offset // grain * grain
        length = -(-length // grain) * grain
        return offset, max(1, length)

    def draw_op(self, number):
        rng = self.rng
        kind = rng.choices(["write", "noise", "writev", "aio", "zero", "discard", "read", "flush", "reopen", "truncate"],
                           [22, 14, 6, 8, 18, 12, 12, 5, 2, 1])[0]
        offset, length = self.draw_range()
        flags = []
        if kind in ("write", "noise", "zero", "writev") and rng.random() < 0.12:
            flags.append("-f")
        if kind == "zero" and rng.random() < 0.5:
            flags.append("-u")
        value = rng.randint(1, 255)
        if kind == "reopen":
            value = rng.choice(["lazy-refcounts=on", "lazy-refcounts=off", "l2-cache-size=8192", "overlap-check=constant"])
            if self.version == 2 and value.startswith("lazy"):
                value = "overlap-check=none"
        elif kind == "truncate":
            length = self.draw_size()
        elif kind == "aio":
            # Neighbours, so that requests in flight meet in one cluster; how many, and which are zeroes.
            value = [rng.randint(1, 255) if rng.random() < 0.75 else 0 for _ in range(rng.randint(2, 5))]
        return Op(number, kind, offset, length, value, tuple(flags))

    def draw_size(self):
        rng = self.rng
        size = rng.choice([self.size + rng.randint(1, 4096) * SECTOR, self.size - rng.randint(1, 1000) * SECTOR,
                           self.size + 3 * self.cluster, self.size // 2, self.size])
        return max(SECTOR, size // SECTOR * SECTOR)

    def draw_resize(self, step, _left):
        step.args = {"size": self.draw_size(), "preallocation": self.rng.choice(
            [None, None, None, "metadata", "falloc", "full"])}
        return 1

    def draw_check(self, step, _left):
        step.args = {"repair": self.rng.choice([None, "leaks", "all"])}
        return 1

    def draw_compress(self, step, left):
        rng = self.rng
        count = min(left, rng.randint(1, 6))
        for number in range(count):
            offset, _ = self.draw_range()
            step.ops.append(Op(number, rng.choice(["pattern", "noise"]), offset, rng.randint(1, 4),
                               rng.randint(0, 255)))
        return count

    def draw_snapshot(self, step, _left):
        step.args = {"action": self.rng.choice(["-c", "-c", "-a", "-d"]), "pick": self.rng.randrange(100),
                     "name": "s%d" % step.number}
        return 1

    def draw_amend(self, step, _left):
        """Settings, one command each. The version goes there and back: later steps know which one it is."""
        there, back = ("1.1", "0.10") if self.version == 2 else ("0.10", "1.1")
        step.args = {"settings": self.rng.choice([
            ["compat=" + there, "compat=" + back], ["compat=" + there, "compat=" + back],
            ["lazy_refcounts=on"], ["lazy_refcounts=off"],
            ["refcount_bits=%d" % self.rng.choice([1, 2, 4, 8, 16, 16, 32, 64])]])}
        return 1

    def draw_commit(self, _step, _left):
        return 1
