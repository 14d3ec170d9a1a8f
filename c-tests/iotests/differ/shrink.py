# SPDX-License-Identifier: MIT OR Apache-2.0
"""Makes a failing script smaller as long as it fails in the same way."""

import time

from .script import PROPERTIES


def shrink(script, failure, attempt, limit):
    """The smallest script found until `limit` (monotonic seconds), its failure, and how many were tried."""
    state = {"script": script, "failure": failure, "tries": 0}

    def smaller(keep, without):
        if time.monotonic() > limit:
            return False
        candidate = type(script)(script.seed, script.op_count, keep, without)
        state["tries"] += 1
        result = attempt(candidate)
        if result is None or result.kind != failure.kind:
            return False
        state["script"], state["failure"] = candidate, result
        return True

    drop_items(state, smaller, lambda step: [(step.number, None)] + [(step.number, op.number) for op in step.ops])
    for name in PROPERTIES:
        if name not in state["script"].without:
            smaller(everything(state["script"]), state["script"].without | {name})
    # Now single operations.
    drop_items(state, smaller, lambda step: [(step.number, op.number) for op in step.ops], each=True)
    return state["script"], state["failure"], state["tries"]


def everything(script):
    keep = set()
    for step in script.steps:
        keep.add((step.number, None))
        keep.update((step.number, op.number) for op in step.ops)
    return keep


def drop_items(state, smaller, items_of, each=False):
    """Drops groups of whole steps (or, with `each`, of single operations), large groups first."""
    def groups():
        found = [items_of(step) for step in state["script"].steps]
        if each:
            found = [[item] for items in found for item in items]
        return found

    size = max(1, len(groups()) // 2)
    while True:
        start = 0
        while start < len(groups()):
            gone = {item for items in groups()[start:start + size] for item in items}
            if not smaller(everything(state["script"]) - gone, state["script"].without):
                start += size
        if size == 1:
            return
        size //= 2
