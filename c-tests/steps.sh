# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Steps of a run, with one closing summary. Sourced.
results=$(mktemp)
trap 'rm -f "$results"' EXIT

# step NAME COMMAND...: a line when it ends, with its time and that of the processors; its output when it fails.
step() {
    local name=$1 log spent word=ok wall user system TIMEFORMAT='%0R %0U %0S'
    shift
    log=$(mktemp) spent=$(mktemp)
    { time "$@" >"$log" 2>&1 || word=FAIL; } 2>"$spent"
    read -r wall user system <"$spent"
    # Two lanes do not mix their lines.
    {
        flock 9
        echo "$word $name" >&9
        printf '%-58s%-4s  %4d s, processors %4d s\n' "$name" $word "$wall" $((user + system))
        # What failed, wherever in the output it is, and the end.
        [ $word = ok ] || {
            grep -E -A 4 '^test .*FAILED|panicked at|^ *[0-9]+/[0-9]+ .*(FAIL|TIMEOUT)|^fail ' "$log" | head -n 60
            tail -n 80 "$log"
        } | sed 's/^/    /'
        grep -E '^[0-9]+ passed|^advisories: |^newer versions: |^ *test result|^fuzz |states enumerated|faults injected|reads judged|was parked|orders tried|planted bugs|^ *(Ok|Fail|Skipped):' \
            "$log" | sed 's/^/    /' | head -n 60
    } 9>>"$results"
    rm -f "$log" "$spent"
    [ $word = ok ]
}

skip() {
    printf '%-58sskip  %s\n' "$1" "$2"
    echo "skip $1" >>"$results"
}

# lanes COUNT FUNCTION...: so many at a time, in this order; each is a list of steps that need each other.
lanes() {
    local count=$1 pids=() pid
    shift
    while [ $# -gt 0 ]; do
        # In the background an interrupt is ignored unless it is asked for.
        (trap - INT EXIT; "$1"; exit 0) &
        pids+=($!)
        shift
        [ $# -eq 0 ] || [ "$(jobs -pr | wc -l)" -lt "$count" ] || wait -n
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || echo "FAIL a lane was killed" >>"$results"
    done
}

# Whether all went well.
summary() {
    echo
    sed -n 's/^FAIL /failed: /p' "$results"
    echo "$(grep -c '^ok ' "$results") passed, $(grep -c '^FAIL ' "$results") failed, $(grep -c '^skip ' "$results") skipped"
    ! grep -q '^FAIL ' "$results"
}
