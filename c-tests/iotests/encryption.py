#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lists of differential.py on encrypted images: each with a random cipher, mode, IV generator and hash, or the older AES;
layers below are plain or encrypted, with a key of their own.

Left out is what shows other bytes by nature, or what one of both does not do:

* preallocation: the stock tools' tables say data where nothing has been written, which reads as garbage; so does
  data_file_raw, which ours refuse with encryption;
* compressed clusters in encrypted layers: ours write none;
* kills: of what was not flushed, a sector may have anything;
* zeroes for a part of a cluster: where it holds nothing, the stock tools store bytes, and ours nothing;
* amend to version 2: the stock tools let zero clusters become data that has never been encrypted.
"""

import os
import random
import subprocess
import sys
import tempfile

import differential
from differ.runner import NAME
from differ.script import Script
from differ.tools import Tools

BLOCKS = {"aes": (128, 192, 256), "serpent": (128, 192, 256), "twofish": (128, 192, 256), "cast5": (128,)}
HASHES = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64, "ripemd160": 20, "sm3": 32}


def draw_cipher(rng, blocks):
    """Options of a new image."""
    if rng.random() < 0.15:
        return "encrypt.format=aes"
    block = rng.choice(blocks)
    modes = ["cbc", "ctr", "ecb"] if block == "cast5" else ["xts", "xts", "xts", "cbc", "ctr", "ecb"]
    mode = rng.choice(modes)
    # The stock tools abort where they make an image with the middle one in another mode.
    bits = rng.choice([bits for bits in BLOCKS[block] if bits != 192 or mode == "xts"])
    fitting = [name for name, length in HASHES.items() if length * 8 in BLOCKS[block]]
    generator = rng.choice(["plain64", "plain64", "plain", "essiv"])
    words = ["format=luks", "iter-time=10", "cipher-alg=%s-%d" % (block, bits), "cipher-mode=" + mode, "ivgen-alg=" + generator]
    if generator == "essiv":
        words.append("ivgen-hash-alg=" + rng.choice(fitting))
    if rng.random() < 0.7:
        words.append("hash-alg=" + rng.choice(sorted(HASHES)))
    return ",".join("encrypt." + word for word in words)


class EncryptedScript(Script):
    blocks = sorted(BLOCKS)

    def __init__(self, seed, op_count, keep=None, without=()):
        super().__init__(seed, op_count, keep, set(without) | {"preallocation", "compression"})
        rng = random.Random("encryption %d" % seed)
        # By name of the file: the options that it is made with.
        self.ciphers = {NAME: draw_cipher(rng, self.blocks)}
        for number, layer in enumerate(self.backing):
            if layer["format"] == "qcow2" and rng.random() < 0.6:
                layer["compressed"] = False
                self.ciphers["base%d" % number] = draw_cipher(rng, self.blocks)
        if self.data_file == "raw":
            self.data_file = "plain"
            self.without_what_data_files_exclude()
        for step in self.steps:
            if step.kind == "io":
                step.args["end"] = "close"
                for op in step.ops:
                    self.whole_zeroes(op)
            elif step.kind == "resize":
                step.args["preallocation"] = None
        self.steps = [step for step in self.steps
                      if step.kind != "amend" or not any("compat=0.10" in one for one in step.args["settings"])]
        # With a version of its own there is no way back from the other one.
        self.steps = [step for step in self.steps
                      if step.kind != "amend" or not any("compat=" in one for one in step.args["settings"])]

    def whole_zeroes(self, op):
        if op.kind == "zero":
            end = -(-(op.offset + op.length) // self.cluster) * self.cluster
            op.offset = op.offset // self.cluster * self.cluster
            op.length = end - op.offset
        elif op.kind == "aio":
            op.value = [value or 77 for value in op.value]

    def options(self):
        return super().options() + "," + self.ciphers[NAME] if hasattr(self, "ciphers") else super().options()

    def properties(self):
        words = super().properties()
        for word in self.ciphers[NAME].split(","):
            if not word.startswith(("encrypt.iter-time", "encrypt.key-secret")):
                words.append(word[len("encrypt."):])
        return words + ["encrypted-base"] * (len(self.ciphers) > 1)


class KeyedTools(Tools):
    """Tools that give its key to every image."""

    def __init__(self, tools, script):
        super().__init__(tools.name, tools.img, tools.io)
        self.ciphers = script.ciphers

    def names_below(self, name):
        """The layers from a file on down."""
        first = -1 if name == NAME else int(name[len("base"):])
        return [name] + ["base%d" % number for number in range(first + 1, 2)]

    def keys(self, name):
        """What opens a file and all below it."""
        words = []
        for depth, layer in enumerate(self.names_below(name)):
            if layer in self.ciphers:
                words.append("%sencrypt.key-secret=%s" % ("backing." * depth, self.secret(layer)))
        return words

    @staticmethod
    def secret(name):
        return "k" + name.partition(".")[0]

    def secrets(self):
        return [word for name in sorted(self.ciphers)
                for word in ("--object", "secret,id=%s,data=pass of %s" % (self.secret(name), name))]

    def run(self, program, arguments, directory, *more, **named):
        return super().run(program, self.keyed(program, arguments), directory, *more, **named)

    def keyed(self, program, arguments):
        if "--image-opts" in arguments:
            at = arguments.index("--image-opts") + 1
            opts = [arguments[at]] + self.keys(NAME)
            return self.secrets() + arguments[:at] + [",".join(opts)] + arguments[at + 1:]
        names = [word for word in arguments if word in self.ciphers or word == NAME or word.startswith("base")]
        if not names:
            return arguments
        if arguments[0] == "create":
            return self.keyed_create(arguments)
        name = names[-1] if arguments[0] != "convert" else names[0]
        keys = self.keys(name)
        if arguments[0] in ("bitmap", "info"):
            # They open nothing below.
            keys = [key for key in keys if not key.startswith("backing.")]
        if not keys:
            return arguments
        head = arguments[:1] if program == "img" else []
        rest = list(arguments[len(head):])
        if "-f" in rest and rest[rest.index("-f") + 1] == "qcow2":
            at = rest.index("-f")
            del rest[at:at + 2]
        rest[rest.index(name)] = ",".join(["driver=qcow2,file.filename=" + name] + keys)
        return head + self.secrets() + ["--image-opts"] + rest

    def keyed_create(self, arguments):
        """A base is named with its key: it is opened to be looked at."""
        name = arguments[-2]
        words = list(arguments)
        if name in self.ciphers:
            at = words.index("-o") + 1
            cipher = ",encrypt.key-secret=" + self.secret(name)
            if self.ciphers[name] not in words[at]:
                cipher = "," + self.ciphers[name] + cipher
            words[at] += cipher
        return words[:1] + self.secrets() + ["-u"] * ("-b" in words) + words[1:]


class EncryptedBench(differential.Bench):
    program = "encryption.py"

    def runner(self, script, directory):
        keyed = {id(tools): KeyedTools(tools, script) for tools in (self.stock, self.ours)}
        return differential.Runner(script, keyed[id(self.stock)], keyed[id(self.ours)], directory, self.direct)


def ciphers_served(stock, ours):
    """AES alone, or all: a build may leave out the others."""
    with tempfile.TemporaryDirectory(prefix="encryption.") as directory:
        secret = ["--object", "secret,id=s,data=x"]
        subprocess.run([stock.img, "create", "-q"] + secret + ["-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,"
                       "encrypt.iter-time=10,encrypt.cipher-alg=serpent-256", "probe", "1M"], cwd=directory, check=True)
        done = subprocess.run([ours.img, "map"] + secret + ["--image-opts", "driver=qcow2,encrypt.key-secret=s,"
                              "file.filename=probe"], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              check=False)
    return sorted(BLOCKS) if done.returncode == 0 else ["aes"]


def main():
    def prepare(stock, ours):
        EncryptedScript.blocks = ciphers_served(stock, ours)

    return differential.main(EncryptedScript, EncryptedBench, __doc__, prepare)


if __name__ == "__main__":
    sys.exit(main())
