# SPDX-License-Identifier: MIT OR Apache-2.0
"""What must be equal, and the one list of what may differ.

Two pairs of tools on one image (`same_answers`): `map`, `check` and `info` as JSON are equal, except

* info: `actual-size`: the host gives blocks to a file when it likes, also between two questions;
* map: "zero and data", that is, stored in the image, but the host has nothing there. We say it of whole clusters
  (preallocation), the stock tools also of the single blocks of a cluster that was written in part.

Two engines after the same list from the same image (`same_results`): contents, virtual size, features, snapshots, and
the counters of `check` are equal, and so is the map, except

* map: `offset`, and check: `fragmented-clusters`, `image-end-offset`: where clusters go is each engine's choice;
* map and allocated clusters where the format leaves a choice; the lists then go on with one of the images:
  - an image with a backing file or extended L2 entries has grown. The stock tools mark all that is new as zero, ours
    only what a longer backing file would show through; the stock tools preallocate no subclusters, ours do;
  - a commit: zeroes may get into the backing file as zeroes or as bytes;
  - zeroes for a part of a cluster over a backing file: nothing happens where that has zeroes already, and the stock
    tools see that in its single host blocks, ours in its clusters; in version 2 they do not look at all;
  - zeroes in an image with extended L2 entries: ours widen them to the whole cluster when all of it reads as zeroes;
  - copy-on-read of zeroes in whose first or last cluster the files below have bytes, too: the stock tools store all
    that they read as bytes, ours the clusters that have some;
  - amend to version 2: zero clusters that have a host cluster keep it with the stock tools, as data; and an image with
    zstd clusters is refused by them only after zero clusters have become data;
* amend to version 2 of an image with snapshots is done by ours on both sides: the stock tools change what a snapshot
  shows, and leave COPIED flags on what is shared;
* amend to version 2 of an image with bitmaps is left out: the stock tools drop them, ours refuse;
* a snapshot that failed for want of room in a count: the stock tools leave new tables as leaks, and COPIED flags on what
  has two users then. The lists go on with the other image;
* resize: the stock tools refuse --preallocation when the file is longer already than they would make it ("Cannot use
  preallocation for shrinking files"), which depends on where clusters went; and they cannot grow an image of version 2
  over a longer backing file ("Failed to zero out new clusters"), nor an image that has an unfinished bitmap after a kill. The lists go on with the other image;
* resize --preallocation=metadata|falloc after a kill is done by ours on both sides: the stock tools give out clusters that
  a killed writer has filled, and the new part of the disk shows it;
* growing from an end inside a cluster is done by ours on both sides, and left out of sessions: the stock tools show what
  the cluster held past that end before the disk was shrunk;
* check -r leaks of a dirty image is left out: the stock tools then take the image for clean though its counts are not;
* check -r of an image with snapshots and with bitmaps is done by ours on both sides: the stock tools take the snapshots for
  leaks and remove them;
* check -r: where the file ends afterwards, for each tool has its own place for new refcount structures;
* snapshots: their dates;
* the length of a raw data file: ours is the disk's, the stock tools round it up to a cluster or to the host's block here
  and there;
* raw data files with pass-discard-request=off are left out: the stock tools' discard shows zeroes on the disk and the old
  bytes in the file. What the file alone shows is not compared after a kill: of what was not flushed, one view may have
  the old bytes and the other the new ones;
* no zeroes are in flight beside bytes in raw data files and in images with a backing file or extended L2 entries: where
  both meet in one cluster the stock tools now and then lose the ones or the others;
* after a kill: each engine had flushed what it liked. The lists go on with one of the two images, on both sides.
"""

from .tools import Failure


def same_answers(what, image, answers):
    """`answers`: [(name of the tools, answer)], all about one image."""
    (first_name, first), rest = answers[0], answers[1:]
    for name, answer in rest:
        if answer != first:
            raise Failure(what, "%s of %s: %s and %s differ:\n%s" % (
                what, image, first_name, name, difference(first, answer)))


def same_results(what, results):
    """`results`: [(label of the image, result)]."""
    (first_label, first), (label, result) = results
    if first != result:
        raise Failure(what + "-parity", "%s: images %s and %s differ after the same list:\n%s" % (
            what, first_label, label, difference(first, result)))


def difference(first, second, limit=6):
    """The items that differ, in a few lines."""
    lines = []
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(set(first) | set(second)):
            if first.get(key) != second.get(key):
                lines.append("  %s: %r, %r" % (key, first.get(key), second.get(key)))
    elif isinstance(first, list) and isinstance(second, list):
        for index in range(max(len(first), len(second))):
            pair = [row[index] if index < len(row) else None for row in (first, second)]
            if pair[0] != pair[1]:
                lines.append("  [%d] %r\n  [%d] %r" % (index, pair[0], index, pair[1]))
    else:
        lines.append("  %r, %r" % (first, second))
    return "\n".join(lines[:limit])


def without_choice(answer):
    """An `info` answer without what may differ between two tools that look at one image."""
    if isinstance(answer, dict):
        return {key: without_choice(value) for key, value in answer.items()
                if key != "actual-size"}
    if isinstance(answer, list):
        return [without_choice(value) for value in answer]
    return answer


def info_result(answer):
    """What `info` must say of both images after the same list."""
    data = dict(answer["format-specific"]["data"])
    # Two images have two keys.
    data["encrypt"] = {key: value for key, value in data.get("encrypt", {}).items()
                       if key not in ("uuid", "slots", "master-key-iters")}
    return {"virtual-size": answer["virtual-size"], "cluster-size": answer["cluster-size"],
            "dirty-flag": answer["dirty-flag"], "data": data,
            "backing-filename": answer.get("backing-filename"),
            "backing-filename-format": answer.get("backing-filename-format"),
            "snapshots": [(one["id"], one["name"], one["vm-state-size"]) for one in answer.get("snapshots", [])]}


def map_rows(answer):
    """The rows of a map as tuples (start, length, offset, depth, present, zero, data, compressed); neighbours that say
    the same and lie one after the other in the file are one row."""
    rows = []
    for one in answer:
        # Stored, but the host has nothing of it: ordinary data here.
        zero = one["zero"] and not one["data"]
        rest = (one["depth"], one["present"], zero, one["data"], one["compressed"])
        offset = one.get("offset")
        if rows:
            start, length, before, *alike = rows[-1]
            follows = offset is None if before is None else offset == before + length
            if tuple(alike) == rest and follows:
                rows[-1] = (start, length + one["length"], before) + rest
                continue
        rows.append((one["start"], one["length"], offset) + rest)
    return rows


def map_result(rows):
    """The guest's side of a map: the same without host offsets."""
    guest = []
    for start, length, _, *rest in rows:
        if guest and guest[-1][2:] == tuple(rest):
            guest[-1] = (guest[-1][0], guest[-1][1] + length) + tuple(rest)
        else:
            guest.append((start, length) + tuple(rest))
    return guest


def check_result(answer, leaks_comparable):
    keys = ["total-clusters", "allocated-clusters", "compressed-clusters", "corruptions", "check-errors"]
    if leaks_comparable:
        keys.append("leaks")
    return {key: answer.get(key, 0) for key in keys}
