# SPDX-License-Identifier: MIT OR Apache-2.0
"""Blocks to man(7), for man-db and mandoc."""

import re
import textwrap

from markup import Code, Defs, Heading, Items, Para, Table, spans


def escape(text, exact=False):
    """`exact`: what a reader may copy, so that no character becomes a nicer one."""
    text = text.replace("\\", "\\e")
    if exact:
        for character, name in (("-", "\\-"), ("'", "\\(aq"), ("`", "\\(ga"), ("^", "\\(ha"), ("~", "\\(ti")):
            text = text.replace(character, name)
    return text


def bold(text):
    """`\\%`: such words are not hyphenated."""
    return f"\\fB\\%{escape(text, True)}\\fR"


def guard(line):
    return "\\&" + line if line[:1] in (".", "'") else line


def fill(text):
    """Short lines, none of which looks like a request; roff fills them again."""
    lines = textwrap.wrap(text, 76, break_long_words=False, break_on_hyphens=False)
    return "\n".join(guard(line) for line in lines)


NAMES = re.compile(r"\b(QCOW2_\w+|qcow2_\w+(?:\(\d?\))?|[A-Za-z][\w.-]*\(\d\)|E[A-Z]{2,}\b)")
ERRNO = re.compile(r"E[A-Z0-9]{3,}$")


class Man:
    def __init__(self, site, page):
        self.site = site
        self.page = page

    def name(self, word):
        """A name of the library, a page or an errno in a text; None if the word is none of them."""
        word = word.removesuffix("()")
        match = re.fullmatch(r"([\w.-]+)\((\d)\)", word)
        if match:
            return f"{bold(match[1])}({match[2]})"
        home = self.site.home.get(word)
        if home and home != self.page and word in self.site.functions:
            return f"{bold(word)}(3)"
        if home or word.startswith("QCOW2_") or ERRNO.match(word):
            return bold(word)
        return None

    def words(self, text):
        """Plain text with the names in it set off."""
        out, at = [], 0
        for match in NAMES.finditer(text):
            name = self.name(match[0])
            if name:
                out += [escape(text[at:match.start()]), name]
                at = match.end()
        return "".join(out) + escape(text[at:])

    def inline(self, text):
        out = []
        for style, part, address in spans(text):
            if style == "code":
                named = self.name(part)
                italic = not named and re.fullmatch(r"[a-z_]+", part) and self.page[1] == "3"
                out.append(named or (f"\\fI{part}\\fR" if italic else bold(part)))
            elif style == "bold":
                out.append(bold(part))
            elif style == "emphasis":
                out.append(f"\\fI{escape(part)}\\fR")
            elif style == "link" and address.startswith("http") and address != part:
                out.append(f"{escape(part)} <{escape(address, True)}>")
            else:
                out.append(self.words(part))
        return "".join(out)

    def table(self, rows):
        """A table of many columns is too wide for a terminal: what its first one names is defined by the others."""
        if len(rows[0]) > 3:
            return self.definitions([([row[0]], ["; ".join(
                f"{head.lower()}: {cell}" if head else cell for head, cell in zip(rows[0][1:], row[1:]) if cell)])
                                     for row in rows[1:]])
        wide = [max(len(cell) for cell in column) > 26 for column in zip(*rows)]
        head = any(rows[0])
        out = [".TS", "allbox tab(@);" if head else "tab(@);"]
        out += [" ".join("lb" for _ in wide)] if head else []
        out.append(" ".join("lx" if one else "l" for one in wide) + ".")
        for number, row in enumerate(rows if head else rows[1:]):
            row = [self.inline(cell) for cell in row]
            exact = head and number == 0
            out.append("@".join(f"T{{\n{fill(cell)}\nT}}" if fills and cell and not exact else cell
                                for cell, fills in zip(row, wide)))
        return out + [".TE"]

    def code(self, text):
        lines = [guard(escape(line, True)) for line in text.split("\n")]
        return [".RS 4", ".EX"] + lines + [".EE", ".RE"]

    def definitions(self, items):
        out = []
        for terms, paragraphs in items:
            for number, term in enumerate(terms):
                out += [".TP" if number == 0 else ".TQ", guard(self.inline(term))]
            for number, text in enumerate(paragraphs):
                out += ([".IP"] if number else []) + [fill(self.inline(text))]
        return out

    def block(self, block, follows_heading):
        if isinstance(block, Heading):
            title = escape(block.text.replace("`", "")).replace('"', '""')
            return [f'.SH "{title.upper()}"' if block.level <= 2 else f'.SS "{title}"']
        space = [] if follows_heading else [".PP"]
        if isinstance(block, Para):
            return space + [fill(self.inline(block.text))]
        if isinstance(block, Code):
            return space + self.code(block.text)
        if isinstance(block, Table):
            return (space if len(block.rows[0]) < 4 else []) + self.table(block.rows)
        if isinstance(block, Items):
            marks = [f"{number + 1}." if block.numbered else "\\(bu" for number in range(len(block.items))]
            return [line for mark, text in zip(marks, block.items)
                    for line in (f".IP {mark} {4 if block.numbered else 2}", fill(self.inline(text)))]
        assert isinstance(block, Defs)
        return self.definitions(block.items)

    def synopsis(self, declarations):
        out = [".nf", "\\fB#include <qcow2.h>\\fR"]
        for declaration in declarations:
            out.append(".PP")
            for line in declaration.text.split("\n"):
                line = re.sub(r"\b(\w+)(?=[,)])", lambda m: m[1] if m[1] == "void" else f"\\fI{m[1]}\\fB",
                              escape(line, True))
                out.append(guard(f"\\fB{line}\\fR"))
        return out + [".fi"]

    def render(self, names, summary, body):
        name, section = self.page
        title = escape(name.upper(), True)
        manual = {"1": "User Commands", "3": "Library Functions", "7": "Miscellaneous"}[section]
        out = ["'\\\" t", ".\\\" SPDX-License-Identifier: MIT OR Apache-2.0",
               ".\\\" Generated: change docs/man or the header's comments.",
               f'.TH "{title}" "{section}" "{self.site.date}" "libqcow2 {self.site.version}" "{manual}"',
               ".ad l", ".SH NAME",
               fill(", ".join(escape(one, True) for one in names) + " \\- " + escape(summary))]
        heading = False
        for block in body:
            if isinstance(block, tuple):  # ("synopsis", declarations)
                out += [".SH SYNOPSIS"] + self.synopsis(block[1])
                continue
            out += self.block(block, heading)
            heading = isinstance(block, Heading)
        return "\n".join(out) + "\n"
