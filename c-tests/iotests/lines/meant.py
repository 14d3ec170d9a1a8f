# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where ours is meant to differ: each rule is named as its heading in docs/differences.md."""

import re


def rule(name, tool_words, what, stock, ours):
    """`tool_words`, `stock` and `ours` are searched in the words of the step, and in what either side gave."""
    return name, re.compile(tool_words), re.compile(what), re.compile(stock, re.S), re.compile(ours, re.S)


RULES = [
    rule("How zeroes are stored", r"img (rebase|commit|convert|amend|resize)\b|write -z|discard", r"^layout ", "", ""),
    rule("How zeroes are stored", r"preallocation=f.* img map", r"^stdout$", '"zero": false', '"zero": true'),
    rule("Failed creates", r"img (create|convert|dd)\b", r"^files$", "", ""),
    rule("Damaged targets", r"broken\.qcow2", r"^stderr$", "qcow2_free_clusters failed", ""),
]


def meant(steps, found):
    """The names of the rules that explain every one of the differences, or None."""
    words = " ; ".join(" ".join(step) for step in steps)
    names = set()
    for what, stock, ours in found:
        for name, on_words, on_what, on_stock, on_ours in RULES:
            if on_words.search(words) and on_what.search(what) and on_stock.search(str(stock)) and on_ours.search(str(ours)):
                names.add(name)
                break
        else:
            return None
    return names
