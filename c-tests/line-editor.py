#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""qcow2-io at a terminal: what is typed can be edited, called back and completed, and the terminal is left as it was."""

import os
import pty
import select
import subprocess
import sys
import tempfile
import termios
import time

LIMIT_SECONDS = 30


class Screen:
    """What has come from the terminal and has not been waited for yet."""

    def __init__(self, fd):
        self.fd = fd
        self.text = b""

    def wait_for(self, wanted):
        end = time.monotonic() + LIMIT_SECONDS
        while wanted not in self.text:
            if time.monotonic() > end:
                raise SystemExit("no %r in %r" % (wanted, self.text))
            if select.select([self.fd], [], [], 1)[0]:
                self.text += os.read(self.fd, 4096)
        self.text = self.text.split(wanted, 1)[1]


def session(tool, image, keys):
    """Types each of `keys` once what is expected before it has come; the exit status."""
    main, side = pty.openpty()
    before = termios.tcgetattr(side)
    process = subprocess.Popen([tool, "-f", "qcow2", image], stdin=side, stdout=side, stderr=side)
    screen = Screen(main)
    for wanted, typed in keys:
        screen.wait_for(wanted)
        os.write(main, typed)
    status = process.wait(LIMIT_SECONDS)
    after = termios.tcgetattr(side)
    os.close(main)
    os.close(side)
    assert before[3] == after[3], "the terminal is left in another mode"
    return status


def main():
    tools = sys.argv[1]
    with tempfile.TemporaryDirectory() as directory:
        image = os.path.join(directory, "t.qcow2")
        subprocess.run([os.path.join(tools, "qcow2-img"), "create", "-q", "-f", "qcow2", image, "1M"], check=True)
        tool = os.path.join(tools, "qcow2-io")
        prompt = b"qcow2-io> "
        # A letter in the middle, one too many at the end; the line again; a name that is completed; the end of the input.
        assert session(tool, image, [(prompt, b"lenth\x1b[D\x1b[Dg\x05x\x7f\r"), (b"1 MiB", b""), (prompt, b"\x1b[A\r"),
                                     (b"1 MiB", b""), (prompt, b"lengt\t\r"), (b"1 MiB", b""), (prompt, b"\x04")]) == 0
        # Up twice and down once; all that is typed cut away; quit.
        assert session(tool, image, [(prompt, b"length\r"), (b"1 MiB", b""), (prompt, b"map\r"), (b"not allocated", b""),
                                     (prompt, b"\x10\x10\x0e\r"), (b"not allocated", b""), (prompt, b"nonsense\x15quit\r")]) == 0
        # Two names begin so: nothing is chosen.
        assert session(tool, image, [(prompt, b"re\t\r"), (b'command "re', b""), (prompt, b"\x04")]) == 1
    print("lines can be edited")


main()
