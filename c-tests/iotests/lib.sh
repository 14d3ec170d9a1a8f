# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
#
# The shell test library: how to write a test.
#
# A test is a bash script NAME in this directory, with NAME.out beside it: what the script must
# print. One behaviour per file; the name says which. `run` starts it with the stock tools, with
# ours, or with both, and compares. A test looks like this:
#
#     #!/usr/bin/env bash
#     # SPDX-License-Identifier: MIT OR Apache-2.0
#     # A written pattern is there after the image is closed and opened again.
#     . "${0%/*}/lib.sh"
#
#     img create -q -f qcow2 "$TEST_IMG" 1M
#     io -f qcow2 -c "write -P 7 0 64k" "$TEST_IMG"
#     io -f qcow2 -r -c "read -P 7 0 64k" "$TEST_IMG"
#     check "$TEST_IMG"
#     done_testing
#
# A new .out file comes from the stock tools (`run --tools stock --update NAME`); then read it
# line by line: it is a claim about the format, not a recording.
#
# Rules
#   * The script runs in its own empty directory, $TEST_DIR, and should use relative names.
#     It is removed on every exit, also after a signal.
#   * Call the tools through `img` and `io` only. They print the command, then standard output,
#     then standard error with "err| " before each line, then "rc=N" if N is not 0; all filtered.
#     The two streams are kept apart because their order on a pipe is buffering, not behaviour.
#   * Do not print what the format leaves open. Where clusters go follows from the order of
#     allocation in a fresh image (header 0, refcount table 1, refcount block 2, L1 table 3,
#     first L2 table 4, first data 5), and may be printed there. After clusters were freed or a
#     writer was killed it is open: use `map_guest` and `no_corruption`.
#   * After a kill only what was flushed (`flush`, or -t writethrough) is certain.
#   * A missing tool or feature is `notrun REASON`: a skip, not a failure.
#   * A feature that our tools do not have yet: where it is the subject of the test, ask with
#     `need_feature`; where it only prepares the image, let the stock tools prepare it in every run
#     (`stock_img`, `stock_io`), so that our engine meets it nevertheless.
#   * End with `done_testing`; a script that ends without it has failed.
#   * Where we mean to differ from the stock tools (they lose data there, say) the head of the script
#     tells why, and NAME.ours.out holds what our tools must print. Such tests are few.
#   * Well under 5 seconds. No network, no root, nothing outside $TEST_DIR.
#
# Environment: QCOW2_IMG, QCOW2_IO name the tools (default: the stock ones), STOCK_IMG and STOCK_IO
# the stock ones. MODE holds creation options that every `create -f qcow2` gets before its own, IMAGE in
# them being the name of the image (`run --mode`).

set -u
LC_ALL=C
export LC_ALL
unset CDPATH

QCOW2_IMG=${QCOW2_IMG:-qemu-img}
QCOW2_IO=${QCOW2_IO:-qemu-io}
STOCK_IMG=${STOCK_IMG:-qemu-img}
STOCK_IO=${STOCK_IO:-qemu-io}
MODE=${MODE:-}

TEST_DIR=$(mktemp -d "${TMPDIR:-/tmp}/iotest.XXXXXX") || exit 99
TEST_DIR=$(cd "$TEST_DIR" && pwd -P) || exit 99
TEST_IMG=t.qcow2
finished=no

cleanup() {
    local status=$?
    trap - EXIT
    # Only what this script started and has not waited for.
    # shellcheck disable=SC2046 # one word per process
    kill $(jobs -p) 2>/dev/null
    cd / || true
    rm -rf -- "$TEST_DIR"
    if [ "$status" -eq 0 ] && [ "$finished" = no ]; then
        echo "lib.sh: the script ended without done_testing"
        status=98
    fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM
cd "$TEST_DIR" || exit 99

# ---------------------------------------------------------------------------------------------
# Control

# Says that all statements were reached. The last line of every test.
done_testing() {
    finished=yes
    exit 0
}

# Skips the test: notrun REASON.
notrun() {
    finished=yes
    echo "notrun: $*"
    exit 77
}

# A heading in the output.
title() {
    echo
    echo "== $* =="
}

# Ends the test if the environment lacks a command.
need_command() {
    command -v "$1" >/dev/null 2>&1 || notrun "no command '$1'"
}

# Ends the test unless `create -o OPTION` works here: need_create_option lazy_refcounts=on
need_create_option() {
    "$QCOW2_IMG" create -q -f qcow2 -o "$1" probe.qcow2 1M >/dev/null 2>&1 \
        || notrun "cannot create with $1"
    rm -f probe.qcow2
}

# Ends the test unless the tools under test have a feature. They are asked: what is to come says
# "not supported yet". Any other answer (a missing file, say) means that the feature is there.
need_feature() {
    local probe
    case $1 in
        rebase) probe=$("$QCOW2_IMG" rebase -u -b '' missing 2>&1) ;;
        snapshot) probe=$("$QCOW2_IMG" snapshot -c probe missing 2>&1) ;;
        convert-compressed)
            : >probe.raw
            probe=$("$QCOW2_IMG" convert -c -f raw -O qcow2 probe.raw probe.qcow2 2>&1)
            rm -f probe.raw probe.qcow2
            ;;
        write-compressed)
            "$QCOW2_IMG" create -q -f qcow2 probe.qcow2 64k
            probe=$("$QCOW2_IO" -f qcow2 -c "write -c 0 64k" probe.qcow2 2>&1)
            rm -f probe.qcow2
            ;;
        *) echo "lib.sh: need_feature does not know '$1'"; exit 97 ;;
    esac
    case $probe in *"not supported yet"*) notrun "no $1 yet" ;; esac
}

