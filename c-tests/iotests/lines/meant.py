# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where ours is meant to differ: each rule is named as its heading in docs/differences.md."""

import re


def rule(name, tool_words, what, stock, ours):
    """`tool_words`, `stock` and `ours` are searched in the words of the step, and in what either side gave."""
    return name, re.compile(tool_words), re.compile(what), re.compile(stock, re.S), re.compile(ours, re.S)


RULES = [
    rule("How zeroes are stored", r"img (rebase|commit|convert|amend|resize)\b|write -z|discard", r"^layout ", "", ""),
    rule("How zeroes are stored", r"preallocation=f.* img map", r"^stdout$", '"zero": false', '"zero": true'),
    rule("How zeroes are stored", r"preallocation=f.* img map", r"^stdout$", "^Offset", "^Offset"),
    rule("Rebases of version 2", r"img rebase\b.*\bold\.qcow2|compat=(0\.10|v2)\b.* img rebase\b", r"^(layout|contents) ", "", ""),
    rule("Going back to version 2", r"img amend\b.*\bmarked\.qcow2", r"^(rc|stderr|stdout|image .*|layout .*)$", "", ""),
    rule("Failed creates", r"img (create|convert|dd)\b", r"^files$", "", ""),
    rule("Failed creates", r"img (create|convert|dd)\b.* ; ", r"^(rc|stderr|stdout)$", "^1$|^$|No such file or directory", ""),
    rule("Crashes", r"img rebase", r"^(rc|stderr|stdout)$|^layout ", r"^-6$|^$|Assertion|PROGRESS|^\(", ""),
    rule("Checks open nothing else", r"img check\b", r"^(rc|stderr|stdout)$",
         r"^1$|^$|Could not open (backing file|'gone)", "^0$|^$|No errors"),
    rule("Repairs of leaks", r"img check\b.*(-r|--repair)[ =]?leaks", r"^image ", '"dirty-flag": false', '"dirty-flag": true'),
    rule("Steps of progress", r"img compare\b.* (-p|--progress)\b", r"^stdout$", "PROGRESS", "PROGRESS"),
    rule("Holes in files", r"img map\b.*(-f ?|--format[= ])raw .*\.qcow2", r"^stdout$", "^Offset", "^Offset"),
    rule("Holes in files", r"-d unmap .* img map\b", r"^stdout$", "^Offset", "^Offset"),
    rule("Lengths of data files", r"img resize\b.*\boutside\.qcow2", r"^contents outside\.data", "", ""),
    rule("Extent size hints", r"extent_size_hint", r"^stderr$", "extent size hint", ""),
    rule("Damaged targets", r"broken\.qcow2", r"^stderr$", "qcow2_free_clusters failed", ""),
]
# What the stock tool must have said somewhere for a rule to hold.
NEEDS = {"Crashes": "Assertion", "Checks open nothing else": "Could not open", "Failed creates": "No such file or directory"}


def meant(steps, found):
    """The names of the rules that explain every one of the differences, or None."""
    words = " ; ".join(" ".join(step) for step in steps)
    names = set()
    told = " ".join(str(stock) for _, stock, _ in found)
    for what, stock, ours in found:
        for name, on_words, on_what, on_stock, on_ours in RULES:
            if what != "files" and NEEDS.get(name, "") not in told:
                continue
            if on_words.search(words) and on_what.search(what) and on_stock.search(str(stock)) and on_ours.search(str(ours)):
                names.add(name)
                break
        else:
            return None
    return names
