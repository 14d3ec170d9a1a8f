# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a guest must see: an array of bytes, and what may be there instead after a kill.

Whatever was flushed (or, except for a discard, done with -t writethrough, or written with FUA) stays. A sector
touched after the last flush may have its flushed contents or those after any later operation.
"""

from .tools import Failure, MIB, SECTOR


class Model:
    """What one guest disk must hold, and what it may hold after a kill."""

    def __init__(self, contents):
        self.now = contents
        # Since the last flush, oldest first: (offset, length, the bytes that were there before, or None for
        # "from here on the range is durable").
        self.undo = []
        # Since the last flush: ranges whose clusters may have been given up.
        self.dropped = []
        self.snapshots = {}
        # Ranges that were written compressed: an overwrite gives their clusters up.
        self.compressed = []

    def copy(self):
        other = Model(bytearray(self.now))
        other.undo = list(self.undo)
        other.dropped = list(self.dropped)
        other.snapshots = dict(self.snapshots)
        other.compressed = list(self.compressed)
        return other

    def put(self, offset, data):
        self.undo.append((offset, len(data), bytes(self.now[offset:offset + len(data)])))
        self.now[offset:offset + len(data)] = data
        for at, length in self.compressed:
            if at < offset + len(data) and offset < at + length:
                self.dropped.append((at, length))

    def drop(self, offset, length):
        self.put(offset, bytes(length))
        self.dropped.append((offset, length))

    def durable(self, offset, length):
        self.undo.append((offset, length, None))

    def flushed(self):
        self.undo = []
        self.dropped = []

    def resize(self, size):
        """A clean resize: what is new reads as zeroes."""
        self.flushed()
        if size < len(self.now):
            del self.now[size:]
        else:
            self.now.extend(bytes(size - len(self.now)))

    def was_dropped(self, sector):
        """Whether a sector was discarded or zeroed, or was compressed and overwritten, since the last flush. The stock tools hand out
        such a cluster again before the table entry that gave it up is on disk; after a kill the old
        entry then shows somebody else's data. Ours must not, so only they are excused."""
        return any(offset < sector + SECTOR and sector < offset + length for offset, length in self.dropped)

    def runs(self, offset, length):
        """(offset, length, value) of the runs of equal bytes in a range."""
        end = offset + length
        while offset < end:
            value = self.now[offset]
            stop = offset + 1
            step = 4096
            same = bytes([value]) * step
            while stop < end:
                part = bytes(self.now[stop:min(stop + step, end)])
                if part == same[:len(part)]:
                    stop += len(part)
                    continue
                stop += len(part) - len(part.lstrip(same[:1]))
                break
            yield offset, stop - offset, value
            offset = stop

    def mismatches(self, file):
        """Sectors (start, actual bytes) of a raw file that differ from the model."""
        view = memoryview(self.now)
        file.seek(0)
        for start in range(0, len(self.now), MIB):
            want = view[start:start + MIB]
            have = file.read(len(want))
            if have == want:
                continue
            if len(have) != len(want):
                raise Failure("contents", "guest contents end at %d of %d" % (start + len(have), len(self.now)))
            for at in range(0, len(want), SECTOR):
                if have[at:at + SECTOR] != want[at:at + SECTOR]:
                    yield start + at, have[at:at + SECTOR]
        if file.read(1):
            raise Failure("contents", "the guest contents are longer than %d" % len(self.now))

    def possible(self, sector, actual):
        """Whether a sector may hold this after a kill: one of its states since it was durable last."""
        state = bytearray(self.now[sector:sector + SECTOR])
        if state == actual:
            return True
        for offset, length, old in reversed(self.undo):
            first = max(offset, sector)
            last = min(offset + length, sector + SECTOR)
            if first >= last:
                continue
            if old is None:
                if last - first == len(state):
                    return False
                continue
            state[first - sector:last - sector] = old[first - offset:last - offset]
            if state == actual:
                return True
        return False
