#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Look into qcow2 images from Python: this file and libqcow2.so.0, nothing else.

usage: qcow2.py list IMAGE            what it is, its chain, its snapshots
       qcow2.py check IMAGE           look for errors and leaks; exit status 1 with errors
       qcow2.py read IMAGE OFFSET N   bytes of the disk to standard output
       qcow2.py map IMAGE OUT.svg     a picture of what is allocated where

As a module: `with Image("disk.qcow2") as disk: disk.read(0, 512)`.
"""
import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

lib = ctypes.CDLL(os.environ.get("LIBQCOW2", "libqcow2.so.0"))
READ_ONLY, ALLOW_RECORDED = 1, 8  # QCOW2_OPEN_*
DATA, ZERO, ALLOCATED, COMPRESSED = 1, 2, 4, 8  # QCOW2_EXTENT_*


class Sized(ctypes.Structure):
    """A struct whose first field says how long it is; one may end early, and gets what fits."""

    def __init__(self):
        super().__init__(struct_size=ctypes.sizeof(self))


class Extent(Sized):
    _fields_ = [("struct_size", c_size_t), ("length", c_uint64), ("host_offset", c_uint64), ("flags", c_uint32), ("depth", c_int32)]


class Info(Sized):
    _fields_ = [(name, kind) for names, kind in (
        ("struct_size", c_size_t), ("virtual_size file_length allocated_bytes", c_uint64),
        ("version cluster_bits refcount_bits crypt_method header_length compression_type", c_uint32),
        ("backing_file_offset", c_uint64), ("backing_file_size l1_size", c_uint32),
        ("l1_table_offset refcount_table_offset", c_uint64), ("refcount_table_clusters snapshot_count", c_uint32),
        ("snapshot_table_offset incompatible_features compatible_features autoclear_features", c_uint64),
        ("path backing_file backing_format data_file", c_char_p),
        ("lazy_refcounts dirty corrupt extended_l2", c_uint32)) for name in names.split()]


class Snapshot(Sized):
    _fields_ = [("struct_size", c_size_t), ("id", c_char_p), ("name", c_char_p), ("vm_state_size", c_uint64), ("date_seconds", c_uint64)]


class CheckResult(Sized):
    _fields_ = [("struct_size", c_size_t)] + [(name, c_uint64) for name in (
        "corruptions", "leaks", "check_errors", "corruptions_fixed", "leaks_fixed", "total_clusters", "allocated_clusters")]


MESSAGE = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)
for name, result, *arguments in (
        ("last_error", c_char_p), ("version", c_char_p), ("close", c_int, c_void_p), ("length", c_int64, c_void_p),
        ("open", c_int, c_char_p, c_uint64, POINTER(c_char_p), POINTER(c_void_p)),
        ("pread", ctypes.c_ssize_t, c_void_p, c_void_p, c_size_t, c_uint64),
        ("block_status", c_int, c_void_p, c_uint64, c_uint64, c_uint64, POINTER(Extent)),
        ("get_node_info", c_int, c_void_p, c_uint32, POINTER(Info)),
        ("get_snapshot", c_int, c_void_p, c_size_t, POINTER(Snapshot)),
        ("check", c_int, c_void_p, c_uint64, POINTER(CheckResult), MESSAGE, c_void_p, c_void_p, c_void_p)):
    function = getattr(lib, "qcow2_" + name)
    function.restype, function.argtypes = result, arguments


def done(result):
    """The result of a call, or OSError with the library's sentence."""
    if result < 0:
        raise OSError(-result, lib.qcow2_last_error().decode())
    return result


