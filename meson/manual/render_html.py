# SPDX-License-Identifier: MIT OR Apache-2.0
"""Blocks to HTML: one file for each page, no script, nothing loaded from elsewhere."""

import html
import re

from markup import Code, Defs, Heading, Items, Para, Table, plain, spans
from render_man import NAMES

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: light-dark(#0b57b0, #7fb6ff); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 60rem; }
nav { border-bottom: 1px solid var(--line); padding-bottom: .5rem; margin-bottom: 1rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin-top: 1.6rem; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; }
pre { background: var(--soft); padding: .7rem .9rem; overflow-x: auto; border-radius: 4px; line-height: 1.4; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93em; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
dt { margin-top: .7rem; } dd { margin-left: 1.8rem; } dd p { margin: .2rem 0; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: #fff; } figcaption { font-size: .9em; }
"""


def anchor(text):
    return re.sub(r"[^\w-]+", "-", plain(text).lower()).strip("-")


class Html:
    def __init__(self, site, page):
        self.site = site
        self.page = page

    def file_of(self, page):
        return "" if page == self.page else f"{page[0]}.{page[1]}.html"

    def name(self, word, shown):
        word = word.removesuffix("()")
        match = re.fullmatch(r"([\w.-]+)\((\d)\)", word)
        if match:
            page = (match[1], match[2])
            if page in self.site.pages:
                return shown if page == self.page else f'<a href="{self.file_of(page)}">{shown}</a>'
            word = match[1] if match[2] == "3" else ""
        home = self.site.home.get(word)
        if not home:
            return None
        anchor_there = word in self.site.anchors
        if home == self.page and not anchor_there:
            return shown
        return f'<a href="{self.file_of(home)}{"#" + word if anchor_there else ""}">{shown}</a>'

    def words(self, text):
        out, at = [], 0
        for match in NAMES.finditer(text):
            link = self.name(match[0], html.escape(match[0]))
            if link:
                out += [html.escape(text[at:match.start()], False), link]
                at = match.end()
        return "".join(out) + html.escape(text[at:], False)

    def inline(self, text):
        out = []
        for style, part, address in spans(text):
            escaped = html.escape(part, False)
            if style == "code":
                out.append(f"<code>{self.name(part, escaped) or escaped}</code>")
            elif style == "bold":
                out.append(f"<b>{escaped}</b>")
            elif style == "emphasis":
                out.append(f"<i>{escaped}</i>")
            elif style == "link":
                address = self.site.address(address)
                out.append(f'<a href="{html.escape(address)}">{escaped}</a>' if address else escaped)
            else:
                out.append(self.words(part))
        return "".join(out)

    def table(self, rows):
        out = ['<div class="table"><table>']
        for number, row in enumerate(rows):
            if number == 0 and not any(row):
                continue
            cell = "th" if number == 0 else "td"
            out.append("<tr>" + "".join(f"<{cell}>{self.inline(text)}</{cell}>" for text in row) + "</tr>")
        return out + ["</table></div>"]

    def definitions(self, items):
        out = ["<dl>"]
        for terms, paragraphs in items:
            for term in terms:
                named = re.match(r"`(QCOW2_\w+)`", term)
                mark = f' id="{named[1]}"' if named and self.site.home.get(named[1]) == self.page else ""
                out.append(f"<dt{mark}>{self.inline(term)}</dt>")
            out.append("<dd>" + "".join(f"<p>{self.inline(text)}</p>" for text in paragraphs) + "</dd>")
        return out + ["</dl>"]

    def block(self, block):
        if isinstance(block, Heading):
            level = min(max(block.level, 2), 4)
            name = block.text if block.text in self.site.home else anchor(block.text)
            return [f'<h{level} id="{name}">{self.inline(block.text)}</h{level}>']
        if isinstance(block, Para):
            picture = re.fullmatch(r"!\[([^\]]*)\]\((\S+)\)", block.text)
            if picture:
                return [f'<figure><img src="{picture[2]}" alt="{html.escape(picture[1])}"></figure>']
            return [f"<p>{self.inline(block.text)}</p>"]
        if isinstance(block, Code):
            name = block.language.partition(" ")[2]
            return [f"<p><b>{name}</b></p>"] * bool(name) + [f"<pre>{html.escape(block.text, False)}</pre>"]
        if isinstance(block, Table):
            return self.table(block.rows)
        if isinstance(block, Items):
            kind = "ol" if block.numbered else "ul"
            return [f"<{kind}>"] + [f"<li>{self.inline(text)}</li>" for text in block.items] + [f"</{kind}>"]
        assert isinstance(block, Defs)
        return self.definitions(block.items)

    def synopsis(self, declarations):
        out = ['<h2 id="synopsis">Synopsis</h2>', "<pre>#include &lt;qcow2.h&gt;"]
        for declaration in declarations:
            text = html.escape(declaration.text, False)
            link = f'<a href="#{declaration.name}">{declaration.name}</a>'
            out.append("\n" + re.sub(rf"\b{declaration.name}\b", link, text, count=1))
        return out + ["</pre>"]

    def document(self, title, content):
        return "\n".join(["<!DOCTYPE html>", '<html lang="en">', '<head><meta charset="utf-8">',
                          '<meta name="viewport" content="width=device-width, initial-scale=1">',
                          f"<title>{html.escape(title)}</title>", f"<style>{STYLE}</style></head>", "<body>",
                          '<nav><a href="index.html">libqcow2</a><a href="libqcow2.3.html">Overview</a>'
                          '<a href="embedding.html">Embedding</a><a href="qcow2-img.1.html">qcow2-img</a>'
                          '<a href="layout.html">Layout of an image</a></nav>', *content,
                          f"<footer><p>libqcow2 {self.site.version}</p></footer>", "</body></html>"]) + "\n"

    def render(self, summary, body):
        name, section = self.page
        content = [f"<h1>{name}({section})</h1>", f"<p>{self.inline(summary)}</p>"]
        for block in body:
            content += self.synopsis(block[1]) if isinstance(block, tuple) else self.block(block)
        return self.document(f"{name}({section})", content)

    def render_text(self, title, blocks):
        content = [f"<h1>{html.escape(title)}</h1>"]
        for block in blocks:
            if isinstance(block, Heading) and block.level == 1:
                continue
            content += self.block(block)
        return self.document(title, content)
