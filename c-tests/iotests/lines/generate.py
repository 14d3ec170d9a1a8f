# SPDX-License-Identifier: MIT OR Apache-2.0
"""Command lines of each subcommand, from its options and from values for them."""

import itertools
import random

from lines.values import NEW_NAMES, Values

QUIET = ("-q", "--quiet", None)
PROGRESS = ("-p", "--progress", None)
FORMAT = ("-f", "--format", "format")
IMAGE_OPTS = (None, "--image-opts", None)
OBJECT = (None, "--object", "object")
SHARE = ("-U", "--force-share", None)
OUTPUT = (None, "--output", "output")

# (short, long, kind of value) of every option of the stock tool, as it takes them: some long names of its help it does not.
OPTIONS = {
    "amend": [QUIET, PROGRESS, FORMAT, IMAGE_OPTS, ("-o", "--options", "amend_list"), ("-t", "--cache", "cache"),
              (None, "--force", None), OBJECT],
    "bench": [("-q", None, None), FORMAT, IMAGE_OPTS, SHARE, ("-t", "--cache", "cache"), ("-c", "--count", "count"), ("-d", "--depth", "depth"),
              ("-o", "--offset", "offset"), ("-s", "--buffer-size", "buffer"), ("-S", "--step-size", "buffer"),
              ("-i", "--aio", "aio"), ("-n", "--native", None), ("-w", "--write", None), (None, "--pattern", "pattern"),
              (None, "--flush-interval", "interval"), (None, "--no-drain", None)],
    "bitmap": [QUIET, ("-f", None, "format"), IMAGE_OPTS, OBJECT, (None, "--add", None), (None, "--remove", None), (None, "--clear", None),
               (None, "--enable", None), (None, "--disable", None), (None, "--merge", "bitmap"), ("-b", "--source-file", "image"),
               ("-F", "--source-format", "format"), ("-g", "--granularity", "granularity")],
    "check": [QUIET, FORMAT, IMAGE_OPTS, SHARE, OUTPUT, OBJECT, ("-T", "--cache", "cache"), ("-r", "--repair", "repair")],
    "commit": [QUIET, PROGRESS, FORMAT, IMAGE_OPTS, OBJECT, ("-t", "--cache", "cache"), ("-d", "--drop", None),
               ("-b", "--base", "commit_base"), ("-r", "--rate", "rate")],
    "compare": [QUIET, PROGRESS, ("-f", "--a-format", "format"), ("-F", "--b-format", "backing_format"), IMAGE_OPTS, SHARE, OBJECT,
                ("-T", "--cache", "cache"), ("-s", "--strict", None)],
    "convert": [QUIET, ("-p", None, None), ("-f", "--source-format", "format"), IMAGE_OPTS, SHARE, OBJECT, ("-T", "--source-cache", "cache"),
                ("-l", None, "source_snapshot"), ("-O", None, "new_format"),
                (None, "--target-image-opts", None), ("-o", None, "create_list"),
                ("-t", None, "cache"), ("-c", None, None), ("-B", "--backing", "backing"),
                ("-F", "--backing-format", "backing_format"), ("-n", None, None), (None, "--target-is-zero", None),
                ("-S", "--sparse-size", "sparse"), ("-m", "--parallel", "parallel"), ("-W", "--oob-writes", None),
                ("-C", "--copy-range-offloading", None), ("-r", "--rate", "rate"), (None, "--salvage", None)],
    "create": [QUIET, ("-f", "--format", "new_format"), ("-o", "--options", "create_list"), ("-b", "--backing", "backing"),
               ("-F", "--backing-format", "backing_format"), ("-u", "--backing-unsafe", None), OBJECT],
    "dd": [FORMAT, IMAGE_OPTS, SHARE, OBJECT, ("-O", "--output-format", "new_format")],
    "info": [FORMAT, IMAGE_OPTS, SHARE, OBJECT, OUTPUT, ("-b", "--backing-chain", None)],
    "map": [FORMAT, IMAGE_OPTS, SHARE, OBJECT, OUTPUT, ("-s", "--start-offset", "offset"), ("-l", "--max-length", "offset")],
    "measure": [FORMAT, IMAGE_OPTS, SHARE, OBJECT, OUTPUT, ("-O", "--target-format", "new_format"), ("-o", None, "create_list"),
                (None, "--size", "size"), ("-l", "--snapshot", "source_snapshot")],
    "rebase": [QUIET, PROGRESS, FORMAT, IMAGE_OPTS, SHARE, OBJECT, ("-t", "--cache", "cache"), ("-b", "--backing", "new_backing"),
               ("-F", "--backing-format", "backing_format"), ("-T", "--backing-cache", "cache"), ("-u", "--backing-unsafe", None),
               ("-c", "--compress", None)],
    "resize": [QUIET, FORMAT, IMAGE_OPTS, OBJECT, (None, "--shrink", None), (None, "--preallocation", "preallocation")],
    "snapshot": [QUIET, FORMAT, IMAGE_OPTS, SHARE, OBJECT, ("-l", "--list", None), ("-a", None, "snapshot"),
                 ("-c", None, "snapshot"), ("-d", None, "snapshot")],
}
# Weight of each: what scripts use more comes more often, and what has more options.
WEIGHTS = {"create": 5, "convert": 6, "check": 2, "info": 2, "map": 2, "compare": 2, "rebase": 3, "snapshot": 2, "resize": 2,
           "amend": 3, "commit": 2, "measure": 2, "dd": 2, "bench": 1, "bitmap": 2}
