#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Makes the manual: man pages, the same pages as HTML, and completions for shells.

usage: generate.py SOURCE-DIR VERSION OUTPUT-DIR [--drafts] [--without=NAME.SECTION]...

Below OUTPUT-DIR: man1, man3, man7, html, completions, site-functions; what is there of them is replaced. Pages of section 3 come from
include/qcow2.h and docs/features.md, the others from docs/man. pages.py says what is on which page. --without: a man page that is left out (HTML has it).
"""

import re
import shutil
import sys
from pathlib import Path

import complete
import markup
from header import Header
from markup import Code, Defs, Heading, Items, Para
from pages import DATE, DRAFTS, PAGES, SITE, WRITTEN
from render_html import Html
from render_man import Man


class Site:
    """What both renderings know: the pages, and on which of them a name is at home."""

    def __init__(self, source, version, drafts):
        self.source = source
        self.version = version
        self.date = DATE
        self.header = Header((source / "include/qcow2.h").read_text(encoding="utf-8"))
        self.functions = {one.name for one in self.header.of("function")}
        self.written = [tuple(one.rsplit(".", 1)) for one in WRITTEN + (DRAFTS if drafts else [])]
        self.pages = [(page.name, "3") for page in PAGES] + self.written
        self.home = {page[0]: page for page in self.pages}
        self.constants = {page.name: [] for page in PAGES}
        self.place_names()

    def place_names(self):
        named = {name: page for page in PAGES for name in page.functions + page.types + page.aliases}
        for declaration in self.header.declarations:
            if declaration.kind in ("constant", "macro"):
                fits = [(len(start), page) for page in PAGES for start in page.constants
                        if declaration.name.startswith(start)]
                page = max(fits, key=lambda fit: fit[0])[1] if fits else None
            else:
                page = named.get(declaration.name)
            if page is None:
                sys.exit(f"include/qcow2.h has {declaration.name}, which is on no page: name it in "
                         "meson/manual/pages.py")
            if declaration.kind in ("constant", "macro"):
                self.constants[page.name].append(declaration)
            self.home[declaration.name] = (page.name, "3")
        for name, page in named.items():
            if name not in self.header.by_name and name not in page.aliases:
                sys.exit(f"meson/manual/pages.py has {name}, which include/qcow2.h has not")
            self.home.setdefault(name, (page.name, "3"))
        # A page of one type is not divided; other names have a place on their page.
        self.anchors = {name for name in self.header.by_name if name not in {p.name for p in PAGES if not p.functions}}

    def address(self, address):
        """Where a link leads from a page of the site; None: nowhere that readers have."""
        if address.startswith("http"):
            return address
        name = Path(address.split("#")[0]).name
        page = re.fullmatch(r"(?:docs/)?man/([\w.-]+)\.md(#.*)?", address)
        if page and tuple(page[1].rsplit(".", 1)) in self.pages:
            return f"{page[1]}.html{page[2] or ''}"
        known = {Path(source).name: f"{page}.html" for source, page, _ in SITE}
        if address.startswith("#"):
            return address
        if name in known:
            return known[name] + ("#" + address.split("#")[1] if "#" in address else "")
        return None

    def read(self, path):
        return (self.source / path).read_text(encoding="utf-8")


def comment_blocks(paragraphs):
    return [Para(text) for text in paragraphs]


def shifted(blocks, by):
    return [Heading(block.level + by, block.text) if isinstance(block, Heading) else block for block in blocks]


def struct_blocks(declaration):
    items = [([f"`{text}`"], comment) for _, text, comment in declaration.fields]
    kind = [Defs(items)] if items else [Code(declaration.text)]
    return [Heading(3, declaration.name)] + comment_blocks(declaration.comment) + kind


def example_blocks(site, path):
    for block in markup.read(site.read(path)):
        if isinstance(block, Code) and block.language == "c":
            return [Heading(2, "Examples"), block]
    sys.exit(f"{path} has no example in C")


def shown_value(declaration):
    """Parameters of a macro at once behind its name; of other macros, which stand for a struct's fields, nothing."""
    if declaration.kind == "constant":
        return f" ({declaration.value})"
    return declaration.value if declaration.value.startswith("(") else ""


