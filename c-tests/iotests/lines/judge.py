# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs a case with both tool sets and says what differs: exit codes, filtered output, the files that are there afterwards."""

import filecmp
import json
import os
import re
import shutil
import subprocess

FILTERS = [(re.compile(pattern, re.M), text) for pattern, text in (
    (r"#block\d+", "#blockN"),
    (r"\d+ ops; .*/sec and [^ ]* ops/sec\)", "X ops; RATE"),
    (r"(disk size: ).*", r"\1SIZE"),
    (r"(file length: ).*", r"\1LENGTH"),
    (r'("actual-size": )\d+', r"\1SIZE"),
    (r'("date-n?sec": )\d+', r"\1DATE"),
    (r'(^ {12,}"virtual-size": )\d+', r"\1LENGTH"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE TIME"),
    # How many steps there are is open.
    (r"(?:    \(\d+\.\d\d/100%\)\r)*    \((\d+\.\d\d)/100%\)\r", r"PROGRESS \1\r"),
    (r"Run completed in [\d.]+ seconds", "Run completed in X seconds"),
    (r"Image end offset: \d+", "Image end offset: N"),
    (r'"image-end-offset": \d+', '"image-end-offset": N'),
)]
LIMIT_SECONDS = 60
# What else an image needs.
BELOW = {"top.qcow2": ["over.qcow2", "base.qcow2"], "over.qcow2": ["base.qcow2"], "over-raw.qcow2": ["base.raw"],
         "outside.qcow2": ["outside.data"]}


class Judge:
    def __init__(self, template, stock, links):
        """`links`: a folder where both tools have the stock names: {"stock": DIR, "ours": DIR}."""
        self.template = template
        self.stock = stock
        self.links = links

    def filtered(self, data, directory):
        text = data.decode("utf-8", "replace").replace(directory, "DIR")
        text = text.replace(self.links["stock"], "BIN").replace(self.links["ours"], "BIN")
        for pattern, replacement in FILTERS:
            text = pattern.sub(replacement, text)
        return text

    def run(self, side, step, directory):
        program = os.path.join(self.links[side], "qemu-" + step[0])
        try:
            done = subprocess.run([program] + step[1:], cwd=directory, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=LIMIT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return "timeout", "", ""
        return done.returncode, self.filtered(done.stdout, directory), self.filtered(done.stderr, directory)

    def compare(self, steps, scratch):
        """A list of (what, stock, ours): empty if all is the same. `what`: rc, stdout, stderr, files or image."""
        places = {side: os.path.join(scratch, side, "w") for side in ("stock", "ours")}
        for place in places.values():
            self.furnish(place, steps)
        for index, step in enumerate(steps):
            answers = {side: self.run(side, step, places[side]) for side in places}
            found = [(what, a, b) for what, a, b in zip(("rc", "stdout", "stderr"), answers["stock"], answers["ours"]) if a != b]
            if found:
                return index, found
        return len(steps) - 1, self.compare_files(places)

    def furnish(self, place, steps):
        """What the steps name, and what that names."""
        os.makedirs(os.path.join(place, "folder"))
        words = " ".join(word for step in steps for word in step)
        wanted = {name for name in os.listdir(self.template) if name in words and name != "folder"}
        for name, below in BELOW.items():
            if name in wanted:
                wanted.update(below)
        for name in wanted:
            shutil.copyfile(os.path.join(self.template, name), os.path.join(place, name))

    def compare_files(self, places):
        trees = {side: sorted(os.path.relpath(os.path.join(at, name), place) for at, _, names in os.walk(place) for name in names)
                 for side, place in places.items()}
        if trees["stock"] != trees["ours"]:
            return [("files", " ".join(set(trees["stock"]) - set(trees["ours"])), " ".join(set(trees["ours"]) - set(trees["stock"])))]
        found = []
        for name in trees["stock"]:
            stock, ours = (os.path.join(places[side], name) for side in ("stock", "ours"))
            # Long ones have holes, which the tools know.
            if max(os.path.getsize(stock), os.path.getsize(ours)) < (64 << 20) and filecmp.cmp(stock, ours, shallow=False):
                continue
            views = [self.view(path) for path in (stock, ours)]
            for what, one, other in zip(("image ", "layout "), *views):
                if one != other:
                    found.append((what + name, one, other))
            if not self.same_contents(stock, ours, views[0][0] is not None):
                found.append(("contents " + name, "", ""))
        return found

    def stock_img(self, *arguments):
        return subprocess.run([self.stock.img] + list(arguments), capture_output=True, timeout=LIMIT_SECONDS, check=False)

    def same_contents(self, stock, ours, qcow2):
        kind = "qcow2" if qcow2 else "raw"
        done = self.stock_img("compare", "-s" if not qcow2 else "-q", "-U", "-f", kind, "-F", kind, stock, ours)
        if done.returncode < 2:
            return done.returncode == 0
        # A data file is named as seen from where the tool runs; what does not open at all is the same.
        sums = [subprocess.run([os.path.join(self.links["ours"], "qemu-img"), "checksum", "-U", "-f", kind, os.path.basename(path)],
                               cwd=os.path.dirname(path), capture_output=True, timeout=LIMIT_SECONDS, check=False).stdout
                for path in (stock, ours)]
        return sums[0] == sums[1]

    def view(self, path):
        """What an image file holds beside its disk: header fields and whether it is sound; what is allocated."""
        with open(path, "rb") as file:
            if file.read(4) != b"QFI\xfb":
                return None, None
        info = self.stock_img("info", "-U", "-f", "qcow2", "--output=json", path)
        check = self.stock_img("check", "-U", "-f", "qcow2", "--output=json", path)
        layout = self.stock_img("map", "-U", "-f", "qcow2", "--output=json", path)
        text = info.stdout.decode("utf-8", "replace").replace(os.path.dirname(path), "DIR")
        for pattern, replacement in FILTERS:
            text = pattern.sub(replacement, text)
        try:
            entries = [(one["start"], one["length"], one["depth"], one["zero"], one["data"], one["present"],
                        one["compressed"]) for one in json.loads(layout.stdout or b"[]")]
            sound = {key: value for key, value in json.loads(check.stdout or b"{}").items()
                     if key not in ("image-end-offset", "filename", "fragmented-clusters", "allocated-clusters",
                                    "compressed-clusters")}
        except ValueError:
            entries, sound = layout.stderr, check.stderr
        return "%s\n%s" % (text, sound), "\n".join(map(str, merged(entries)))


def merged(entries):
    """Neighbours of one kind as one: how they lie in the file is open."""
    out = []
    for entry in entries:
        if out and out[-1][2:] == entry[2:] and out[-1][0] + out[-1][1] == entry[0]:
            out[-1] = (out[-1][0], out[-1][1] + entry[1]) + entry[2:]
        else:
            out.append(entry)
    return out
