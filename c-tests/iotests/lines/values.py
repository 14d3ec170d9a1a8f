# SPDX-License-Identifier: MIT OR Apache-2.0
"""Values for options and operands: good ones, and bad ones as often as a case asks for."""

from lines.fixture import IMAGES, ODD_NAMES

SIZES = ["512", "64k", "1M", "1024k", "0", "1.5M", "0x20000", "1000", "65537", "3M", "0.5K", "1024b", "2m", "100K"]
LARGE_SIZES = ["1T", "100G", "8E", "9223372036854775807", "64T", "1P"]
BAD_SIZES = ["", "abc", "-1", "1kk", "16E", "18446744073709551616", "1 M", "1.5", "k", "0x", "--", "1.5e3", "+5", "1M,", "-1k"]
CACHES = ["none", "writeback", "writethrough", "directsync", "unsafe", "off"]
BAD_CACHES = ["foo", "", "WRITEBACK", "unsafe2"]
FORMATS = ["qcow2", "raw"]
BAD_FORMATS = ["foo", "", "QCOW2", "qcow2 ", "bogus"]
COUNTS = ["1", "2", "3", "10", "0"]
BAD_COUNTS = ["0", "-1", "abc", "", "17", "1.5k", "99999999999999999999"]
PREALLOCATION = ["off", "metadata", "falloc", "full"]
SNAPSHOTS = ["first", "second", "1", "2", "new", "third"]
BAD_SNAPSHOTS = ["", "nothing", "snapshot.name=first", "snapshot.id=2", "snapshot.id=1,snapshot.name=first",
                 "snapshot.id=1,snapshot.name=second", "snapshot.foo=1", "3"]
BITMAPS = ["b0", "b1", "b2", "new"]
BAD_BITMAPS = ["", "nothing", "b" * 1024, "two words"]
OBJECTS = ["secret,id=sec0,data=hello", "secret,id=s,data=aGVsbG8=,format=base64"]
BAD_OBJECTS = ["secret", "foo,id=x", "secret,id=1x,data=a", "", "id=x", "secret,id=x", "secret,id=x,data=a,foo=b"]
NEW_NAMES = ["new.qcow2", "new.raw", "new", "folder/new.qcow2"]

CREATE_OPTIONS = {
    "cluster_size": (["512", "4k", "64k", "65536", "2M", "1M", "0x1000"], ["0", "1000", "4M", "256", "abc", "", "-512", "63k"]),
    "compat": (["0.10", "1.1", "v2", "v3"], ["0.42", "foobar", "", "1.2"]),
    "compression_type": (["zlib", "zstd"], ["lzma", ""]),
    "data_file": (["new.data"], ["", "base.raw"]),
    "data_file_raw": (["on", "off"], ["maybe", ""]),
    "encryption": (["off"], ["maybe"]),
    "extended_l2": (["on", "off"], ["maybe", "true"]),
    "lazy_refcounts": (["on", "off"], ["1", "", "yes"]),
    "preallocation": (PREALLOCATION, ["1234", "on", ""]),
    "refcount_bits": (["1", "2", "4", "8", "16", "32", "64"], ["0", "3", "-1", "128", "42", "abc", "", "16k"]),
    "size": (SIZES, BAD_SIZES),
    "backing_file": (["base.qcow2", "base.raw", "over.qcow2"], ["missing.qcow2", "", "new.qcow2"]),
    "backing_fmt": (FORMATS, BAD_FORMATS),
    "extent_size_hint": (["0", "1M", "65536"], ["abc", "-1"]),
    "nocow": (["on", "off"], ["maybe"]),
}
RAW_OPTIONS = ("size", "preallocation", "extent_size_hint", "nocow")
AMEND_OPTIONS = ("compat", "lazy_refcounts", "size", "backing_file", "backing_fmt", "data_file", "data_file_raw",
                 "refcount_bits", "cluster_size", "preallocation", "extended_l2", "compression_type", "encryption")
BAD_LISTS = ["foo=bar", "foo", "", ",", "cluster_size", "cluster_size=64k,", ",cluster_size=64k", "cluster_size=64k,,",
             "=", "size", "help", "?", "nolazy_refcounts", "lazy_refcounts", "backing_file=a,,b", "cluster_size=64k,foo=1"]


