#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every command on images that name files which mean nothing here, at two depths and as data file: no crash, one clear
sentence, and nothing changed by what was refused.

usage: odd-names.py BIN-DIR
"""
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile

MIB = 1 << 20
NAMES = [
    b"nbd://host.invalid/x", b'json:{"driver":"nbd","host":"host.invalid"}', b"json:{", b"json:[1]", b'json:{"file":1}',
    b'json:{"driver":"qcow2","file":{"driver":"nbd","path":"x"}}', b'json:{"driver":"file","filename":""}', b"json:",
    b"C:\\x", b"ssh://user@host.invalid/x", b"rbd:pool/x", b"file:a:b", b"file:", b"file:///nowhere/x", b"a:b", b":x",
    b"100%s%n%d", b"x" * 1023, b"/" + b"y" * 1000, b"n:" + b"z" * 1000, b"\xff\xfe:\xfd", b"\xff\xfe", b" ", b"-c",
    b"fat:rw:x", b"host_device:x", b"null-co://x:1", b"a\nb", b"./a:b:c", b"\0x",
]
# %s stands for the image; "raw" and "other" are whole disks beside it.
IMG = [
    "amend -f qcow2 -o lazy_refcounts=on %s", "amend -f qcow2 -o compat=0.10 %s", "check %s", "check -r all %s", "commit %s",
    "commit -b x %s", "compare %s raw", "compare raw %s", "convert -f qcow2 -O raw %s out", "convert -O qcow2 -c %s out",
    "convert -f raw -O qcow2 -B %s -F qcow2 raw out", "create -f qcow2 -b %s -F qcow2 out", "info %s",
    "info --backing-chain %s", "info --output=json --backing-chain %s", "map %s", "map --output=json %s",
    "measure -O qcow2 %s", "rebase -f qcow2 -b other -F qcow2 %s", "rebase -u -f qcow2 -b other -F qcow2 %s",
    "rebase -f qcow2 -b %s -F qcow2 top", "rebase -f qcow2 -b  %s", "resize %s 2M", "resize --shrink %s 512k",
    "snapshot -c s %s", "snapshot -l %s", "snapshot -a s %s", "snapshot -d s %s", "checksum %s", "dump-header %s",
]
IO = [
    ["-c", "read 0 512"], ["-c", "write 0 512"], ["-r", "-c", "map"], ["-s", "-c", "write 0 512"], ["-c", "info"],
    ["-C", "-c", "read 0 64k"], ["-c", "reopen -r"], ["-U", "-r", "-c", "read 0 512"], ["-c", "truncate 2M"],
    ["-c", "discard 0 64k"], ["--image-opts", "-c", "read 0 512"],
]


def patch(path, name, how):
    """Puts `name` where as long a one is recorded."""
    data = bytearray(open(path, "rb").read())
    at = struct.unpack_from(">Q", data, 8)[0]
    if how == "data":
        at = struct.unpack_from(">I", data, 100)[0]
        while data[at:at + 4] != b"DATA":
            at += 8 + (struct.unpack_from(">I", data, at + 4)[0] + 7) // 8 * 8
        at += 8
    assert data[at:at + len(name)] == b"N" * len(name)
    data[at:at + len(name)] = name
    open(path, "wb").write(data)


def make(img, name, how):
    """The images of one round in the working directory."""
    stand_in = b"N" * len(name)
    for words in (["raw", "raw"], ["qcow2", "other"]):
        subprocess.run([img, "create", "-q", "-f", *words, "1M"], check=True)
    first = ["-o", b"data_file=" + stand_in] if how == "data" else ["-u", "-b", stand_in, "-F", "raw"]
    subprocess.run([img, "create", "-q", "-f", "qcow2", *first, "low", "1M"], check=True)
    if how == "data":
        os.remove(stand_in)
    patch("low", name, how)
    subprocess.run([img, "create", "-q", "-u", "-f", "qcow2", "-b", "low", "-F", "qcow2", "top", "1M"], check=True)


def restore():
    """The working directory as `make` left its neighbour."""
    for left in os.listdir(b"."):
        os.remove(left)
    for kept in os.listdir("../kept"):
        shutil.copyfile(f"../kept/{kept}", kept)


def digests():
    return {n: hashlib.sha256(open(n, "rb").read()).digest() for n in os.listdir(b".") if n != b"out"}


class Check:
    def __init__(self, tools):
        self.tools, self.bad, self.runs, self.refused = tools, 0, 0, 0

    def command(self, program, name, how, words):
        image = "top" if how == "2" else "low"
        restore()
        before = digests()
        done = subprocess.run([self.tools[program], *[w.replace("%s", image) for w in words]],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.runs += 1
        self.refused += done.returncode == 1
        # 2 and 3: what compare and check have found.
        if done.returncode not in range(0, 4):
            why = "died"
        elif done.returncode == 1 and not is_sentence(f"qcow2-{program}: ".encode(), done.stderr):
            why = "not one sentence"
        elif done.returncode == 1 and before != digests():
            why = "refused, and yet something has changed"
        else:
            return done.returncode
        self.bad += 1
        print(f"FAIL {why}: {name[:80]!r} ({how}): {program} {' '.join(words)}\n    {done.returncode} {done.stderr[-800:]!r}")
        return done.returncode


def is_sentence(prefix, text):
    """A base that does not open, and a lock, have a second line, as in the stock tool."""
    lines = text.replace(b"a\nb", b"a b").strip().split(b"\n")
    second = lines[-1] == b"Could not open backing image." or lines[-1].startswith(b"Is ")
    return len(lines) == 1 + second and lines[0].startswith(prefix) and len(lines[0]) > len(prefix) + 15


def main():
    bin_dir = os.path.abspath(sys.argv[1])
    check = Check({"img": f"{bin_dir}/qcow2-img", "io": f"{bin_dir}/qcow2-io"})
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            for how in ("1", "2", "data"):
                if how == "data" and len(name) > 255:
                    continue  # there is no file of that name to make it with
                shutil.rmtree(f"{scratch}/kept", ignore_errors=True)
                os.makedirs(f"{scratch}/kept")
                os.chdir(f"{scratch}/kept")
                make(check.tools["img"], name, how)
                os.makedirs(f"{scratch}/work", exist_ok=True)
                os.chdir(f"{scratch}/work")
                for line in IMG:
                    code = check.command("img", name, how, line.split(" "))
                    # None of the names can be followed: the rest would show nothing if they could.
                    assert code == 1 or line != "map %s" or (name[0] == 0 and how != "data"), name
                for words in IO:
                    image = "driver=qcow2,file.filename=%s" if "--image-opts" in words else "%s"
                    check.command("io", name, how, [*words, image])
        os.chdir("/")
    print(f"{check.runs - check.bad} passed, {check.bad} failed, {check.refused} of them refused")
    sys.exit(check.bad != 0)


main()