def library_page(site, page):
    """Names, summary and body of a page of section 3."""
    by_name = site.header.by_name
    functions = [by_name[name] for name in page.functions]
    types = [by_name[name] for name in page.types]
    body = [("synopsis", functions + [one for one in types if one.kind in ("opaque", "callback")])]
    body.append(Heading(2, "Description"))
    for one in functions:
        body += [Heading(3, one.name)] + comment_blocks(one.comment)
    if not functions:
        body += comment_blocks(types[0].comment)
    if types and functions:
        body.append(Heading(2, "Types"))
    for one in types:
        blocks = struct_blocks(one)
        body += blocks if functions else [Heading(2, "Fields")] + [block for block in blocks if isinstance(block, Defs)]
    constants = site.constants[page.name]
    if constants:
        body.append(Heading(2, "Constants"))
        body.append(Defs([([f"`{one.name}`" + shown_value(one)], one.comment) for one in constants]))
    if page.features:
        body.append(Heading(2, "Notes"))
        features = markup.read(site.read("docs/features.md"))
        for title in page.features:
            body += [Heading(3, title)] + shifted(markup.section(features, title), 2)
    if page.example:
        body += example_blocks(site, page.example)
    body += [Heading(2, "See also"), Para(", ".join(["libqcow2(3)"] * ("libqcow2(3)" not in page.see) + page.see))]
    names = page.functions or [page.name]
    return names, page.summary, body


def index_blocks():
    return [Defs([([f"{page.name}(3)"], [page.summary[0].upper() + page.summary[1:] + ". " + (
        ", ".join(f"`{name}`" for name in page.functions) + "." if page.functions else "")]) for page in PAGES])]


def written_page(site, name, section):
    """A page by hand: `# name - summary`, then its text. {{topic Word}}: a paragraph of the header's first comment;
    {{pages}}: the pages of section 3;
    {{features Title}}: a section of docs/features.md."""
    text = site.read(f"docs/man/{name}.{section}.md")
    text = re.sub(r"\{\{topic ([^}]+)\}\}", lambda match: site.header.topic(match[1]), text)
    blocks = []
    for block in markup.read(text):
        if block == Para("{{pages}}"):
            blocks += index_blocks()
        elif isinstance(block, Para) and block.text.startswith("{{features "):
            features = markup.read(site.read("docs/features.md"))
            blocks += shifted(markup.section(features, block.text[11:-2]), 1)
        else:
            blocks.append(block)
    title, summary = blocks[0].text.split(" - ", 1)
    if title != name:
        sys.exit(f"docs/man/{name}.{section}.md is headed '{title}'")
    return [name], summary, blocks[1:]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def index(html, pages):
    """The first page of the site."""
    def listed(wanted):
        return [Defs([([f"{name}({section})"], [summary[0].upper() + summary[1:] + "."])
                      for (name, section), summary in pages if wanted(name, section)])]
    blocks = [Para("qcow2 disk images for programs that are not QEMU: a shared library with a C interface, and tools."),
              Heading(2, "Read first"),
              Items([f"[{text[0].upper() + text[1:]}]({source})" for source, _, text in SITE])]
    blocks += [Heading(2, "Commands, options, clients")] + listed(lambda name, section: section != "3")
    blocks += [Heading(2, "The library")] + listed(lambda name, section: name == "libqcow2")
    blocks += listed(lambda name, section: section == "3" and name != "libqcow2")
    return html.render_text("libqcow2: the manual", blocks)


def main():
    without = {one.split("=", 1)[1] for one in sys.argv[1:] if one.startswith("--without=")}
    arguments = [one for one in sys.argv[1:] if not one.startswith("--")]
    if len(arguments) != 3:
        sys.exit(__doc__)
    source, version, out = Path(arguments[0]), arguments[1], Path(arguments[2])
    site = Site(source, version, "--drafts" in sys.argv)
    for directory in ("man1", "man3", "man7", "html", "completions", "site-functions"):
        shutil.rmtree(out / directory, ignore_errors=True)
        (out / directory).mkdir(parents=True)
    summaries = []
    made = [((page.name, "3"), library_page(site, page), page) for page in PAGES]
    made += [(page, written_page(site, *page), None) for page in site.written]
    for (name, section), (names, summary, body), page in made:
        if f"{name}.{section}" not in without:
            write(out / f"man{section}/{name}.{section}", Man(site, (name, section)).render(names, summary, body))
        write(out / f"html/{name}.{section}.html", Html(site, (name, section)).render(summary, body))
        summaries.append(((name, section), summary))
        for other in sorted(set(page.functions + page.types + page.aliases) - {name}) if page else []:
            write(out / f"man3/{other}.3", f".so man3/{name}.3\n")
    html = Html(site, None)
    for path, name, _ in SITE:
        blocks = markup.read(site.read(path))
        write(out / f"html/{name}.html", html.render_text(blocks[0].text, blocks))
    write(out / "html/index.html", index(html, summaries))
    shutil.copyfile(source / "docs/layout.svg", out / "html/layout.svg")
    for tool in ("qcow2-img", "qcow2-io"):
        described = complete.describe(markup.read(site.read(f"docs/man/{tool}.1.md")))
        write(out / f"completions/{tool}", complete.bash(tool, described))
        write(out / f"site-functions/_{tool}", complete.zsh(tool, described))


if __name__ == "__main__":
    main()