class Values:
    """Draws values; `bad` is how likely one is wrong."""

    def __init__(self, rng, bad):
        self.rng = rng
        self.bad = bad
        self.image_format = "qcow2"
        self.modest = False
        # What copies zeroes would copy terabytes of them.
        self.may_be_huge = True

    def bitmap(self):
        return self.pick(BITMAPS, BAD_BITMAPS)

    def granularity(self):
        return self.pick(["64k", "512", "2M", "4096"], ["0", "1", "3k", "abc", "-1", "", "4G", "256"])

    def wrong(self, factor=1.0):
        return self.rng.random() < self.bad * factor

    def pick(self, good, bad):
        return self.rng.choice(bad if self.wrong() and bad else good)

    def image(self):
        """The first image decides what -f is, mostly."""
        if self.wrong():
            name, kind = self.rng.choice(ODD_NAMES), "qcow2"
        else:
            name, kind = self.rng.choice([one for one in IMAGES if self.may_be_huge or one[0] != "huge.qcow2"])
        self.image_format = kind
        return name

    def format(self):
        return self.image_format if self.rng.random() > self.bad / 2 else self.rng.choice(FORMATS + BAD_FORMATS)

    def new_format(self):
        return self.pick(["qcow2", "qcow2", "raw"], BAD_FORMATS)

    def size(self):
        if self.wrong():
            return self.rng.choice(BAD_SIZES)
        return self.rng.choice(SIZES if self.modest or self.rng.random() < 0.85 else LARGE_SIZES)

    def new_size(self):
        """Of resize."""
        return self.rng.choice(["", "", "+", "-"]) + self.size()

    def offset(self):
        return self.pick(["0", "64k", "512", "1M", "100k", "128k", "2M"], BAD_SIZES)

    def cache(self):
        return self.pick(CACHES, BAD_CACHES)

    def output(self):
        return self.pick(["human", "json"], ["foo", "", "JSON"])

    def object(self):
        return self.pick(OBJECTS, BAD_OBJECTS)

    def snapshot(self):
        return self.pick(SNAPSHOTS, BAD_SNAPSHOTS)

    def source_snapshot(self):
        return self.pick(["first", "second", "1", "2", "snapshot.name=first", "snapshot.id=2"], BAD_SNAPSHOTS)

    def backing(self):
        return self.pick(["base.qcow2", "base.raw", "over.qcow2", "short.qcow2", "empty.qcow2"],
                         ODD_NAMES + ["top.qcow2", "new.qcow2"])

    def new_backing(self):
        """Of rebase, which takes an empty one."""
        return self.pick(["base.qcow2", "base.raw", "over.qcow2", "short.qcow2", "empty.qcow2", ""], ODD_NAMES + ["top.qcow2"])

    def backing_format(self):
        return self.pick(FORMATS, BAD_FORMATS)

    def commit_base(self):
        return self.pick(["base.qcow2", "over.qcow2", "base.raw"], ODD_NAMES + ["top.qcow2", "./base.qcow2"])

    def repair(self):
        return self.pick(["leaks", "all"], ["foo", "", "errors"])

    def preallocation(self):
        self.modest = True
        return self.pick(PREALLOCATION, ["foo", ""])

    def rate(self):
        return self.pick(["1M", "100M"], BAD_SIZES)

    def sparse(self):
        return self.pick(["0", "512", "4k", "8k", "64k", "1M"], ["1", "513", "17M", "abc", "-1", ""])

    def parallel(self):
        return self.pick(["1", "2", "8", "16"], BAD_COUNTS)

    def list_of(self, keys):
        if self.wrong(0.5):
            return self.rng.choice(BAD_LISTS)
        words = []
        for key in self.rng.sample(keys, self.rng.choice([1, 1, 1, 2, 2, 3])):
            words.append("%s=%s" % (key, self.pick(*CREATE_OPTIONS[key])))
        text = ",".join(words)
        if "preallocation=f" in text:
            self.modest = True
        return text

    def create_list(self):
        keys = list(CREATE_OPTIONS) if self.wrong() else [key for key in CREATE_OPTIONS
                                                         if key not in ("encryption", "extent_size_hint", "nocow")]
        return self.list_of(keys)

    def amend_list(self):
        return self.list_of(list(AMEND_OPTIONS))

    def count(self):
        return self.pick(["1", "10", "100"], BAD_COUNTS + ["9999999999"])

    def depth(self):
        return self.pick(["1", "4", "64"], BAD_COUNTS)

    def buffer(self):
        return self.pick(["4k", "512", "64k", "1M"], BAD_SIZES + ["0", "3G"])

    def aio(self):
        return self.pick(["threads", "native", "io_uring"], ["foo", ""])

    def pattern(self):
        return self.pick(["0", "65", "255"], ["256", "-1", "abc", ""])

    def interval(self):
        return self.pick(["1", "5", "100"], ["0", "-1", "abc"])
