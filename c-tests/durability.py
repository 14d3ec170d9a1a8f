#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""usage: durability.py LIBQCOW2.SO LIBQCOW2.3.md

Is the manual's table of what is safe from a kill and from a power cut what the library does? For each row: a process
writes, flushes or closes and is killed, on real files; and the same over storage in memory, of which a power cut leaves what
was synced and any part of the rest. "write" must be there after a write, "flush or close" after these and not always
before, "nothing" not always after either. Storage in memory is synced in every mode: whether files are, a process finds
out whose syncs the kernel refuses. Also: what the page says of exec.
"""

import ctypes
import errno
import os
import platform
import random
import struct
import re
import signal
import sys
import tempfile

OPEN_RAW, READ_ONLY, REPAIR = 64, 1, 3
SIZE, CLUSTER = 4 << 20, 65536
STAGES = ("write", "flush", "close")
u64, size_t, voidp, text = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p


class Vec(ctypes.Structure):
    _fields_ = [("base", voidp), ("length", size_t)]


MOVE = ctypes.CFUNCTYPE(ctypes.c_int, voidp, ctypes.POINTER(Vec), ctypes.c_int, u64)
PLAIN = ctypes.CFUNCTYPE(ctypes.c_int, voidp)
LENGTH = ctypes.CFUNCTYPE(ctypes.c_int64, voidp)
TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, voidp, u64)


class IoOps(ctypes.Structure):
    _fields_ = [("struct_size", size_t), ("preadv", MOVE), ("pwritev", MOVE), ("sync", PLAIN), ("length", LENGTH),
                ("truncate", TRUNCATE), ("discard", voidp), ("write_zeroes", voidp), ("close", voidp)]


class OpenParams(ctypes.Structure):
    _fields_ = [("struct_size", size_t), ("path", text), ("fd", ctypes.c_int), ("io", ctypes.POINTER(IoOps)),
                ("io_opaque", voidp), ("flags", u64), ("options", ctypes.POINTER(text)), ("resolve", voidp),
                ("resolve_opaque", voidp), ("message", voidp), ("message_opaque", voidp)]


class CheckResult(ctypes.Structure):
    _fields_ = [("struct_size", size_t), ("corruptions", u64), ("leaks", u64), ("check_errors", u64),
                ("rest", u64 * 8)]


def strings(options):
    return (text * (len(options) + 1))(*[option.encode() for option in options], None)


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        self.c.qcow2_last_error.restype = text
        self.c.qcow2_pread.restype = self.c.qcow2_pwrite.restype = ctypes.c_ssize_t
        for name in ("qcow2_pread", "qcow2_pwrite"):
            getattr(self.c, name).argtypes = [voidp, voidp, size_t, u64]
        self.c.qcow2_flush.argtypes = self.c.qcow2_close.argtypes = [voidp]
        self.c.qcow2_check.argtypes = [voidp, u64, voidp, voidp, voidp, voidp, voidp]
        self.c.qcow2_create.argtypes = [text, u64, voidp]

    def done(self, result):
        if result < 0:
            sys.exit(f"{errno.errorcode.get(-result)}: {self.c.qcow2_last_error().decode()}")
        return result

    def create(self, path, options):
        self.done(self.c.qcow2_create(path.encode(), SIZE, strings(options)))

    def open(self, flags, options, path=None, storage=None, required=True):
        params = OpenParams(struct_size=ctypes.sizeof(OpenParams), fd=-1, flags=flags, options=strings(options))
        if storage:
            params.io = ctypes.pointer(storage.ops)
        else:
            params.path = path.encode()
        image = voidp()
        result = self.c.qcow2_open_with(ctypes.byref(params), ctypes.byref(image))
        if required:
            self.done(result)
        return image if result == 0 else None

    def write(self, image, mark, offset):
        self.done(self.c.qcow2_pwrite(image, bytes([mark]) * 4096, 4096, offset))

    def shows(self, image, mark, offset):
        buffer = ctypes.create_string_buffer(4096)
        self.done(self.c.qcow2_pread(image, buffer, 4096, offset))
        return buffer.raw == bytes([mark]) * 4096

    def corruptions(self, image):
        result = CheckResult(struct_size=ctypes.sizeof(CheckResult))
        self.done(self.c.qcow2_check(image, 0, ctypes.byref(result), None, None, None, None))
        return result.corruptions


class Storage:
    """Bytes in memory, and what no sync has covered yet: a list of (offset, bytes), or of (None, length)."""

    def __init__(self, synced, unsynced=()):
        self.synced = bytearray(synced)
        self.live = bytearray(synced)
        self.unsynced = []
        for change in unsynced:
            self.apply(self.live, change)
        if unsynced:
            self.synced = bytearray(self.live)
        self.ops = IoOps(ctypes.sizeof(IoOps), MOVE(self.read), MOVE(self.write), PLAIN(self.sync),
                         LENGTH(lambda _: len(self.live)), TRUNCATE(self.truncate), None, None, None)

    @staticmethod
    def apply(data, change):
        offset, what = change
        if offset is None:
            data[what:] = bytes(max(0, what - len(data)))
        else:
            data.extend(bytes(max(0, offset + len(what) - len(data))))
            data[offset:offset + len(what)] = what

    def change(self, change):
        self.apply(self.live, change)
        self.unsynced.append(change)

    def read(self, _, vectors, count, offset):
        for number in range(count):
            part = bytes(self.live[offset:offset + vectors[number].length]).ljust(vectors[number].length, b"\0")
            ctypes.memmove(vectors[number].base, part, len(part))
            offset += len(part)
        return 0

    def write(self, _, vectors, count, offset):
        for number in range(count):
            part = ctypes.string_at(vectors[number].base, vectors[number].length)
            self.change((offset, part))
            offset += len(part)
        return 0

    def truncate(self, _, length):
        self.change((None, length))
        return 0

    def sync(self, _):
        self.synced, self.unsynced = bytearray(self.live), []
        return 0

    def cuts(self, luck):
        """What a power cut may leave: nothing of what is not synced, all of it, and some parts."""
        yield Storage(self.synced)
        yield Storage(self.synced, self.unsynced)
        for _ in range(6):
            yield Storage(self.synced, [change for change in self.unsynced if luck.random() < 0.5])


def until(library, image, stage):
    """Two writes, one over what there is and one that allocates; then what the stage says."""
    library.write(image, 2, 0)
    library.write(image, 3, 5 * CLUSTER)
    if stage == "flush":
        library.done(library.c.qcow2_flush(image))
    if stage == "close":
        library.done(library.c.qcow2_close(image))


def holds(library, image, where):
    """Both writes are there; each of them is there, or what was there before it."""
    first, second = library.shows(image, 2, 0), library.shows(image, 3, 5 * CLUSTER)
    if not (first or library.shows(image, 1, 0)) or not (second or library.shows(image, 0, 5 * CLUSTER)):
        sys.exit(f"{where}: neither what was there nor what was written")
    return first and second


MADE = {}


def make(library, path, raw, lazy):
    """An image, or a raw disk, with something in its first cluster."""
    flags = OPEN_RAW if raw else 0
    if (raw, lazy) not in MADE:
        if raw:
            with open(path, "wb") as file:
                file.truncate(SIZE)
        else:
            library.create(path, [f"lazy_refcounts={'on' if lazy else 'off'}"])
        image = library.open(flags, [], path=path)
        library.write(image, 1, 0)
        library.done(library.c.qcow2_close(image))
        with open(path, "rb") as file:
            MADE[(raw, lazy)] = file.read()
    with open(path, "wb") as file:
        file.write(MADE[(raw, lazy)])
    return flags


def after_kill(library, path, options, raw, lazy, stage):
    flags = make(library, path, raw, lazy)
    child = os.fork()
    if child == 0:
        until(library, library.open(flags, options, path=path), stage)
        os.kill(os.getpid(), signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(f"{options}: the writer did not get to its end")
    image = library.open(flags, [], path=path)
    where = f"{options}, killed after {stage}"
    if not raw and library.corruptions(image):
        sys.exit(f"{where}: corrupt")
    safe = holds(library, image, where)
    if "snapshot=on" not in options and not library.shows(image, 2, 0):
        sys.exit(f"{where}: a write over allocated clusters is not in the file")
    library.done(library.c.qcow2_close(image))
    return safe


def after_cut(library, path, options, raw, lazy, stage, luck):
    flags = make(library, path, raw, lazy)
    with open(path, "rb") as file:
        storage = Storage(file.read())
    image = library.open(flags, options, storage=storage)
    until(library, image, stage)
    safe, where = True, f"{options}, power cut after {stage}"
    for cut in list(storage.cuts(luck)):
        opened = library.open(flags, [], storage=cut, required="cache=unsafe" not in options)
        if opened is None:
            safe = False
            continue
        if not raw and "cache=unsafe" not in options and library.corruptions(opened):
            sys.exit(f"{where}: corrupt")
        safe = holds(library, opened, where) and safe
        library.c.qcow2_close(opened)
    if stage != "close":
        library.c.qcow2_close(image)
    return safe


# fsync and fdatasync.
SYNC_CALLS = {"x86_64": (74, 75), "aarch64": (82, 83)}


def refuse_syncs():
    """A seccomp filter: the syncs of this process fail, EIO."""
    calls = SYNC_CALLS[platform.machine()]
    rules = struct.pack("HBBI", 0x20, 0, 0, 0)  # load the call's number
    rules += struct.pack("HBBI", 0x15, 1, 0, calls[0]) + struct.pack("HBBI", 0x15, 0, 1, calls[1])
    rules += struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | errno.EIO) + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    program = struct.pack("HxxxxxxP", len(rules) // 8, ctypes.cast(rules, voidp).value)
    c = ctypes.CDLL(None)
    if c.prctl(38, 1, 0, 0, 0) or c.prctl(22, 2, ctypes.c_char_p(program), 0, 0):
        sys.exit("seccomp refuses a filter")


def syncs_files(library, path, options, raw, lazy):
    """Whether a writer that flushes and closes makes a sync of a file."""
    flags = make(library, path, raw, lazy)
    child = os.fork()
    if child == 0:
        refuse_syncs()
        image = library.open(flags, options, path=path, required=False)
        failed = image is None or library.c.qcow2_pwrite(image, b"x" * 4096, 4096, CLUSTER) < 0
        failed = failed or library.c.qcow2_flush(image) < 0 or library.c.qcow2_close(image) < 0
        os._exit(3 if failed else 4)
    return {3: True, 4: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def open_descriptors():
    """Without that of the list itself."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fdinfo/{fd}")}


