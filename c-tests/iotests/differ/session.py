# SPDX-License-Identifier: MIT OR Apache-2.0
"""The commands of one qemu-io process, and what they do to the model."""

from .tools import SECTOR


class Session:
    """One process: `commands` in order; `lazy`: whether it may leave the image dirty."""

    def __init__(self, runner, side, step, through):
        self.runner = runner
        self.side = side
        self.model = side.model
        self.through = through
        self.copies = step.args["copy_on_read"]
        self.ignore_discard = step.args["discard"] == "ignore"
        self.clean_end = step.args["end"] == "close"
        self.lazy = side_is_lazy(side) or "lazy-refcounts=on" in step.args["options"]
        self.commands = []
        for op in step.ops:
            self.op(op)
            if through and op.kind not in ("discard", "read", "reopen"):
                # A discard is only advice: the stock tools do not make it durable by itself.
                self.model.flushed()
        if step.args["end"] == "abort":
            self.commands.append("abort")
        elif not self.clean_end:
            if step.args["end"] == "flush-kill":
                self.commands.append("flush")
                self.model.flushed()
            self.commands.append("sigraise 9")

    def op(self, op):
        size = len(self.model.now)
        offset = op.offset % size
        length = min(op.length, size - offset)
        flags = "".join(flag + " " for flag in op.flags)
        getattr(self, "op_" + op.kind)(op, flags, offset, length)
        if "-f" in op.flags:
            self.model.durable(offset, length)

    def op_write(self, op, flags, offset, length):
        self.commands.append("write -q %s-P %d %d %d" % (flags, op.value, offset, length))
        self.model.put(offset, bytes([op.value]) * length)

    def op_noise(self, op, flags, offset, length):
        noise = self.runner.noise[op.value % 4]
        self.commands.append("write -q %s-s ../noise%d %d %d" % (flags, op.value % 4, offset, length))
        self.model.put(offset, (noise * (length // len(noise) + 1))[:length])

    def op_writev(self, op, flags, offset, length):
        parts = [length // 3, length // 3, length - 2 * (length // 3)] if length >= 3 else [length]
        self.commands.append("writev -q %s-P %d %d %s" % (flags, op.value, offset, " ".join(map(str, parts))))
        self.model.put(offset, bytes([op.value]) * length)

    def op_aio(self, op, _flags, offset, length):
        part = max(1, length // len(op.value))
        end = offset + length
        for value in op.value:
            size = min(part, end - offset)
            if size <= 0:
                break
            if value:
                self.commands.append("aio_write -q -P %d %d %d" % (value, offset, size))
                self.model.put(offset, bytes([value]) * size)
            else:
                self.commands.append("aio_write -q -z %d %d" % (offset, size))
                self.zeroes(offset, size)
            offset += size
        self.commands.append("aio_flush")

    def zeroes(self, offset, length):
        self.model.drop(offset, length)
        script = self.runner.script
        in_part = offset % script.cluster or (offset + length) % script.cluster
        if script.extended_l2 or (script.backing and (script.version == 2 or in_part)):
            self.runner.parted = True

    def op_zero(self, _op, flags, offset, length):
        self.commands.append("write -q -z %s%d %d" % (flags, offset, length))
        self.zeroes(offset, length)

    def op_discard(self, _op, _flags, offset, length):
        """Whole clusters become zero, the last one counting as whole; in version 2 with a backing
        file nothing happens, since there is no way to say "zero"."""
        self.commands.append("discard -q %d %d" % (offset, length))
        script = self.runner.script
        if self.ignore_discard or (script.version == 2 and script.backing):
            return
        size = len(self.model.now)
        first = -(-offset // script.cluster) * script.cluster
        end = offset + length
        last = end if end == size else end // script.cluster * script.cluster
        if first < last:
            self.model.drop(first, last - first)

    def op_read(self, _op, _flags, offset, length):
        shown = 0
        for at, size, want in self.model.runs(offset, min(length, 1 << 16)):
            if size >= SECTOR or size == length:
                self.commands.append("read -q -P %d %d %d" % (want, at, size))
                cluster = self.runner.script.cluster
                if self.copies and want == 0 and (at % cluster or (at + size) % cluster):
                    self.runner.parted = True
                shown += 1
                if shown == 12:
                    break

    def op_flush(self, *_):
        self.commands.append("flush")
        self.model.flushed()

    def op_reopen(self, op, *_):
        self.commands.append("reopen -o " + op.value)
        self.lazy = self.lazy or op.value == "lazy-refcounts=on"

    def op_truncate(self, op, *_):
        # A size is durable at the close only; and a resize of version 2 may be refused.
        script = self.runner.script
        # What the stock tools show of a cluster that the old end cuts: compare.py.
        shows_old = op.length > len(self.model.now) and len(self.model.now) % script.cluster
        if self.clean_end and script.version == 3 and not script.bitmaps and not shows_old:
            self.commands.append("truncate %d" % op.length)
            self.runner.note_size(self.side, op.length)


def side_is_lazy(side):
    """Compatible feature bit 0 of a version 3 header."""
    with open(side.path(), "rb") as file:
        header = file.read(104)
    return header[4:8] >= b"\0\0\0\3" and len(header) > 87 and bool(header[87] & 1)