# ---------------------------------------------------------------------------------------------
# Filters: from standard input to standard output

filter_names() {
    sed -E -e "s#$TEST_DIR#TEST_DIR#g" \
        -e "s#(/[^ ']*/)?\\b(qemu|qcow2)-img\\b#IMG#g" -e "s#(/[^ ']*/)?\\b(qemu|qcow2)-io\\b#IO#g"
}

# Speed of qemu-io, sizes and dates that the host decides, process numbers. The inner virtual size
# in the JSON output of info is the length of the image file.
filter_host() {
    sed -E \
        -e 's#[0-9]+ ops; .*/sec and [^ ]* ops/sec\)#X ops; XX:XX:XX.X (XXX YYY/sec and XXX ops/sec)#' \
        -e 's#^( *disk size: ).*#\1SIZE#' \
        -e 's#^( *file length: ).*#\1LENGTH#' \
        -e 's#("actual-size": )[0-9]+#\1SIZE#' \
        -e 's#^( {12,}"virtual-size": )[0-9]+#\1LENGTH#' \
        -e 's#[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}#DATE TIME#g' \
        -e "s/#block[0-9]+/#blockN/" \
        -e 's#[0-9]+ +(Killed|Aborted)#PID \1#'
}

filter_all() {
    filter_names | filter_host
}

# ---------------------------------------------------------------------------------------------
# The tools

# created_name ARGUMENTS...: the name of the image that `create -f qcow2 ARGUMENTS` makes, or nothing.
created_name() {
    local format='' name=''
    while [ $# -gt 0 ]; do
        case $1 in
            -f | --format) format=${2:-} && shift ;;
            -f*) format=${1#-f} ;;
            -o | -b | -F | --object) shift ;;
            -*) ;;
            *) name=${name:-$1} ;;
        esac
        [ $# -eq 0 ] || shift
    done
    [ "$format" != qcow2 ] || echo "$name"
}

# Runs a command; its streams go to the files .out and .err, its status to $rc.
# Shells announce a child that died of a signal; the group swallows that.
run_tool() {
    local name='' tool=$1
    if [ -n "$MODE" ] && [ "${2:-}" = create ]; then
        name=$(created_name "${@:3}")
        if [ -n "$name" ]; then set -- "$tool" create -o "${MODE//IMAGE/${name#file:}}" "${@:3}"; fi
    fi
    { ("$@" >.out 2>.err); rc=$?; } 2>/dev/null
    # A refused create of the stock tools may delete what was there; what comes next starts alike.
    if [ -n "${name:-}" ] && [ "$rc" -ne 0 ]; then rm -f -- "${name#file:}"; fi
}

show_tool() {
    echo "+ $*" | filter_names
    filter_all <.out
    filter_all <.err | sed -e 's/^/err| /'
    [ "$rc" -eq 0 ] || echo "rc=$rc"
}

# img ARGUMENTS...: runs qemu-img / qcow2-img. The status stays in $rc.
img() {
    run_tool "$QCOW2_IMG" "$@"
    show_tool IMG "$@"
}

# io ARGUMENTS...: runs qemu-io / qcow2-io. The status stays in $rc.
io() {
    run_tool "$QCOW2_IO" "$@"
    show_tool IO "$@"
}

