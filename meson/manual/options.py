#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""usage: options.py [--write]

The tables of commands and options in tools/img are the one description of what qcow2-img takes: its --help prints them, and
this writes the option lists of docs/man/qcow2-img.1.md from them, which the man page and the completions are made from.
Without --write it says whether the page is what the tables say.
"""

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent.parent
PAGE = SOURCE / "docs/man/qcow2-img.1.md"
STRING = r'"(?:[^"\\]|\\.)*"'
ROW = re.compile(r"\{\s*('(?P<short>.)'|\w+)\s*,\s*(?P<name>%s|NULL)\s*,\s*(?P<argument>%s|NULL)\s*,\s*(?P<help>(?:%s\s*)+)\}"
                 % (STRING, STRING, STRING))
MACRO = re.compile(r"#define (IMG_\w+)[\s\\]+(\{.*?\})\s*\n(?=#|/)", re.S)
COMMAND = re.compile(r"^(?:static )?const struct img_command (?:img_\w+) = \{(.*?)^\};", re.S | re.M)
CODE = re.compile(r'(?<![\w`/])(""|--[\w-]+|-\w(?: help)?(?![\w-])|(?:\w+,)?[\w.\-]+=(?:\.\.\.)?(?:,[\w.]+=(?:\.\.\.)?)*)')


def text_of(literal):
    return "" if literal == "NULL" else "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', literal)).replace('\\"', '"')


def rows_of(text, macros):
    rows = []
    for match in re.finditer(r"IMG_[A-Z_]+|" + ROW.pattern, text):
        if match[0].startswith("IMG_"):
            rows += macros.get(match[0], [])
        else:
            rows.append((match["short"] or "", text_of(match["name"]), text_of(match["argument"]), text_of(match["help"])))
    return rows


def commands():
    """{name: (summary, operands, rows)} from the tables."""
    header = (SOURCE / "tools/img/img.h").read_text(encoding="utf-8").replace("\\\n", " ")
    macros = {name: rows_of(body, {}) for name, body in re.findall(r"#define (IMG_[A-Z_]+)\s+(\{.*?\})\s*\n", header)}
    found = {}
    for path in sorted((SOURCE / "tools/img").glob("*.c")):
        for body in COMMAND.findall(path.read_text(encoding="utf-8")):
            field = {key: text_of(value) for key, value in re.findall(r"\.(name|summary|operands) = ((?:%s\s*)+)" % STRING, body)}
            found[field["name"]] = (field["summary"], field["operands"], rows_of(body[body.index(".options"):], macros))
    return found


def entry(row):
    short, name, argument, help_text = row
    names = ", ".join(f"`{one}`" for one in ("-" + short if short else "", "--" + name if name else "") if one)
    words = CODE.sub(r"`\1`", help_text[0].upper() + help_text[1:] if not CODE.match(help_text) else help_text)
    return f"{names}{f' *{argument}*' if argument else ''}\n: {words}.\n"


def written(page):
    """The page with the usage and the options of each command as the tables have them."""
    start, rest = page.split("\n## Commands\n", 1)
    body, tail = re.split(r"(?=\n## )", rest, maxsplit=1)
    table, out = commands(), []
    for part in body.split("\n### ")[1:]:
        name, text = part.split("\n", 1)
        if name not in table:
            out.append(f"\n### {part.rstrip()}\n")
            continue
        _, operands, rows = table.pop(name)
        usage = f"```\nqcow2-img {name} [OPTION]... {operands}\n```"
        text = re.sub(r"```\nqcow2-img .*?\n```", lambda _, usage=usage: usage, text, count=1)
        prose = [block for block in text.strip("\n").split("\n\n") if not re.match(r"`-.*\n: ", block)]
        out.append(f"\n### {name}\n\n" + "\n\n".join(prose + [entry(row).rstrip("\n") for row in rows]) + "\n")
    if table:
        sys.exit("docs/man/qcow2-img.1.md has no section for: " + " ".join(table))
    return start + "\n## Commands\n" + "".join(out) + tail


def main():
    page = PAGE.read_text(encoding="utf-8")
    wanted = written(page)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != page:
        sys.exit("docs/man/qcow2-img.1.md is not what the tools' tables say: meson/manual/options.py --write")


if __name__ == "__main__":
    main()
