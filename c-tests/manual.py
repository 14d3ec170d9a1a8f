#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""usage: manual.py SOURCE-DIR MANUAL-DIR TOOLS-DIR LIBQCOW2.SO

The manual says everything that there is: each function, constant, type and field of the header, each option that the library
lists, each command and option that the tools' help shows. Its pages are clean for man and mandoc (where they are installed),
links of the site lead somewhere, its picture is what the script draws, the shells complete what the pages name, and the
examples of the tools run.
"""

import ctypes
import html.parser
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

failures = []


def check(condition, *words):
    if not condition:
        failures.append(" ".join(str(word) for word in words))
        print(failures[-1])


def run(*command, **more):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **more)


def words_of(page):
    """The text of a man page without its markup; all its links' pages count as that page."""
    text = page.read_text(encoding="utf-8")
    if text.startswith(".so "):
        return words_of(page.parent.parent / text.split()[1])
    text = re.sub(r"\\f[BIR]|\\[%&]", "", text)
    return text.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'")


def header_is_described(source, man3):
    """By its own reading of the header: fields by line, not by declaration as the generator has it."""
    text = (source / "include/qcow2.h").read_text(encoding="utf-8")
    listed = (source / "c-tests/abi.txt").read_text(encoding="utf-8")
    functions = re.findall(r"^qcow2_\w+", listed, re.M)
    types = re.findall(r"^typedef struct (qcow2_\w+)|^\} (qcow2_\w+);|^typedef .*\(\*(qcow2_\w+)\)", text, re.M)
    types = {name for row in types for name in row if name}
    check(len(functions) > 50 and len(types) > 20, "the header was not understood")
    for name in sorted(types.union(functions)):
        page = man3 / f"{name}.3"
        check(page.exists(), name, "has no page")
        check(not page.exists() or re.search(rf"\b{name}\b", words_of(page)), f"{name}.3 does not speak of it")
    everything = "\n".join(words_of(page) for page in man3.iterdir())
    constants = re.findall(r"^#define (QCOW2_\w+) ?(.*)$", text, re.M)
    for name, value in constants:
        if name == "QCOW2_H":
            continue
        check(re.search(rf"^{name}([ (]|$)", everything, re.M), name, "is in no list of constants")
        if re.fullmatch(r"\d+", value):
            check(f"{name} ({value})" in everything, name, "has another value in the manual")
    count = 0
    for body, name in re.findall(r"^typedef struct \w+ \{\n(.*?)^\} (qcow2_\w+);", text, re.M | re.S):
        page = words_of(man3 / f"{name}.3") if (man3 / f"{name}.3").exists() else ""
        for field in re.findall(r"^    (?!\s*/?\*)(.*;)$", body, re.M):
            check(field in page, f"{name}.3 has no field '{field}'")
            count += 1
    check(count > 150, "only", count, "fields")


class OptionInfo(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("name", ctypes.c_char_p), ("type", ctypes.c_char_p),
                ("default", ctypes.c_char_p), ("help", ctypes.c_char_p), ("scope", ctypes.c_uint32),
                ("runtime", ctypes.c_uint32)]


def options_are_listed(source, manual, library):
    """Exactly: a row for each option of the library, and no others."""
    c = ctypes.CDLL(str(library))
    c.qcow2_option_list.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.POINTER(OptionInfo)]
    page = (source / "docs/man/qcow2-options.7.md").read_text(encoding="utf-8")
    features = (source / "docs/features.md").read_text(encoding="utf-8")
    shown = words_of(manual / "man7/qcow2-options.7")
    for scope, title, text in ((1, "## Options of creation", page), (2, "## Open options", features),
                               (4, "## Options of amend", page)):
        part = text[text.index(title) + len(title):].split("\n## ")[0].split("takes two more")[0]
        rows, index = [], 0
        while True:
            info = OptionInfo(ctypes.sizeof(OptionInfo))
            if c.qcow2_option_list(scope, index, ctypes.byref(info)) < 0:
                break
            rows.append([(one or b"").decode() for one in (info.name, info.type, info.default, info.help)])
            check(f"\n{rows[-1][0]}\n" in shown, rows[-1][0], "is not in qcow2-options.7")
            index += 1
        said = [[cell.strip().strip("`") for cell in line.strip("|").split("|")]
                for line in part.split("\n") if line.startswith("| `")]
        check(len(rows) > 5 and said == rows, f"'{title}' differs from what the library lists:",
              [row for row in said + rows if (row in said) != (row in rows)])


