# SPDX-License-Identifier: MIT OR Apache-2.0
"""The blocks that a page of the manual is made of, and a reader of the Markdown that this project writes.

Known: headings, paragraphs, fenced code, tables, lists with `-` or `1.`, definition lists (`term` lines, then `: text`),
`> quotes` as paragraphs, HTML comments (left out); in a line: `code`, **bold**, *emphasis*, [text](address).
"""

import re
from dataclasses import dataclass, field


@dataclass
class Heading:
    level: int
    text: str


@dataclass
class Para:
    text: str


@dataclass
class Code:
    text: str
    language: str = ""


@dataclass
class Table:
    rows: list  # of lists of texts; the first one is the head


@dataclass
class Items:
    items: list  # of texts
    numbered: bool = False


@dataclass
class Defs:
    items: list = field(default_factory=list)  # of (list of terms, list of paragraphs)


SPAN = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?!\w)|\[([^\]]+)\]\(([^)\s]+)\)")


def spans(text):
    """Yields (style, text, address): style is "", "code", "bold", "emphasis" or "link"."""
    at = 0
    for match in SPAN.finditer(text):
        if match.start() > at:
            yield "", text[at:match.start()], None
        if match[1] is not None:
            yield "code", match[1], None
        elif match[2] is not None:
            yield "bold", match[2].replace("`", ""), None
        elif match[3] is not None:
            yield "emphasis", match[3], None
        else:
            yield "link", match[4].replace("`", ""), match[5]
        at = match.end()
    if at < len(text):
        yield "", text[at:], None


def plain(text):
    return "".join(part for _, part, _ in spans(text))


def cells(line):
    """The cells of a table's line; `\\|` is no border."""
    inner = line.strip().strip("|") if not line.strip().endswith("\\|") else line.strip()[1:]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


BEGINS = re.compile(r"(#|```|\||: |- |\d+\. |<!--)")


class Reader:
    def __init__(self, text):
        self.lines = text.split("\n")
        self.at = 0
        self.blocks = []

    def peek(self):
        return self.lines[self.at] if self.at < len(self.lines) else None

    def continuation(self, indent):
        """The lines that go on with an item, joined; and, after an empty line, further indented paragraphs."""
        paragraphs, words = [], []
        while self.at < len(self.lines):
            line = self.peek()
            following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
            if not line.strip():
                if not following.startswith(indent) or not following.strip():
                    break
                paragraphs.append(" ".join(words))
                words = []
            elif line.startswith(indent):
                words.append(line.strip())
            else:
                break
            self.at += 1
        return paragraphs + [" ".join(words)]

    def code(self):
        language = self.peek().strip()[3:]
        self.at += 1
        start = self.at
        while self.peek() is not None and self.peek().strip() != "```":
            self.at += 1
        self.blocks.append(Code("\n".join(self.lines[start:self.at]), language))
        self.at += 1

    def table(self):
        rows = []
        while self.peek() is not None and self.peek().startswith("|"):
            row = cells(self.peek())
            if not all(re.fullmatch(r":?-+:?", cell) for cell in row):
                rows.append(row)
            self.at += 1
        self.blocks.append(Table(rows))

    def items(self):
        numbered = not self.peek().startswith("- ")
        items = []
        while self.peek() is not None and re.match(r"\d+\. " if numbered else "- ", self.peek()):
            first = self.peek().split(" ", 1)[1].strip()
            self.at += 1
            rest = self.continuation("  ")
            items.append((first + " " + " ".join(rest)).strip())
        self.blocks.append(Items(items, numbered))

    def definition(self, terms):
        first = self.peek()[2:].strip()
        self.at += 1
        rest = self.continuation("  ")
        paragraphs = [(first + " " + rest[0]).strip()] + rest[1:]
        if not (self.blocks and isinstance(self.blocks[-1], Defs)):
            self.blocks.append(Defs())
        self.blocks[-1].items.append((terms, paragraphs))

    def paragraph(self):
        words = []
        while self.peek() is not None and self.peek().strip() and not (words and BEGINS.match(self.peek())):
            words.append(self.peek().strip())
            self.at += 1
        if self.peek() is not None and self.peek().startswith(": "):
            self.definition(words)
        else:
            self.blocks.append(Para(" ".join(words)))

    def read(self):
        while self.at < len(self.lines):
            line = self.peek()
            if not line.strip():
                self.at += 1
            elif line.startswith("<!--"):
                while "-->" not in self.peek():
                    self.at += 1
                self.at += 1
            elif line.startswith("```"):
                self.code()
            elif line.startswith("#"):
                marks, text = line.split(" ", 1)
                self.blocks.append(Heading(len(marks), text.strip()))
                self.at += 1
            elif line.startswith("|"):
                self.table()
            elif re.match(r"(- |\d+\. )", line):
                self.items()
            else:
                self.paragraph()
        return self.blocks


def read(text):
    return Reader(text).read()


def section(blocks, title):
    """The blocks below the heading `title`, without it, up to the next one of its level."""
    for number, block in enumerate(blocks):
        if isinstance(block, Heading) and block.text == title:
            end = number + 1
            while end < len(blocks) and not (isinstance(blocks[end], Heading) and blocks[end].level <= block.level):
                end += 1
            return blocks[number + 1:end]
    raise SystemExit(f"there is no section '{title}'")