# As `img` and `io`, for preparing: prints nothing if all is well, and ends the test otherwise.
# Output of a command whose status is 0 (repair messages, say) is not shown.
quiet_img() {
    run_tool "$QCOW2_IMG" "$@"
    [ "$rc" -eq 0 ] || { show_tool IMG "$@"; echo "lib.sh: preparing failed"; exit 97; }
}
quiet_io() {
    run_tool "$QCOW2_IO" "$@"
    [ "$rc" -eq 0 ] || { show_tool IO "$@"; echo "lib.sh: preparing failed"; exit 97; }
}

# quiet_io for a command that ends in a signal or an error: killed_io STATUS ARGUMENTS...
killed_io() {
    local want=$1
    shift
    run_tool "$QCOW2_IO" "$@"
    [ "$rc" -eq "$want" ] || { show_tool IO "$@"; echo "lib.sh: expected rc=$want"; exit 97; }
    echo "+ IO ... rc=$rc"
}

# The same with the stock tools, in every run: what our tools cannot make yet.
stock_img() {
    need_command "$STOCK_IMG"
    run_tool "$STOCK_IMG" "$@"
    [ "$rc" -eq 0 ] || { show_tool IMG "$@"; echo "lib.sh: preparing failed"; exit 97; }
}
stock_io() {
    need_command "$STOCK_IO"
    run_tool "$STOCK_IO" "$@"
    [ "$rc" -eq 0 ] || { show_tool IO "$@"; echo "lib.sh: preparing failed"; exit 97; }
}

# check IMAGE [OPTIONS]: a whole `check`, everything printed.
check() {
    local image=$1
    shift
    img check -f qcow2 "$@" "$image"
}

# no_corruption IMAGE: prints "no corruption" if `check` finds none. Leaks do not count: a killed
# writer may leave some, and how many is its own business.
no_corruption() {
    run_tool "$QCOW2_IMG" check -f qcow2 "$1"
    case $rc in
        0 | 3) echo "$1: no corruption" ;;
        *) show_tool IMG check -f qcow2 "$1" ;;
    esac
}

# map_guest IMAGE [OPTIONS]: what `map --output=json` says about guest ranges, one line each, without
# host offsets, neighbours of the same kind joined: START END depth=D present|absent zero|- data|-
map_guest() {
    local image=$1
    shift
    run_tool "$QCOW2_IMG" map --output=json "$@" "$image"
    [ "$rc" -eq 0 ] || { show_tool IMG map --output=json "$@" "$image"; return; }
    echo "map of $image"
    tr -d '[]{}",:' <.out | awk '
        function flush_run() { if (open) printf "  %9d %9d %s\n", first, last, kind }
        {
            delete f
            for (i = 1; i < NF; i += 2) f[$i] = $(i + 1)
            if (f["length"] == "") next
            k = "depth=" f["depth"] " " (f["present"] == "true" ? "present" : "absent") \
                " " (f["zero"] == "true" ? "zero" : "-") " " (f["data"] == "true" ? "data" : "-") \
                (f["compressed"] == "true" ? " compressed" : "")
            if (!open || k != kind || f["start"] != last) { flush_run(); first = f["start"]; kind = k }
            last = f["start"] + f["length"]
            open = 1
        }
        END { flush_run() }'
}

# ---------------------------------------------------------------------------------------------
# Encryption

# What a host with time on its hands decides: how often a passphrase is hashed, and the UUID.
filter_luks() {
    sed -E -e 's#(uuid"?: "?)[0-9a-f-]{36}#\1UUID#' -e 's#(iters"?: )[0-9]+#\1ITERS#'
}

# stock_luks FILE SIZE PASSPHRASE [OPTIONS]: an image that the stock tools make, with little work for its key.
stock_luks() {
    stock_img create -q --object "secret,id=make,data=$3" -f qcow2 \
        -o "encrypt.format=luks,encrypt.key-secret=make,encrypt.iter-time=1${4:+,$4}" "$1" "$2"
}

# ---------------------------------------------------------------------------------------------
# Bytes of a file, without any tool of ours

# peek FILE OFFSET LENGTH: the bytes as one hexadecimal string.
peek() {
    od -An -v -tx1 -j "$2" -N "$3" -- "$1" | tr -d ' \n'
}