OPTION = re.compile(r"^  ?(-\w)?(?:, )? *(--[\w-]+)?(?:[ =](\S+))?(?: {1,}(.*))?$")


def options_in_help(text):
    """(names, argument) of each option that a help text shows."""
    found = []
    for line in text.split("\n"):
        match = OPTION.match(line)
        if match and (match[1] or match[2]):
            found.append((tuple(name for name in match.groups()[:2] if name),
                          match[3] if re.match(r"^  .{0,34}\S", line) else None))
    return found


def options_in_page(part):
    found = []
    for line in re.findall(r"^(`-.*)$", part, re.M):
        argument = re.search(r"\*(.+)\*$", line)
        found.append((tuple(re.findall(r"`(--?[\w-]+)`", line)), argument[1] if argument else None))
    return found


def sections(page):
    """Commands of a tool's page: {name: text}; "" is what stands before them."""
    before, commands = page.split("\n## Commands\n")
    commands = commands.split("\n## ")[0]
    found = {"": before[before.index("\n## Options"):]}
    for part in commands.split("\n### ")[1:]:
        name, text = part.split("\n", 1)
        found[name] = text
    return found


def same_options(where, help_text, part):
    shown, said = options_in_help(help_text), options_in_page(part)
    check(shown == said, f"{where}: help has {[one for one in shown if one not in said]}, which the page has not; "
          f"the page has {[one for one in said if one not in shown]}, which help has not")
    return len(shown)


def tools_are_described(source, tools):
    page = sections((source / "docs/man/qcow2-img.1.md").read_text(encoding="utf-8"))
    top = run(tools / "qcow2-img", "--help").stdout
    count = same_options("qcow2-img", top.split("Commands:")[0], page[""])
    commands = re.findall(r"^  ([\w-]+) {2,}\S", top.split("Commands:")[1], re.M)
    check(commands == list(page)[1:], "qcow2-img has the commands", commands, "and its page", list(page)[1:])
    for name in commands:
        text = run(tools / "qcow2-img", name, "--help").stdout
        count += same_options(f"qcow2-img {name}", text, page.get(name, ""))
        usage = re.search(r"^Usage: \S* ?(.*)$", text, re.M)[1]
        check(usage in page.get(name, ""), f"qcow2-img {name} is used as '{usage}'")
    page = sections((source / "docs/man/qcow2-io.1.md").read_text(encoding="utf-8"))
    count += same_options("qcow2-io", run(tools / "qcow2-io", "--help").stdout, page[""])
    usages = re.findall(r"^(\w+)( .*?)? +-- ", run(tools / "qcow2-io", "-c", "help").stdout, re.M)
    check([name for name, _ in usages] == list(page)[1:], "qcow2-io has other commands than its page")
    for name, arguments in usages:
        part = page.get(name, "")
        check(f"\n{(name + arguments).strip()}\n" in part, f"qcow2-io {name} is used as '{name}{arguments}'")
        details = run(tools / "qcow2-io", "-c", f"help {name}").stdout
        shown = set(re.findall(r"(-\w),(?= )", "\n".join(re.findall(r"^ ((?:-\w, )+)--", details, re.M))))
        said = set(re.findall(r"`(-\w)`", "\n".join(re.findall(r"^(`-.*)$", part, re.M))))
        check(shown == said, f"qcow2-io {name}: help has {shown - said}, the page {said - shown}")
        count += len(shown)
    check(count > 200, "only", count, "options")
    done = run(sys.executable, "-B", source / "meson/manual/options.py")
    check(done.returncode == 0, done.stderr)


def examples_run(source, tools, scratch):
    """The examples of both tools, one after another, in a directory that has a raw disk."""
    (scratch / "disk.raw").write_bytes(b"a guest's" * 100000)
    for name in ("qcow2-img", "qcow2-io"):
        page = (source / f"docs/man/{name}.1.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```\n(.*?)```", page[page.index("\n## Examples"):], re.S)
        check(blocks, name, "has no examples")
        for line in "".join(blocks).splitlines():
            done = run("sh", "-c", f"PATH={tools}:$PATH; {line}", cwd=scratch)
            check(done.returncode == 0, line, "fails:", done.stderr)


