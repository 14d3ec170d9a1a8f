#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: file-size-limit.sh BIN-DIR
#
# Commands whose files would outgrow RLIMIT_FSIZE say so and end with 1; a signal ends none of them, and what there was
# is whole afterwards.
set -eu
bin=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/kept" "$scratch/work"
cd "$scratch/kept"
img=$bin/qcow2-img io=$bin/qcow2-io
failed=0 passed=0

"$img" create -q -f qcow2 base 16M
"$io" -f qcow2 -c "write -P 1 0 8M" base >/dev/null
"$img" create -q -f qcow2 -b base -F qcow2 top
"$io" -f qcow2 -c "write -P 2 0 256k" top >/dev/null
"$img" create -q -f raw raw 2M
cd ../work

# limited COMMAND...: with files of at most 1 MiB (2048 blocks of 512 bytes).
limited() {
    rm -f -- *
    cp ../kept/* .
    code=0
    (ulimit -f 2048 && exec "$@") >../text 2>&1 || code=$?
    whole=yes
    "$img" check -q top || whole=no
    [ "$("$img" checksum base)" = "$("$img" checksum ../kept/base)" ] || whole=no
    if [ $code -eq 1 ] && [ $whole = yes ] && grep -qi "too large" ../text; then
        passed=$((passed + 1))
    else
        echo "$* ends with $code, images whole: $whole: $(cat ../text)"
        failed=$((failed + 1))
    fi
}

limited "$io" -f qcow2 -c "write -P 3 0 4M" top
limited "$io" -f qcow2 -t none -c "write -P 3 0 4M" top
limited "$io" -f qcow2 -t writethrough -c "write -P 3 0 4M" top
limited "$io" -f raw -c "write -P 3 512k 1M" raw
limited "$img" convert -f qcow2 -O qcow2 base out
limited "$img" convert -f qcow2 -O raw base out
limited "$img" convert -f qcow2 -O qcow2 -o preallocation=full base out
limited "$img" create -f qcow2 -o preallocation=full out 8M
limited "$img" create -f qcow2 -o preallocation=falloc out 8M
limited "$img" create -f raw out 8M
limited "$img" create -f raw -o preallocation=full out 8M
limited "$img" resize -f raw raw 8M
limited "$img" resize -f qcow2 --preallocation=full top 32M
limited "$img" rebase -f qcow2 -b "" top

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
