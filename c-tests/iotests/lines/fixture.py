# SPDX-License-Identifier: MIT OR Apache-2.0
"""The folder that every command line starts from: small images of each kind, made by the stock tools."""

import os
import subprocess

# Everything that an image name is taken from: (name, format, whether it is fit for use).
IMAGES = [
    ("base.qcow2", "qcow2"), ("base.raw", "raw"), ("over.qcow2", "qcow2"), ("top.qcow2", "qcow2"),
    ("over-raw.qcow2", "qcow2"), ("snap.qcow2", "qcow2"), ("packed.qcow2", "qcow2"), ("small.qcow2", "qcow2"),
    ("old.qcow2", "qcow2"), ("wide.qcow2", "qcow2"), ("empty.qcow2", "qcow2"), ("short.qcow2", "qcow2"),
    ("outside.qcow2", "qcow2"), ("leaky.qcow2", "qcow2"), ("dirty.qcow2", "qcow2"), ("huge.qcow2", "qcow2"),
    ("marked.qcow2", "qcow2"), ("marked.qcow2", "qcow2"),
    ("zeroes.raw", "raw"), ("odd.raw", "raw"), ("nothing.raw", "raw"), ("nulls.qcow2", "qcow2"),
]
# What there is beside: broken, of another kind, or not there.
ODD_NAMES = ["missing.qcow2", "broken.qcow2", "text.txt", "folder", "", "nowhere/a.qcow2", "orphan.qcow2", "lost.qcow2"]

STEPS = """
img create -f qcow2 base.qcow2 1M
io -f qcow2 -c 'write -P 1 0 192k' -c 'write -P 2 512k 64k' -c 'write -z 256k 64k' base.qcow2
img convert -f qcow2 -O raw base.qcow2 base.raw
img create -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
io -f qcow2 -c 'write -P 3 64k 64k' -c 'write -P 4 700k 5k' over.qcow2
img create -f qcow2 -b over.qcow2 -F qcow2 top.qcow2 1536k
io -f qcow2 -c 'write -P 5 128k 100k' -c 'write -z 512k 64k' -c 'write -P 6 1400k 10k' top.qcow2
img create -f qcow2 -b base.raw -F raw over-raw.qcow2
io -f qcow2 -c 'write -P 7 900k 124k' over-raw.qcow2
img create -f qcow2 snap.qcow2 1M
io -f qcow2 -c 'write -P 8 0 256k' snap.qcow2
img snapshot -c first snap.qcow2
io -f qcow2 -c 'write -P 9 64k 64k' snap.qcow2
img snapshot -c second snap.qcow2
io -f qcow2 -c 'write -P 10 0 64k' snap.qcow2
img convert -c -f qcow2 -O qcow2 base.qcow2 packed.qcow2
img create -f qcow2 -o cluster_size=512,refcount_bits=64 small.qcow2 300k
io -f qcow2 -c 'write -P 11 1000 9000' -c 'write -P 12 200k 3k' small.qcow2
img create -f qcow2 -o compat=0.10 old.qcow2 1M
io -f qcow2 -c 'write -P 1 0 128k' old.qcow2
img create -f qcow2 -o extended_l2=on,lazy_refcounts=on wide.qcow2 1M
io -f qcow2 -c 'write -P 13 2k 10k' -c 'write -z 20k 4k' wide.qcow2
img create -f qcow2 empty.qcow2 1M
img create -f qcow2 short.qcow2 320k
io -f qcow2 -c 'write -P 1 0 192k' short.qcow2
img create -f qcow2 -o data_file=outside.data,data_file_raw=on outside.qcow2 1M
io -f qcow2 -c 'write -P 14 0 70k' outside.qcow2
img create -f qcow2 leaky.qcow2 1M
io -f qcow2 -c 'write -P 15 0 128k' leaky.qcow2
img create -f qcow2 -o lazy_refcounts=on dirty.qcow2 1M
io -f qcow2 -c 'write -P 16 0 128k' -c flush -c abort dirty.qcow2
img create -f qcow2 huge.qcow2 4T
io -f qcow2 -c 'write -P 17 3T 64k' huge.qcow2
img create -f qcow2 nulls.qcow2 1M
io -f qcow2 -c 'write -z 0 1M' nulls.qcow2
img create -f qcow2 marked.qcow2 1M
img bitmap --add marked.qcow2 b0
img bitmap --add -g 4k --disable marked.qcow2 b1
io -f qcow2 -c 'write -P 19 0 70k' marked.qcow2
img bitmap --add marked.qcow2 b2
img create -f raw zeroes.raw 1M
img create -f qcow2 broken.qcow2 1M
io -f qcow2 -c 'write -P 18 0 128k' broken.qcow2
img create -f qcow2 gone.qcow2 1M
img create -f qcow2 -b gone.qcow2 -F qcow2 orphan.qcow2
img create -f qcow2 -o data_file=gone.data lost.qcow2 1M
"""


def number(data, offset, length):
    return int.from_bytes(data[offset:offset + length], "big")


def poke(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def count_of(path, cluster, value):
    """Sets the 16-bit refcount of a cluster in the first refcount block."""
    with open(path, "rb") as file:
        data = file.read(1 << 20)
    block = number(data, number(data, 48, 8), 8)
    poke(path, block + 2 * cluster, value.to_bytes(2, "big"))


def make(directory, stock):
    for line in STEPS.strip().splitlines():
        tool, rest = line.split(" ", 1)
        done = subprocess.run(["sh", "-c", getattr(stock, tool) + " " + rest], cwd=directory, capture_output=True,
                              text=True, check=False)
        if done.returncode != 0 and "abort" not in line:
            raise SystemExit("the stock tools cannot make the images: %s: %s" % (line, done.stderr))
    os.remove(os.path.join(directory, "gone.qcow2"))
    os.remove(os.path.join(directory, "gone.data"))
    with open(os.path.join(directory, "odd.raw"), "wb") as file:
        file.write(b"odd length" * 777)
    with open(os.path.join(directory, "nothing.raw"), "wb"):
        pass
    with open(os.path.join(directory, "text.txt"), "w", encoding="ascii") as file:
        file.write("This is no image.\n" * 40)
    os.mkdir(os.path.join(directory, "folder"))
    leaky = os.path.join(directory, "leaky.qcow2")
    with open(leaky, "ab") as file:
        file.write(bytes(2 << 16))
    count_of(leaky, os.path.getsize(leaky) // 65536 - 1, 1)
    count_of(os.path.join(directory, "broken.qcow2"), 5, 0)