# What a line cannot do without.
NEEDED = {"amend": "-o", "bitmap": "--add", "convert": "-O", "create": "-f", "rebase": "-b", "snapshot": None}


def key_of(option):
    return option[0] or option[1]


def pairs_of(command):
    return [set(map(key_of, pair)) for pair in itertools.combinations(OPTIONS[command], 2)]


class Line:
    """One command line: words after the tool's name."""

    def __init__(self, rng, command, pair, bad):
        self.rng = rng
        self.command = command
        self.values = Values(rng, bad)
        self.values.may_be_huge = command not in ("convert", "dd", "rebase")
        self.keys = set(pair)
        needed = NEEDED.get(command)
        if needed and not self.values.wrong(0.5):
            self.keys.add(needed)
        if rng.random() < 0.3:
            self.keys.add(key_of(rng.choice(OPTIONS[command])))
        if "--image-opts" in self.keys and rng.random() < 0.8:
            self.keys -= {"-f", "-F"} if command == "compare" else {"-f"}

    def words(self):
        names = self.names()
        options = []
        chosen = [option for option in OPTIONS[self.command] if key_of(option) in self.keys]
        self.rng.shuffle(chosen)
        for option in chosen:
            options.append(self.spell(option))
        operands = self.operands(names)
        if self.rng.random() < 0.15:
            # Options may stand after operands.
            spread = options + [[word] for word in operands]
            self.rng.shuffle(spread)
            return [self.command] + [word for part in spread for word in part]
        return [self.command] + [word for part in options for word in part] + operands

    def spell(self, option):
        short, long, kind = option
        use_long = not short or (long and self.rng.random() < 0.3)
        if not kind:
            return [long if use_long else short]
        value = getattr(self.values, kind)()
        if use_long:
            return [long + "=" + value] if self.rng.random() < 0.5 else [long, value]
        return [short, value] if not value or self.rng.random() < 0.85 else [short + value]

    def names(self):
        """Images first: options depend on them."""
        command, values = self.command, self.values
        if command == "create":
            return [self.rng.choice(NEW_NAMES + ["new.qcow2"] * 4 + ["base.raw", "nowhere/new.qcow2", "folder"])
                    if values.wrong() else "new.qcow2"]
        if "--image-opts" in self.keys and not values.wrong():
            return ["driver=%s,file.filename=%s" % (values.image_format, name) if self.rng.random() < 0.8
                    else "file.filename=" + name for name in [values.image()]]
        return [values.image()]

    def operands(self, names):
        command, values, rng = self.command, self.values, self.rng
        if command == "create":
            given = [] if "-b" in self.keys and rng.random() < 0.6 else [values.size()]
            operands = names + given
        elif command == "convert":
            target = rng.choice(["empty.qcow2", "zeroes.raw", "base.qcow2"]) if "-n" in self.keys else rng.choice(
                NEW_NAMES[:3] + (["folder", "nowhere/new", "", "base.raw"] if values.wrong() else []))
            more = [values.image()] if rng.random() < 0.15 else []
            operands = names + more + [target]
        elif command == "compare":
            operands = names + [values.image() if rng.random() < 0.6 else rng.choice(["base.qcow2", "base.raw", "packed.qcow2"])]
        elif command == "resize":
            operands = names + [values.new_size()]
        elif command == "dd":
            operands = self.dd_operands(names)
        elif command == "bitmap":
            operands = names + [values.bitmap()]
        elif command == "measure":
            operands = names if "--size" not in self.keys else []
            if values.wrong():
                operands = names
        else:
            operands = names
        if values.wrong(0.3):
            operands = rng.choice([operands[:-1], operands + ["extra"]])
        return operands

    def dd_operands(self, names):
        rng, values = self.rng, self.values
        operands = ["if=" + names[0], "of=" + rng.choice(NEW_NAMES[:3])]
        if rng.random() < 0.6:
            operands.append("bs=" + values.pick(["512", "64k", "1M", "1000", "4096"], ["0", "abc", "-1", "", "4G", "1"]))
        if rng.random() < 0.5:
            operands.append("count=" + values.pick(["1", "3", "0", "10"], ["abc", "-1", "", "1k"]))
        if rng.random() < 0.3:
            operands.append("skip=" + values.pick(["0", "1", "3"], ["abc", "-1", "99999999", ""]))
        if values.wrong(0.4):
            operands.append(rng.choice(["foo=1", "conv=sync", "bs", "=", "seek=1", "if=base.raw"]))
        rng.shuffle(operands)
        return operands