# peek_be FILE OFFSET LENGTH: a big-endian number of 1 to 8 bytes, in decimal.
peek_be() {
    echo $((16#0$(peek "$1" "$2" "$3")))
}

# poke_file FILE OFFSET HEX: writes bytes: poke_file t.qcow2 72 80000000
poke_file() {
    local escaped
    escaped=$(echo "$3" | sed -e 's/../\\x&/g')
    # shellcheck disable=SC2059 # the format is made of escapes on purpose
    printf "$escaped" | dd of="$1" bs=1 seek="$(($2))" conv=notrunc status=none
}

# poke_be FILE OFFSET LENGTH VALUE: writes a big-endian number of 1 to 8 bytes.
poke_be() {
    poke_file "$1" "$2" "$(printf '%0*x' "$(($3 * 2))" "$4")"
}

# sha FILE: the SHA-256 of a file.
sha() {
    sha256sum <"$1" | cut -d ' ' -f 1
}

# unchanged FILE SHA: says whether a file still has that digest.
unchanged() {
    if [ "$(sha "$1")" = "$2" ]; then echo "$1: not one byte changed"; else echo "$1: CHANGED"; fi
}

bit_list() { # HEX16: numbers of the set bits, lowest first
    local value=$1 number=0 list='' digit position i
    for ((position = ${#value} - 1; position >= 0; position--)); do
        digit=$((16#${value:position:1}))
        for ((i = 0; i < 4; i++)); do
            if (((digit >> i) & 1)); then list="$list${list:+,}$number"; fi
            number=$((number + 1))
        done
    done
    echo "[$list]"
}

# header_bits IMAGE: the three feature fields as lists of bit numbers.
# Incompatible 0 is dirty, 1 is corrupt; compatible 0 is lazy refcounts.
header_bits() {
    if [ "$(peek "$1" 0 4)" != 514649fb ]; then
        echo "$1: not a qcow2 image"
    elif [ "$(peek_be "$1" 4 4)" -lt 3 ]; then
        echo "$1: version 2, no feature fields"
    else
        echo "$1: incompatible $(bit_list "$(peek "$1" 72 8)")" \
            "compatible $(bit_list "$(peek "$1" 80 8)") autoclear $(bit_list "$(peek "$1" 88 8)")"
    fi
}

# header_fields IMAGE: every field of the header, one per line.
header_fields() {
    local name offset length
    echo "header of $1"
    while read -r name offset length; do
        if [ "$offset" -ge 72 ] && [ "$(peek_be "$1" 4 4)" -lt 3 ]; then continue; fi
        echo "  $name $(peek_be "$1" "$offset" "$length")"
    done <<'FIELDS'
version 4 4
backing_file_offset 8 8
backing_file_size 16 4
cluster_bits 20 4
size 24 8
crypt_method 32 4
l1_size 36 4
l1_table_offset 40 8
refcount_table_offset 48 8
refcount_table_clusters 56 4
nb_snapshots 60 4
snapshots_offset 64 8
refcount_order 96 4
header_length 100 4
FIELDS
    header_bits "$1"
}

# first_extension IMAGE: the offset of the first header extension.
first_extension() {
    if [ "$(peek_be "$1" 4 4)" -lt 3 ]; then echo 72; else peek_be "$1" 100 4; fi
}

# extensions IMAGE: magic and length of each header extension, and the bytes of the short ones.
extensions() {
    local at magic length rounds=0
    [ -f "$1" ] || { echo "no image $1"; return; }
    at=$(first_extension "$1")
    echo "extensions of $1"
    while [ $((rounds += 1)) -le 32 ]; do
        magic=$(peek "$1" "$at" 4)
        length=$(peek_be "$1" $((at + 4)) 4)
        if [ "$length" -le 32 ]; then
            echo "  $magic $length $(peek "$1" $((at + 8)) "$length")"
        else
            echo "  $magic $length sha256 $(peek "$1" $((at + 8)) "$length" | sha256sum | cut -c 1-16)"
        fi
        [ "$magic" != 00000000 ] || return 0
        at=$((at + 8 + (length + 7) / 8 * 8))
    done
    echo "  (too many)"
}

# append_extension IMAGE MAGIC DATA: puts an extension before the end marker. MAGIC and DATA are
# hexadecimal; the image must have no backing name behind its extensions.
append_extension() {
    local at magic length data=$3
    [ -f "$1" ] || { echo "no image $1"; return; }
    at=$(first_extension "$1")
    while magic=$(peek "$1" "$at" 4); [ "$magic" != 00000000 ]; do
        length=$(peek_be "$1" $((at + 4)) 4)
        at=$((at + 8 + (length + 7) / 8 * 8))
    done
    length=$((${#data} / 2))
    while [ $((${#data} % 16)) -ne 0 ]; do data="${data}00"; done
    poke_file "$1" "$at" "$2"
    poke_be "$1" $((at + 4)) 4 "$length"
    poke_file "$1" $((at + 8)) "${data}0000000000000000"
}