def pages_are_clean(directories):
    pages = [page for directory in directories for page in directory.iterdir()
             if not page.read_text(encoding="utf-8").startswith(".so ")]
    check(len(pages) > 25, "only", len(pages), "pages")
    if shutil.which("mandoc"):
        lint = run("mandoc", "-Tlint", *pages).stdout
        check(not lint, lint)
    else:
        print("no mandoc here")
    if shutil.which("groff"):
        # What `man --warnings -l` runs, without a process for each of its filters and pages.
        done = run("groff", "-t", "-man", "-Tutf8", "-Kutf8", "-ww", "-rLL=78n", "-z", *pages)
        check(done.returncode == 0 and not done.stderr, done.stderr)
    else:
        print("no groff here")
    for page in [page for directory in directories for page in directory.iterdir()]:
        text = page.read_text(encoding="utf-8")
        if text.startswith(".so "):
            check((page.parent.parent / text.split()[1]).exists(), page, "leads nowhere")


class Site(html.parser.HTMLParser):
    EMPTY = {"meta", "img", "link", "br"}

    def __init__(self, path):
        super().__init__()
        self.open, self.links, self.anchors, self.path = [], [], [], path
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        check(not self.open, path.name, "does not close", self.open)
        check(len(set(self.anchors)) == len(self.anchors), path.name, "has an anchor twice",
              [one for one in set(self.anchors) if self.anchors.count(one) > 1])

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("href", "src"):
                self.links.append(value)
            if key == "id":
                self.anchors.append(value)

    def handle_endtag(self, tag):
        check(self.open and self.open[-1] == tag, self.path.name, "closes", tag, "in", self.open[-2:])
        if self.open:
            self.open.pop()


def site_holds_together(directory):
    pages = {path.name: Site(path) for path in directory.glob("*.html")}
    check(len(pages) > 25, "only", len(pages), "pages of the site")
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"https?://", link):
                continue
            target, _, anchor = link.partition("#")
            other = pages.get(target or name)
            check(other or (directory / target).exists(), f"{name} links to {link}, which is not there")
            check(not anchor or other and anchor in other.anchors, f"{name} links to {link}: no such anchor")
    linked = {link.partition("#")[0] for link in pages["index.html"].links} | {"index.html"}
    check(not set(pages) - linked, "the index does not lead to", set(pages) - linked)


def picture_is_current(source, tools, scratch):
    done = run(sys.executable, "-B", source / "meson/manual/layout.py", tools, scratch / "layout.svg")
    check(done.returncode == 0, done.stderr)
    check((scratch / "layout.svg").read_bytes() == (source / "docs/layout.svg").read_bytes(),
          "docs/layout.svg is not what meson/manual/layout.py draws")


BASH = r"""
. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
"_$(printf %s "$1" | tr - _)"; printf '%s\n' "${COMPREPLY[@]}"
"""


def completes(directory, line, expected):
    words = line.split(" ")
    done = run("bash", "-c", BASH, "bash", directory / words[0], *words)
    check(done.returncode == 0 and not done.stderr, "bash:", done.stderr)
    got = sorted(done.stdout.split())
    check(got == sorted(expected), f"'{line}' completes to {got}, not to {expected}")


def shells_complete(manual):
    directory = manual / "completions"
    completes(directory, "qcow2-img co", ["commit", "compare", "convert"])
    completes(directory, "qcow2-img convert -O ", ["luks", "qcow2", "raw"])
    completes(directory, "qcow2-img -T x check --rep", ["--repair"])
    completes(directory, "qcow2-img check -r ", ["all", "leaks"])
    completes(directory, "qcow2-img resize --preallocation m", ["metadata"])
    completes(directory, "qcow2-io --cache d", ["directsync"])
    completes(directory, "qcow2-io -d ", ["ignore", "unmap"])
    zsh = shutil.which("zsh")
    if not zsh:
        print("no zsh here")
        return
    for name in ("_qcow2-img", "_qcow2-io"):
        done = run(zsh, "-n", manual / "site-functions" / name)
        check(done.returncode == 0 and not done.stderr, "zsh:", done.stderr)


def main():
    source, manual, tools, library = (Path(one).resolve() for one in sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        done = run(sys.executable, "-B", source / "meson/manual/generate.py", source, "0", scratch, "--drafts")
        check(done.returncode == 0, done.stderr)
        header_is_described(source, manual / "man3")
        options_are_listed(source, manual, library)
        tools_are_described(source, tools)
        pages_are_clean([scratch / "man1", scratch / "man3", scratch / "man7"])
        site_holds_together(manual / "html")
        site_holds_together(scratch / "html")
        picture_is_current(source, tools, scratch)
        shells_complete(manual)
        examples_run(source, tools, scratch)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
