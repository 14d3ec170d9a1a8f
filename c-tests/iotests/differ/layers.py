# SPDX-License-Identifier: MIT OR Apache-2.0
"""The files below an image."""

import os

from .model import Model


def make_chain(runner, side):
    """Makes base0 < base1 < ... and returns what base0 shows."""
    layers = runner.script.backing
    contents = bytearray()
    models = []
    for number in reversed(range(len(layers))):
        layer = layers[number]
        size = layer["size"]
        contents = contents[:size] + bytearray(size - min(size, len(contents)))
        for offset, length, value in layer["runs"]:
            contents[offset:offset + length] = bytes([value]) * length
        make_layer(runner, side, number, layers)
        if layer["format"] == "raw":
            # A write to the last sector has made the file end with it.
            contents.extend(bytes(os.path.getsize(side.path("base%d" % number)) - size))
        models.insert(0, Model(bytearray(contents)))
    side.bases = models
    return contents


def make_layer(runner, side, number, layers):
    layer = layers[number]
    kind = layer["format"]
    name = "base%d" % number
    lowest = number + 1 == len(layers)
    maker = runner.ours if layer["ours"] else runner.stock
    writes = []
    for offset, length, value in layer["runs"]:
        writes += ["-c", "write -q -P %d %d %d" % (value, offset, length)]
    if kind == "qcow2" and lowest and layer["compressed"]:
        runner.call(side, runner.stock, "img", ["create", "-q", "-f", "raw", "plain", str(layer["size"])])
        if writes:
            runner.call(side, runner.stock, "io", ["-f", "raw"] + writes + ["plain"])
        runner.call(side, runner.stock, "img", ["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o",
                                                "cluster_size=%d" % layer["cluster"], "plain", name])
        os.unlink(side.path("plain"))
        return
    options = ["-o", "cluster_size=%d" % layer["cluster"]] if kind == "qcow2" else []
    below = [] if lowest else ["-b", "base%d" % (number + 1), "-F", layers[number + 1]["format"]]
    runner.call(side, maker, "img", ["create", "-q", "-f", kind] + options + below + [name, str(layer["size"])])
    if writes:
        runner.call(side, maker, "io", ["-f", kind] + writes + [name])