def one_line(rng, command, pair, bad=None, modest=False):
    if bad is None:
        bad = rng.choice([0, 0, 0, 0.1, 0.1, 0.4])
    line = Line(rng, command, pair, bad)
    line.values.modest = line.values.modest or modest
    return ["img"] + line.words()


class Deck:
    """All pairs of options of all commands, shuffled: dealt one after another, so that every pair comes up."""

    def __init__(self, seed):
        self.rng = random.Random("pairs %d" % seed)
        self.decks = {}

    def next(self, command):
        deck = self.decks.get(command)
        if not deck:
            deck = self.decks[command] = pairs_of(command)
            self.rng.shuffle(deck)
        return deck.pop()


def io_step(rng, name):
    commands = []
    for _ in range(rng.randrange(1, 4)):
        offset, length = rng.randrange(0, 1800) * 512, rng.choice([512, 4096, 65536, 100000 // 512 * 512])
        commands += ["-c", rng.choice(["write -P %d" % rng.randrange(1, 255), "write -z", "discard"]) + " %d %d" % (offset, length)]
    return ["io", "-f", "qcow2", "-d", "unmap"] + commands + [name]


def script(rng, deck, length):
    """A list of lines about one image that the first of them makes."""
    values = Values(rng, 0.03)
    name = "new.qcow2"
    create = ["img", "create", "-f", "qcow2"]
    for _ in range(rng.randrange(0, 3)):
        create += ["-o", values.create_list()]
    below = rng.random() < 0.4
    if below:
        create += ["-b", rng.choice(["base.qcow2", "over.qcow2"]), "-F", "qcow2"]
    steps = [create + [name] + ([] if below and rng.random() < 0.5 else [rng.choice(["1M", "960k", "1536k"])])]
    for _ in range(length):
        kind = rng.choice(["io", "io", "snapshot", "snapshot", "resize", "amend", "commit", "rebase", "check", "info", "map",
                           "measure", "convert", "compare"])
        if kind == "io":
            steps.append(io_step(rng, name))
            continue
        line = one_line(rng, kind, rng.choice(pairs_of(kind)), 0, modest=True)
        # The image that the line is about becomes the one of the script.
        index = len(line) - (2 if kind in ("convert", "compare", "resize") else 1)
        if not line[index].startswith("-") and "=" not in line[index]:
            line[index] = name
        steps.append(line)
    return steps


def cases(seed, count):
    """(number, steps) of each: a step is "img" or "io", and its words."""
    deck = Deck(seed)
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    for number in range(count):
        rng = random.Random("line %d %d" % (seed, number))
        command = rng.choice(names)
        pair = deck.next(command)
        if rng.random() < 0.15:
            yield number, script(rng, deck, rng.randrange(2, 7))
        else:
            yield number, [one_line(rng, command, pair)]
