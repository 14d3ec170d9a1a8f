# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reads include/qcow2.h: what it declares, in its order, each with the comment above it."""

import re
from dataclasses import dataclass, field


@dataclass
class Declaration:
    kind: str  # function, struct, opaque, callback, constant, macro
    name: str
    text: str  # as in the header, without the comment
    comment: list  # paragraphs
    value: str = ""  # of a macro with parameters, these
    fields: list = field(default_factory=list)  # of (name, declaration, paragraphs)


def paragraphs(comment):
    """The paragraphs of a /* */ comment; lines of one are joined."""
    lines = [re.sub(r"^\s*\* ?", "", line).rstrip() for line in comment.strip()[2:-2].split("\n")]
    found, words = [], []
    for line in lines + [""]:
        if line.strip():
            words.append(line.strip())
        elif words:
            found.append(" ".join(words))
            words = []
    return found


def without_indent(text):
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


FIELD = re.compile(r"\s*(?:(/\*(?:(?!\*/).)*\*/)\s*)?([^;{}]+);", re.S)


def fields(body):
    found = []
    for comment, text in FIELD.findall(body):
        text = " ".join(text.split())
        match = re.search(r"\(\*(\w+)\)", text) or re.search(r"(\w+)(?:\[[^\]]*\])?$", text)
        found.append((match[1], text + ";", paragraphs(comment) if comment else []))
    return found


TOKEN = re.compile(
    r"(?P<comment>/\*(?:(?!\*/).)*\*/)"
    r"|#define[ \t]+(?P<macro>\w+)(?P<value>(?:[^\n\\]|\\\n|\\.)*)\n"
    r"|(?P<directive>#[^\n]*\n)"
    r"|(?P<linkage>extern \"C\" \{|^\}[ \t]*$)"
    r"|(?P<typedef>typedef\b[^;{]*(?:\{(?P<body>(?:/\*(?:(?!\*/).)*\*/|[^}])*)\}[^;]*)?;)"
    r"|(?P<function>\b\w[\w\s*]*?\b(?P<name>qcow2_\w+)\s*\([^;]*\)[^;]*;)", re.S | re.M)


def type_of(match, comment):
    text = match["typedef"]
    callback = re.match(r"typedef[^(]*\(\*(\w+)\)", text)
    if match["body"] is None and callback:
        return Declaration("callback", callback[1], without_indent(text), comment)
    name = re.search(r"(\w+);$", text)[1]
    if match["body"] is None:
        return Declaration("opaque", name, without_indent(text), comment)
    return Declaration("struct", name, without_indent(text), comment, fields=fields(match["body"]))


class Header:
    def __init__(self, text):
        end = text.index("*/") + 2
        self.top = [re.sub(r" This file is generated:.*?\.(?= |$)", "", one) for one in paragraphs(text[:end])]
        self.declarations = []
        comment = []
        for match in TOKEN.finditer(text, end):
            if match["comment"]:
                comment = paragraphs(match["comment"])
                continue
            if match["macro"] and match["macro"] != "QCOW2_H":
                kind = "macro" if "\n" in match["value"] or "(" in match["value"] else "constant"
                parameters = re.match(r"\([\w, ]+\)", match["value"])
                value = parameters[0] if parameters else " ".join(match["value"].split("/*")[0].replace("\\\n", " ").split())
                self.declarations.append(Declaration(kind, match["macro"], "", comment, value))
            elif match["typedef"]:
                self.declarations.append(type_of(match, comment))
            elif match["function"]:
                self.declarations.append(
                    Declaration("function", match["name"], without_indent(match["function"]), comment))
            comment = []
        self.by_name = {one.name: one for one in self.declarations}

    def of(self, *kinds):
        return [one for one in self.declarations if one.kind in kinds]

    def topic(self, words):
        """The paragraph of the top comment that begins with these words; a full stop after them makes them its title,
        which is left out."""
        for text in self.top:
            if text.startswith(words + ". "):
                return text[len(words) + 2:]
            if text.startswith(words + " "):
                return text
        raise SystemExit(f"the header's first comment has no paragraph '{words}'")