class Image:
    """An open disk, read-only. Its backing files are opened too: do not open an image of somebody else this way."""

    def __init__(self, path, flags=READ_ONLY | ALLOW_RECORDED):
        self.handle = c_void_p()
        done(lib.qcow2_open(os.fsencode(path), flags, None, byref(self.handle)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        done(lib.qcow2_close(self.handle))

    def __len__(self):
        return done(lib.qcow2_length(self.handle))

    def read(self, offset, count):
        buffer = ctypes.create_string_buffer(count)
        done(lib.qcow2_pread(self.handle, buffer, count, offset))
        return buffer.raw

    def extents(self):
        """(offset, extent) for the whole disk, through the chain."""
        offset, end = 0, len(self)
        while offset < end:
            extent = Extent()
            done(lib.qcow2_block_status(self.handle, offset, end - offset, 0, byref(extent)))
            yield offset, extent
            offset += extent.length

    def _items(self, function, kind):
        index, item = 0, kind()
        while function(self.handle, index, byref(item)) == 0:
            yield item
            index, item = index + 1, kind()

    def chain(self):
        return self._items(lib.qcow2_get_node_info, Info)

    def snapshots(self):
        return self._items(lib.qcow2_get_snapshot, Snapshot)

    def check(self, say=lambda text: print(text, file=sys.stderr)):
        found = CheckResult()
        message = MESSAGE(lambda _opaque, _kind, text: say(text.decode()))
        done(lib.qcow2_check(self.handle, 0, byref(found), message, None, None, None))
        return found


def show(image):
    for depth, info in enumerate(image.chain()):
        kind = f"qcow2 version {info.version}, clusters of {1 << info.cluster_bits}" if info.version else "raw"
        print(f"{'  ' * depth}{os.fsdecode(info.path or b'?')}: {info.virtual_size} bytes, {kind}, {info.allocated_bytes} on the host"
              + ", dirty" * bool(info.dirty) + ", corrupt" * bool(info.corrupt))
    for snapshot in image.snapshots():
        print(f"snapshot {snapshot.id.decode()}: {snapshot.name.decode(errors='replace')}")


def draw(image, columns=128, rows=64, cell=6):
    """The disk line by line, each cell a part of it: how much is allocated is how dark it is, the colour says in which file."""
    size, cells = max(len(image), 1), columns * rows
    held = [{} for _ in range(cells)]  # colour: bytes
    for offset, extent in image.extents():
        if not extent.flags & DATA:
            continue
        colour = "#7b3fa0" if extent.flags & COMPRESSED else ("#1f5fa8", "#d07a1f", "#3a8f4d")[min(extent.depth, 2)]
        for at in range(offset * cells // size, (offset + extent.length - 1) * cells // size + 1):
            low, high = max(offset, at * size // cells), min(offset + extent.length, (at + 1) * size // cells)
            held[at][colour] = held[at].get(colour, 0) + max(high - low, 1)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * cell}" height="{rows * cell + 24}" font-family="sans-serif" '
             f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>']
    for at, colours in enumerate(held):
        if colours:
            share = min(sum(colours.values()) * cells / size, 1)
            parts.append(f'<rect x="{at % columns * cell}" y="{at // columns * cell}" width="{cell}" height="{cell}" '
                         f'fill="{max(colours, key=colours.get)}" fill-opacity="{0.25 + 0.75 * share:.2f}"/>')
    legend = (("#1f5fa8", "this image"), ("#d07a1f", "its backing file"), ("#3a8f4d", "below"), ("#7b3fa0", "compressed"))
    for index, (colour, text) in enumerate(legend):
        parts.append(f'<rect x="{index * 150}" y="{rows * cell + 8}" width="10" height="10" fill="{colour}"/>'
                     f'<text x="{index * 150 + 16}" y="{rows * cell + 18}">{text}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def main(words):
    if len(words) < 2 or (words[0], len(words)) not in (("list", 2), ("check", 2), ("read", 4), ("map", 3)):
        sys.exit(__doc__)
    with Image(words[1]) as image:
        if words[0] == "list":
            show(image)
        elif words[0] == "check":
            found = image.check()
            print(f"{found.corruptions} errors, {found.leaks} leaked clusters, {found.allocated_clusters} of {found.total_clusters} clusters")
            return found.corruptions > 0
        elif words[0] == "read":
            sys.stdout.buffer.write(image.read(int(words[2], 0), int(words[3], 0)))
        else:
            with open(words[2], "w", encoding="utf-8") as out:
                out.write(draw(image))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as error:
        sys.exit(f"qcow2.py: {error.strerror}")
