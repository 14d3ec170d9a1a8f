#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the crates that this one stands on must be: licences of a list, from crates.io only, one version each where they are
linked in, built by the Rust version that is stated, free of known faults, and with their notices installed.

usage: dependencies.py [--write]    --write makes LICENSES-OF-CRATES anew
"""
import json
import os
import re
import shutil
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOTICES = os.path.join(TOP, "LICENSES-OF-CRATES")
RUNTIME = os.path.join(TOP, "LICENSES-OF-RUNTIME")
# Of what is linked in; what only tests use may have any that lets it be used.
LINKED = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "Zlib", "Unicode-3.0"}
TESTED = LINKED | {"MPL-2.0", "Unlicense", "Apache-2.0 WITH LLVM-exception", "LGPL-2.1-or-later"}
# Here is no other text to choose: a notice names its holder.
TEXT_FILES = re.compile(r"^(LICEN[CS]E|COPYING|NOTICE)", re.IGNORECASE)
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
RULE = "=" * 100


def cargo(*words):
    return subprocess.run(["cargo", *words], cwd=TOP, check=True, capture_output=True, text=True).stdout


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def allowed(expression, names):
    """Whether a licence expression can be met with these; "A/B" is an old form of "A OR B"."""
    choices = re.split(r" OR |/", expression.replace("(", "").replace(")", ""))
    if " AND " in expression:
        return all(allowed(part, names) for part in expression.split(" AND "))
    return any(choice.strip() in names for choice in choices)


def linked(metadata):
    """IDs of the packages whose code is in the library: normal dependencies on this kind of host, no macros."""
    tree = cargo("tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}")
    names = {tuple(line.split(" ")[:2]) for line in tree.splitlines() if line}
    own = [p for p in metadata["packages"] if (p["name"], "v" + p["version"]) in names and p["source"]]
    assert len(own) >= 5, "the tree of dependencies was not understood"
    return own


def texts(package):
    """The notices of a package and of C sources that come with it."""
    root = os.path.dirname(package["manifest_path"])
    found = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(b for b in below if b not in ("target", "tests", "benches", "build", "contrib"))
        for name in sorted(files):
            if TEXT_FILES.match(name) and os.path.islink(os.path.join(folder, name)) is False:
                found.append(os.path.join(folder, name))
    # Of zstd's two licences the BSD one counts; "COPYING" beside it is the other one.
    found = [f for f in found if not (f.endswith("COPYING") and os.path.exists(f[:-7] + "LICENSE"))]
    return [(os.path.relpath(f, root), open(f, encoding="utf-8", errors="replace").read().strip()) for f in found]


def notices(packages):
    parts = ["libqcow2 has code of these crates in it, under their licences. Made by c-tests/dependencies.py --write."]
    seen = {}
    for package in sorted(packages, key=lambda p: p["name"]):
        parts.append(f"{RULE}\n{package['name']}: {package['license']}")
        found = texts(package)
        assert found, f"{package['name']} has no licence text"
        for name, text in found:
            where = f"{package['name']}, {name}"
            if text in seen:
                parts.append(f"{name}: as that of {seen[text]}")
            else:
                seen[text] = where
                parts.append(f"--- {name}\n{text}")
    return "\n\n".join(parts) + "\n"


def runtime():
    """What has no notice of the standard library's parts, which are linked in as well."""
    target = subprocess.run(["rustc", "--print", "target-libdir"], check=True, capture_output=True, text=True).stdout.strip()
    parts = {m[1] for m in (re.match(r"lib(\w+)-[0-9a-f]+\.rlib", f) for f in os.listdir(target)) if m}
    # Names that hold no code, and what is for tests, macros, and programs that abort.
    parts = {p for p in parts if not p.startswith("rustc_std_workspace")} - {
        "getopts", "panic_abort", "proc_macro", "profiler_builtins", "rustc_literal_escaper", "sysroot", "test"}
    assert "std" in parts, "the standard library was not found"
    text = open(RUNTIME, encoding="utf-8").read()
    return sorted(p for p in parts if not re.search(rf"\b{p.replace('_', '[-_]')}\b", text))


def advisories():
    """Known faults, by whichever tool is there; the answer is a line to print."""
    for tool, words in (("cargo-deny", ["deny", "check", "advisories"]), ("cargo-audit", ["audit"])):
        if shutil.which(tool):
            done = subprocess.run(["cargo", *words], cwd=TOP, capture_output=True, text=True, timeout=600)
            if done.returncode == 0:
                return None, f"advisories: none applies ({tool})"
            # Its list comes from the network.
            if re.search(r"fetch|resolve host|network|failed to acquire|couldn't", done.stderr) and "RUSTSEC-" not in done.stderr:
                return None, f"advisories: skipped, {tool} could not get its list: {done.stderr.strip().splitlines()[-1]}"
            return f"{tool}: {done.stdout}{done.stderr}", None
    return None, "advisories: skipped, neither cargo-deny nor cargo-audit is installed"


def newer():
    """What there is newer, as far as the stated Rust version goes; a line to print."""
    done = subprocess.run(["cargo", "update", "--dry-run"], cwd=TOP, capture_output=True, text=True, timeout=300)
    found = re.findall(r"^ *Updating (\S+) (v\S+ -> v\S+)", done.stderr, re.MULTILINE)
    if done.returncode != 0:
        return "newer versions: not looked for, the registry cannot be reached"
    return "newer versions: " + (", ".join(" ".join(f) for f in found) or "none")


def main():
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--locked"))
    own = next(p for p in metadata["packages"] if p["name"] == "qcow2")
    packages, bad = linked(metadata), []
    if "--write" in sys.argv:
        open(NOTICES, "w", encoding="utf-8").write(notices(packages))
    names = [p["name"] for p in packages]
    bad += [f"{name} is linked in two versions" for name in sorted(set(names)) if names.count(name) > 1]
    ids = {p["id"] for p in packages}
    for package in metadata["packages"]:
        if package["source"] is None:
            continue  # this package, and the kit of its tests
        what = f"{package['name']} {package['version']}"
        if package["source"] != REGISTRY:
            bad.append(f"{what} comes from {package['source']}")
        if not allowed(package["license"] or "", LINKED if package["id"] in ids else TESTED):
            bad.append(f"{what} has the licence {package['license']}")
        needed = package.get("rust_version")
        if needed and version(needed) > version(own["rust_version"]):
            bad.append(f"{what} needs Rust {needed}, and Cargo.toml states {own['rust_version']}")
    if open(NOTICES, encoding="utf-8").read() != notices(packages):
        bad.append("LICENSES-OF-CRATES is not what the crates say: c-tests/dependencies.py --write")
    bad += [f"LICENSES-OF-RUNTIME does not name {part}" for part in runtime()]
    fault, line = advisories()
    bad += [fault] if fault else []
    print("\n".join(f"FAIL {b}" for b in bad) + ("\n" if bad else "") + (line or ""))
    print(newer())
    print(f"{sum(p['source'] is not None for p in metadata['packages'])} crates, {len(packages)} of them linked; {len(bad)} faults")
    sys.exit(bool(bad))


main()
