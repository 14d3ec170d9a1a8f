#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: completions.sh COMPLETIONS TOOLS-DIR
#
# What bash offers after the tools' names is what they take.
set -eu
completions=$1 tools=$2
command -v bash >/dev/null || { echo "bash is missing"; exit 77; }
PATH=$tools:$PATH
export PATH

# Prints what is offered for the last of these words, sorted.
offered() {
    bash -c '. "$0"
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        case $1 in qcow2-img) _qcow2_img ;; *) _qcow2_io ;; esac
        printf "%s\n" "${COMPREPLY[@]}" | LC_ALL=C sort -u' "$completions" "$@"
}
expect() {
    wanted=$1
    shift
    got=$(offered "$@" | tr '\n' ' ')
    [ "$got" = "$wanted" ] || { echo "$*: offered '$got', not '$wanted'"; exit 1; }
}

expect 'check checksum commit compare convert create ' qcow2-img c
expect '--parallel --progress ' qcow2-img convert --p
expect 'qcow2 raw ' qcow2-img convert -O ''
expect '--read-only ' qcow2-io --re
cd "$(dirname "$completions")"
expect 'qcow2-img.bash ' qcow2-img info qcow2
# Every command that there is, and for each the options that it has.
commands=$(offered qcow2-img '')
[ "$(echo "$commands" | wc -l)" -ge 16 ] || { echo "only these commands: $commands"; exit 1; }
for command in $commands; do
    offered qcow2-img "$command" -- >/dev/null
    # What is not supported has no help.
    if "$tools/qcow2-img" "$command" --help >/dev/null 2>&1; then
        offered qcow2-img "$command" --h | grep -q '^--help$' || { echo "$command: no --help"; exit 1; }
    fi
done
echo "$(echo "$commands" | wc -l) commands"
