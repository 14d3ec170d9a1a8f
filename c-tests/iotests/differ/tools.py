# SPDX-License-Identifier: MIT OR Apache-2.0
"""The two pairs of programs, and what counts as a failure."""

import json
import os
import shlex
import shutil
import subprocess

SECTOR = 512
MIB = 1 << 20
KILLED = -9
ABORTED = -6


class Failure(Exception):
    """Something that a list found to be wrong. `kind` is what a shrunk list must still show."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def tail(data):
    return data.decode("utf-8", "replace")[-600:]


class Tools:
    """One pair of programs."""

    def __init__(self, name, img, io):
        self.name = name
        self.img = img
        self.io = io

    def run(self, program, arguments, directory, expect=(0,), timeout=120):
        command = [getattr(self, program)] + arguments
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=directory,
                                  stderr=subprocess.PIPE, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise Failure("hang", "%s: more than %d s: %s" % (self.name, timeout, shlex.join(command)))
        if expect is not None and done.returncode not in expect:
            raise Failure("status", "%s: status %d, not %s: %s\n%s%s" % (
                self.name, done.returncode, " or ".join(map(str, expect)), shlex.join(command),
                tail(done.stdout), tail(done.stderr)))
        return done

    def json(self, arguments, directory, expect=(0,)):
        done = self.run("img", arguments, directory, expect)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise Failure("json", "%s: no JSON: %s\n%s%s" % (
                self.name, shlex.join(arguments), tail(done.stdout), tail(done.stderr)))


def find_tools(name, prefix, directory):
    paths = []
    for tool in ("img", "io"):
        program = prefix + tool
        path = shutil.which(program, path=directory) if directory else shutil.which(program)
        if not path:
            return None
        paths.append(os.path.abspath(path))
    return Tools(name, *paths)