def closed_by_exec(library, scratch):
    """Every descriptor that an open has left is closed by exec: of an image, its data file, a temporary overlay."""
    path = os.path.join(scratch, "exec")
    before = open_descriptors()
    library.create(path, [f"data_file={path}.raw"])
    images = [library.open(8, [], path=path)]
    library.create(path + "2", [])
    images.append(library.open(0, ["snapshot=on"], path=path + "2"))
    opened = open_descriptors() - before
    for fd in opened:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            flags = int(re.search(r"flags:\s*(\d+)", file.read())[1], 8)
        if not flags & os.O_CLOEXEC:
            sys.exit(f"exec leaves {os.readlink(f'/proc/self/fd/{fd}')} open")
    if len(opened) < 4:
        sys.exit(f"only {len(opened)} descriptors were seen")
    for image in images:
        library.done(library.c.qcow2_close(image))


def words(safe):
    """The table's words for (write, flush, close)."""
    return {(True, True, True): "write", (False, True, True): "flush or close",
            (False, False, False): "nothing"}.get(safe, f"of {STAGES}: {safe}")


def table(path):
    with open(path, encoding="utf-8") as file:
        page = file.read()
    part = page[page.index("## Durability"):]
    return re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", part, re.M)


def main():
    library, rows = Library(sys.argv[1]), table(sys.argv[2])
    if len(rows) < 8:
        sys.exit(f"only {len(rows)} rows in the table")
    luck, wrong = random.Random(1), 0
    with tempfile.TemporaryDirectory() as scratch:
        closed_by_exec(library, scratch)
        path = os.path.join(scratch, "disk")
        for name, kill, cut in rows:
            raw = name == "QCOW2_OPEN_RAW"
            options = [] if raw else [name]
            direct = name in ("cache=none", "cache=directsync")
            for lazy in (False,) if raw else (False, True):
                make(library, path, raw, lazy)
                tried = library.open(0, options, path=path, required=False) if direct else None
                library.c.qcow2_close(tried)
                if direct and not tried:
                    print(f"{name}: no O_DIRECT here, kill not tried")
                    killed = kill
                else:
                    killed = words(tuple(after_kill(library, path, options, raw, lazy, one) for one in STAGES))
                lost = words(tuple(after_cut(library, path, options, raw, lazy, one, luck) for one in STAGES))
                if platform.machine() in SYNC_CALLS:
                    if not syncs_files(library, path, options, raw, lazy):
                        lost = "nothing"
                elif name == "cache=unsafe":
                    lost = cut
                print(f"{name}{' lazy' if lazy else ''}: {killed} | {lost}")
                if (killed, lost) != (kill, cut):
                    print(f"    the manual says {kill} | {cut}")
                    wrong += 1
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
