#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Makes seed inputs of the fuzz targets with QEMU's tools. The results are committed (fuzz/corpus);
run this only to add to them:  fuzz/seeds.py fuzz/corpus"""

import os
import random
import struct
import subprocess
import sys
import tempfile

SECRET = ["--object", "secret,id=s,data=fuzz"]


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def io(path, *commands, options=()):
    extra = [word for command in commands for word in ("-c", command)]
    run("qemu-io", "-f", "qcow2", *options, *extra, path)


def create(path, size, *options, extra=()):
    words = [word for option in options for word in ("-o", option)]
    run("qemu-img", "create", "-q", "-f", "qcow2", *extra, *words, path, size)


def images(folder):
    """Yields name and path of each image."""

    def path(name):
        return os.path.join(folder, name)

    def made(name, size, *options, commands=(), snapshots=0, extra=()):
        create(path(name), size, *options, extra=extra)
        if commands:
            io(path(name), *commands)
        for number in range(snapshots):
            run("qemu-img", "snapshot", "-c", f"s{number}", path(name))
            io(path(name), f"write -P {number + 7} {number * 512} 1024")
        return name, path(name)

    small = "cluster_size=512"
    writes = ("write -P 5 0 2k", "write -P 9 33k 1k", "write -z 8k 2k", "discard 0 512")
    yield made("empty-512", "64k", small)
    yield made("empty-64k", "1M")
    yield made("empty-2m", "4M", "cluster_size=2M")
    yield made("v2", "64k", small, "compat=0.10", commands=writes[:2])
    yield made("data-512", "64k", small, commands=writes)
    yield made("data-4k", "256k", "cluster_size=4k", commands=writes)
    yield made("data-64k", "1M", commands=("write -P 3 0 512", "write -P 4 512k 512", "write -z 64k 64k"))
    for bits in (1, 2, 4, 8, 32, 64):
        yield made(f"refcount-{bits}", "48k", small, f"refcount_bits={bits}", commands=writes[:2])
    yield made("lazy", "64k", small, "lazy_refcounts=on", commands=writes)
    yield made("snapshots", "32k", small, commands=writes[:1], snapshots=3)
    yield made("snapshots-64", "32k", small, "refcount_bits=64", commands=writes[:1], snapshots=2)
    yield made("snapshot-v2", "32k", small, "compat=0.10", commands=writes[:1], snapshots=1)
    yield made("snapshots-64k", "1M", commands=("write -P 3 0 512",), snapshots=2)
    yield made("extended-16k", "256k", "cluster_size=16k", "extended_l2=on",
               commands=("write -P 3 0 512", "write -P 4 20k 1k", "write -z 33k 2k"))
    yield made("extended-64k", "1M", "extended_l2=on",
               commands=("write -P 3 0 2k", "write -P 4 100k 4k", "write -z 130k 2k"))
    yield made("extended-snapshot", "256k", "cluster_size=16k", "extended_l2=on",
               commands=("write -P 3 0 512", "write -P 4 20k 1k"), snapshots=1)
    yield made("preallocated", "16k", small, "preallocation=metadata")
    for codec in ("zlib", "zstd"):
        for size in ("512", "4k", "64k"):
            name = f"compressed-{codec}-{size}"
            create(path(name), "512k", f"cluster_size={size}", f"compression_type={codec}")
            over = "write -P 4 256k 512" if size == "64k" else "write -P 4 1k 512"
            last = "write -c -P 6 128k " + ("4k" if size == "512" else "64k")
            io(path(name), f"write -c -P 3 0 {'8k' if size == '512' else '64k'}", over, last)
            yield name, path(name)
    create(path("compressed-snapshot"), "64k", "cluster_size=4k")
    io(path("compressed-snapshot"), "write -c -P 3 0 16k")
    run("qemu-img", "snapshot", "-c", "s", path("compressed-snapshot"))
    io(path("compressed-snapshot"), "write -P 4 1k 1k")
    yield "compressed-snapshot", path("compressed-snapshot")
    create(path("bitmaps"), "64k", small)
    for number in range(2):
        run("qemu-img", "bitmap", "--add", "-g", "512", path("bitmaps"), f"bitmap{number}")
    io(path("bitmaps"), "write -P 3 0 4k")
    yield "bitmaps", path("bitmaps")
    base = path("base")
    create(base, "64k", small)
    create(path("backing"), "64k", small, f"backing_file={base[-4:]}", "backing_fmt=qcow2")
    io(path("backing"), "write -P 3 0 1k")
    yield "backing", path("backing")
    create(path("backing-v2"), "64k", "cluster_size=64k", "compat=0.10", "backing_file=b", "backing_fmt=raw",
           extra=("-u",))
    yield "backing-v2", path("backing-v2")
    data = path("d")
    create(path("data-file"), "64k", "cluster_size=4k", f"data_file={data}", "data_file_raw=on")
    run("qemu-img", "amend", "-f", "qcow2", "-o", "data_file=d", path("data-file"))
    yield "data-file", path("data-file")
    create(path("luks"), "64k", "encrypt.format=luks", "encrypt.key-secret=s", "encrypt.iter-time=10",
           "cluster_size=4k", extra=SECRET)
    yield "luks", path("luks")
    yield made("dirty", "64k", small, "lazy_refcounts=on")
    yield from broken(folder)


def patch(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def be64(path, at):
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack(">Q", file.read(8))[0]


def broken(folder):
    """Images with one thing wrong, for the paths of a repair."""
    cases = {
        "dirty-bit": lambda p: patch(p, 79, b"\x01"),
        "corrupt-bit": lambda p: patch(p, 79, b"\x02"),
        "leak": lambda p: patch(p, be64(p, be64(p, 48)) + 60, b"\x00\x01"),
        "count-too-low": lambda p: patch(p, be64(p, be64(p, 48)) + 8, b"\x00\x00"),
        "no-block": lambda p: patch(p, be64(p, 48), bytes(8)),
        "block-outside": lambda p: patch(p, be64(p, 48), struct.pack(">Q", 1 << 20)),
        "block-misaligned": lambda p: patch(p, be64(p, 48), struct.pack(">Q", 0x333)),
        "table-outside": lambda p: patch(p, 48, struct.pack(">Q", 1 << 20)),
        "not-copied": lambda p: patch(p, be64(p, 40), struct.pack(">Q", be64(p, be64(p, 40)) & ~(1 << 63))),
        "shared-entry": lambda p: patch(p, l2(p) + 8, struct.pack(">Q", be64(p, l2(p)))),
        "entry-outside": lambda p: patch(p, l2(p), struct.pack(">Q", 1 << 63 | 1 << 30)),
        "entry-misaligned": lambda p: patch(p, l2(p), struct.pack(">Q", 1 << 63 | 0x600 | 1 << 8)),
        "zero-misaligned": lambda p: patch(p, l2(p), struct.pack(">Q", 1 << 63 | 0x601)),
    }

    def l2(p):
        return be64(p, be64(p, 40)) & 0xFFFFFFFFFFFE00

    for name, damage in cases.items():
        path = os.path.join(folder, name)
        size = "4k" if name == "entry-misaligned" else "512"
        create(path, "32k", f"cluster_size={size}")
        io(path, "write -P 5 0 2k", "write -P 9 16k 1k")
        damage(path)
        yield name, path


def runs(data, gap=24):
    """Stretches of bytes that are not zero, joined over small gaps."""
    start = end = None
    for at in range(len(data)):
        if data[at] == 0:
            continue
        if start is None:
            start = at
        elif at - end > gap or at - start >= 65000:
            yield start, data[start:end]
            start = at
        end = at + 1
    if start is not None:
        yield start, data[start:end]


def some_requests(randomness):
    """See fuzz/bodies/script.rs."""
    return [bytes((randomness.randrange(10), randomness.randrange(96), 0, randomness.randrange(12),
                   randomness.choice((0, 0, 0, 4, 0x43, 0x81)), randomness.randrange(256)))
            for _ in range(randomness.randrange(4, 9))]


def container(data, requests, manner):
    """See fuzz/bodies/container.rs."""
    out = bytes((manner, len(requests))) + b"".join(requests)
    out += struct.pack("<I", (len(data) + 511) // 512)
    for at, run_of_bytes in runs(data):
        out += struct.pack("<IH", at, len(run_of_bytes)) + run_of_bytes
    return out


def main():
    corpus = sys.argv[1]
    randomness = random.Random(1)
    for target in ("image", "header", "structure", "bitmaps"):
        os.makedirs(os.path.join(corpus, target), exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, path in images(folder):
            with open(path, "rb") as file:
                # Of a key area only the start matters.
                data = file.read(8192) if name == "luks" else file.read()
            requests = some_requests(randomness)
            seed = container(data, requests, randomness.randrange(256))
            if len(seed) > 16384:
                print(f"{name}: {len(seed)} bytes", file=sys.stderr)
            write(corpus, "image", name, seed)
            if name in COPIED:
                write(corpus, "image", "copies-" + name, container(data, COPIES, 0))
            if name in HEADERS:
                # An even first byte: a file; its length comes from the upper half.
                end = max((at for at in range(min(len(data), 1024)) if data[at]), default=0)
                write(corpus, "header", name, bytes((2 | 0x70,)) + data[:end + 1])
    for number, options in enumerate(OPTIONS):
        write(corpus, "header", f"options-{number}", bytes((1, 3 + 3 * number)) + "\n".join(options).encode())
    for number in range(80):
        write(corpus, "bitmaps", f"kind{number % 10}-{number // 10}", bitmaps(number, randomness))
    for number in range(40):
        write(corpus, "structure", f"kind{number % 10}-{number // 10}", structure(number, randomness))


def write(corpus, target, name, data):
    with open(os.path.join(corpus, target, name), "wb") as out:
        out.write(data)


HEADERS = ("empty-512", "empty-64k", "v2", "refcount-1", "refcount-64", "lazy", "snapshots", "extended-16k",
           "compressed-zstd-4k", "bitmaps", "backing", "backing-v2", "data-file", "luks", "dirty-bit", "corrupt-bit")
COPIED = ("data-512", "v2", "snapshots", "extended-16k", "compressed-zstd-4k", "backing", "backing-v2", "data-file")
# A write, then conversions and rebases of each kind.
COPIES = [bytes((0, 3, 0, 5, 0, 9))] + [bytes((9, 0, 0, length, 0, 7)) for length in (0, 10, 4, 14, 1, 3, 7, 13)]
OPTIONS = (
    ("cluster_size=512", "refcount_bits=1"),
    ("compat=0.10",),
    ("cluster_size=2M", "preallocation=metadata"),
    ("lazy_refcounts=on", "compat=v3", "refcount_bits=64", "cluster_size=4k"),
    ("backing_file=base", "backing_fmt=qcow2"),
    ("preallocation=full", "cluster_size=1024"),
    ("l2-cache-size=1M", "overlap-check.active-l1=off", "discard=ignore", "cache=none"),
    ("compression_type=zstd", "extended_l2=on", "data_file=x", "encrypt.format=luks"),
)


def bitmaps(number, randomness):
    """See fuzz/bodies/bitmaps.rs: an image, bitmaps, damages of each kind or none, requests."""
    count, damages, requests = randomness.randrange(1, 4), 1 if number % 10 < 8 else 0, randomness.randrange(6, 20)
    out = bytes((randomness.choice((0, 2, 3, 4, 8)), randomness.randrange(20, 256), count - 1, number % 10 == 9))
    out += b"".join(bytes((number << 3 & 0x78 | randomness.randrange(8), randomness.randrange(256)))
                    for number in range(count))
    out += bytes((damages, requests | randomness.choice((0, 0, 0x80))))
    for _ in range(damages):
        value = randomness.choice((randomness.randrange(1 << 32), randomness.randrange(64)))
        out += struct.pack("<BBHI", number % 10, randomness.randrange(4), randomness.randrange(64), value)
    return out + bytes(randomness.randrange(256) for _ in range(requests * 4))


def structure(number, randomness):
    """See fuzz/bodies/structure.rs: an image, requests, damages of each kind, more requests."""

    def request():
        return bytes((randomness.choice((0, 0, 0, 1, 3, 4)), randomness.randrange(64), 0,
                      randomness.randrange(1, 12), randomness.choice((0, 0, 4, 0x43)), randomness.randrange(256)))

    def damage(kind):
        value = randomness.choice((randomness.randrange(1 << 32), randomness.randrange(64)))
        return struct.pack("<BHBI", kind, randomness.randrange(32), randomness.randrange(256), value)

    foreign = number // 10 == 3
    kind = 0x80 if foreign else randomness.choice((0, 1, 4, 6, 0x10))
    shape = randomness.randrange(9) if foreign else randomness.choice((4, 4, 0, 6, 3, 0x10, 0xc, 0x24))
    fills, damages, later = randomness.randrange(2, 6), 1 + number // 10 % 2, randomness.randrange(2, 6)
    out = bytes((kind, shape, randomness.randrange(16, 160), fills, damages - 1,
                 randomness.randrange(256) & 0x9F, later, 0))
    out += b"".join(request() for _ in range(fills))
    out += b"".join(damage(number % 10 if index == 0 else randomness.randrange(10)) for index in range(damages))
    return out + b"".join(request() for _ in range(later))


if __name__ == "__main__":
    sys.argv[1] = os.path.abspath(sys.argv[1])
    main()
