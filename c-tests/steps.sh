# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Steps of a run, with one closing summary. Sourced.
passed=0 failed=0 skipped=0 bad=()

# step NAME COMMAND...: one line when it begins, its output when it fails.
step() {
    local name=$1 log start
    shift
    start=$SECONDS
    log=$(mktemp)
    printf '%-58s' "$name"
    if "$@" >"$log" 2>&1; then
        printf 'ok    %4d s\n' $((SECONDS - start))
        passed=$((passed + 1))
    else
        printf 'FAIL  %4d s\n' $((SECONDS - start))
        failed=$((failed + 1))
        bad+=("$name")
        tail -n 80 "$log" | sed 's/^/    /'
    fi
    grep -E '^[0-9]+ passed|^advisories: |^newer versions: |^ *test result|^fuzz |states enumerated|faults injected|reads judged|was parked|orders tried|planted bugs|^ *(Ok|Fail|Skipped):' \
        "$log" | sed 's/^/    /' | head -n 60
    rm -f "$log"
}

skip() {
    printf '%-58sskip  %s\n' "$1" "$2"
    skipped=$((skipped + 1))
}

# Whether all went well.
summary() {
    echo
    [ "$failed" -eq 0 ] || printf 'failed: %s\n' "${bad[@]}"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
}
