#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""debian/ fits what meson installs, the list of symbols and the version; everything goes below the prefix.

usage: debian-lists.py MESON SOURCE VERSION ENGINE-TARGET    (ENGINE-TARGET may be "")

Nothing is built: an empty build folder is set up as debhelper does it, and asked what it would install.
"""
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile

MESON, SOURCE, VERSION, TARGET = sys.argv[1:5]
PREFIX, LIBDIR = "/usr", "lib/multi-arch"
# A build leaves these out whose machine lacks what they need.
OPTIONAL = {"libqcow2-preload.so*": "libqcow2-preload.so", "qcow2-run": "qcow2-run", "qcow2-fuse": "qcow2-fuse",
            "nbdkit-qcow2-plugin.so": "nbdkit-qcow2-plugin.so", "libqcow2-nbd.so": "libqcow2-nbd.so"}
# The manual is made and installed as whole folders.
FOLDERS = ("man1", "man3", "man7", "html", "completions", "site-functions")


def read(name):
    with open(os.path.join(SOURCE, "debian", name), encoding="utf-8") as file:
        return file.read()


def installed():
    """What is installed, paths without the leading slash, and the names of all that is built."""
    with tempfile.TemporaryDirectory() as build:
        options = [f"-Dengine_target={TARGET}", "-Dtests=false", "-Dseparate_debug=false"]
        done = subprocess.run([MESON, "setup", "--prefix", PREFIX, "--libdir", LIBDIR, "--buildtype", "plain", *options, build, SOURCE],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        asked = [json.loads(subprocess.run([MESON, "introspect", what, build], check=True, capture_output=True, text=True).stdout)
                 for what in ("--installed", "--targets")]
    built = {os.path.basename(name) for target in asked[1] for name in target["filename"]}
    return sorted(path.lstrip("/") for path in asked[0].values()), built


def patterns():
    """(package, pattern) of every line of debian/*.install."""
    for name in sorted(os.listdir(os.path.join(SOURCE, "debian"))):
        if name.endswith(".install"):
            for line in read(name).splitlines():
                if line and not line.startswith("#"):
                    yield name[:-len(".install")], line.split()[0]


def fits(path, pattern):
    """As dh_install: a star stops at a slash; a folder means all that is in it. Of the manual's, the folder is known."""
    if os.path.basename(path) in FOLDERS and (pattern == path or pattern.startswith(path + "/")):
        return True
    regex = fnmatch.translate(pattern).replace(".*", "[^/]*").replace("\\Z", "(/.*)?\\Z")
    return re.match(regex, path) is not None


def lists(files, built):
    faults, taken = [], {}
    for package, pattern in patterns():
        found = [path for path in files if fits(path, pattern)]
        for path in found:
            taken.setdefault(path, set()).add(package)
        if found:
            continue
        name, folder = os.path.basename(pattern), set(pattern.split("/")) & set(FOLDERS)
        if OPTIONAL.get(name, name) not in built and name in OPTIONAL or folder and not folder & built:
            print(f"not built here: {pattern}")
        else:
            faults.append(f"{package}: nothing that is installed fits {pattern}")
    left_out = [line for line in read("not-installed").splitlines() if not line.startswith("#")]
    for path in files:
        packages = taken.get(path, set()) | {p for p in left_out if fits(path, p)}
        if not packages or len(packages) > 1 and os.path.basename(path) not in FOLDERS:
            faults.append(f"{path} is in {', '.join(sorted(packages)) or 'no package'}")
        if not path.startswith(PREFIX.lstrip("/") + "/"):
            faults.append(f"{path} is not below {PREFIX}")
    return faults


def others():
    faults = []
    with open(os.path.join(SOURCE, "c-tests", "abi.txt"), encoding="utf-8") as file:
        abi = {line.strip() for line in file if line.startswith("qcow2_")}
    symbols = set(re.findall(r"^ (qcow2_\w+)@LIBQCOW2_\d+ \d", read("libqcow2-0.symbols"), re.MULTILINE))
    faults += [f"libqcow2-0.symbols lacks {name}" for name in sorted(abi - symbols)]
    faults += [f"libqcow2-0.symbols has {name}, which is not exported" for name in sorted(symbols - abi)]
    latest = re.match(r"libqcow2 \((?P<version>[^)-]*)", read("changelog"))["version"]
    if latest != VERSION:
        faults.append(f"debian/changelog is of {latest}, not of {VERSION}")
    packages = set(re.findall(r"^Package: (.*)$", read("control"), re.MULTILINE))
    faults += [f"debian/{name}.install is of no package" for name in {p for p, _ in patterns()} - packages]
    return faults


def main():
    files, built = installed()
    assert len(files) >= 8, f"what is installed was not understood: {files}"
    faults = lists(files, built) + others()
    print("\n".join(f"FAIL {fault}" for fault in faults) + f"\n{len(files)} files, {len(faults)} faults")
    sys.exit(bool(faults))


main()
