#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The C files look as .clang-format says: c-style.sh [--fix]. Versions of clang-format differ in details: it is 16, or
# nothing is compared (status 77).
set -eu

cd "$(dirname "$0")/.."
for program in clang-format-16 clang-format; do
    case $("$program" --version 2>/dev/null) in
    *"version 16."*) found=$program ;;
    esac
done
if [ -z "${found:-}" ]; then
    echo "clang-format 16 is missing"
    exit 77
fi
if [ "${1:-}" = --fix ]; then
    set -- -i
else
    set -- --dry-run --Werror
fi
git ls-files -z 'tools/*.[ch]' 'clients/*.[ch]' 'plugins/*.[ch]' 'c-tests/*.[ch]' 'examples/*.[ch]' ':!c-tests/abi/*.h' | xargs -0 "$found" "$@"
