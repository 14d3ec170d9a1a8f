# SPDX-License-Identifier: MIT OR Apache-2.0
# A file whose free clusters begin at 2^49 or so, where the stock tool looks at each cluster before: a test has one such
# search, for it takes seconds.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
. "${0%/*}/lib.sh"

truncate -s 600T probe.raw 2>/dev/null || notrun "no file system for a file of 600 TiB"
rm -f probe.raw

# far IMAGE BYTES: an image of 2 MiB clusters whose free clusters begin at host offset BYTES: the entries of the
# refcount table before name one block, in which everything is in use.
far() {
    local cluster=$((2 << 20)) table per_entry=$((4 << 40)) entry
    quiet_img create -q -f qcow2 -o cluster_size=2M,refcount_bits=8 "$1" 64M
    table=$(peek_be "$1" 48 8)
    head -c "$cluster" /dev/zero | tr '\0' '\1' | dd of="$1" bs="$cluster" seek=5 conv=notrunc status=none
    for ((entry = 0; entry < $2 / per_entry; entry++)); do
        poke_be "$1" $((table + entry * 8)) 8 $((5 * cluster))
    done
}
far_counts() { # IMAGE: the counts other than 0 of the 512 clusters from 2^49 on
    local block
    block=$(peek_be "$1" $(($(peek_be "$1" 48 8) + 128 * 8)) 8)
    echo "counted past 2^49: $(peek "$1" "$block" 512 | sed -e 's/../& /g' -e 's/00 //g')"
}
