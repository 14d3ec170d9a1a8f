#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs the models of src/loom under loom. With --mutants [TEXT], shows instead for each mistake of the list below
# (whose name has TEXT in it) that a model fails on it; that takes a build each.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
export LC_ALL=C RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=${QCOW2_LOOM_TARGET:-$top/target/loom} RUST_BACKTRACE=0

models() {
    cargo test --lib --quiet --manifest-path "$1/Cargo.toml" loom:: -- --nocapture
}

if [ "${1:-}" != --mutants ]; then
    models "$top"
    exit
fi
# Built often and run briefly.
export CARGO_PROFILE_TEST_OPT_LEVEL=0

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
missed=0 caught=0 only=${2:-}

# mutant NAME FILE OLD NEW: what OLD stands for once in FILE is replaced, and a model must fail.
mutant() {
    [[ $1 == *"$only"* ]] || return 0
    rm -rf "${copy:?}/src"
    (cd "$top" && git ls-files -co --exclude-standard -z | tar c --null -T -) | tar x -C "$copy"
    python3 - "$copy/src/$2" "$3" "$4" <<'PYTHON' || exit 1
import sys

path, old, new = sys.argv[1:]
text = open(path).read()
if text.count(old) != 1:
    sys.exit(f"{path}: {text.count(old)} times: {old}")
open(path, "w").write(text.replace(old, new))
PYTHON
    local log=$copy/log
    if models "$copy" >"$log" 2>&1; then
        echo "MISSED  $1"
        missed=$((missed + 1))
    elif grep -q "^test result: FAILED" "$log"; then
        echo "caught  $1: $(sed -n 's/^ *\([a-z_:]*loom::[a-z_:]*\)$/\1/p' "$log" | sort -u | tr '\n' ' ')"
        caught=$((caught + 1))
    else
        tail -n 20 "$log"
        exit 1
    fi
}

mutant "a past ticket orders nothing" storage/medium.rs \
    'ticket.0 <= self.completed.load(Ordering::SeqCst)' 'ticket.0 <= self.completed.load(Ordering::Relaxed)'
mutant "a ticket names the sync under way" storage/medium.rs \
    'Ticket(self.started.load(Ordering::SeqCst) + 1)' 'Ticket(self.started.load(Ordering::SeqCst).max(1))'
mutant "a ticket is taken with a stale clock" storage/medium.rs \
    'Ticket(self.started.load(Ordering::SeqCst) + 1)' 'Ticket(self.started.load(Ordering::Relaxed) + 1)'
mutant "a sync counts as completed when it begins" storage/medium.rs \
    '        if !planted(Plant::SyncSkipped) {' '        self.completed.fetch_max(sync.0, Ordering::SeqCst);
        if !planted(Plant::SyncSkipped) {'
mutant "a flush joins the one that runs" image/flush.rs 'let mine = state.started + 1;' 'let mine = state.started.max(1);'
mutant "a flush ends unannounced" image/flush.rs 'self.flusher.done.notify_all();' ''
mutant "pins are looked at without a fence" storage/gate.rs \
    '        fence(Ordering::SeqCst);
        let starts = self.places.iter().map(|p| p.0.load(Ordering::SeqCst));' \
    '        let _ = fence;
        let starts = self.places.iter().map(|p| p.0.load(Ordering::Relaxed));'
mutant "a pin is dated too late" storage/gate.rs 'compare_exchange(0, epoch, Ordering::SeqCst' \
    'compare_exchange(0, epoch + 1, Ordering::SeqCst'
mutant "a pin goes without releasing" storage/gate.rs 'self.place.store(0, Ordering::Release)' 'self.place.store(0, Ordering::Relaxed)'
mutant "the gate is not looked at again" storage/gate.rs 'if !self.closed.load(Ordering::SeqCst) {' 'if self.closed.load(Ordering::Relaxed) || true {'
mutant "the gate opens without its lock" storage/gate.rs \
    'let _guard = self.gate.opened.0.lock().unwrap_or_else(|e| e.into_inner());' ''
mutant "claims that begin before another overlap it" map/claims.rs '*f < end && first < *e' '*f <= first && first < *e'
mutant "a claim is waited for after a second look" map/claims.rs \
    'held = self.dropped.wait(held)' 'drop(held);
            held = self.held.lock().unwrap_or_else(|e| e.into_inner());
            held = self.dropped.wait(held)'
mutant "a dropped claim tells nobody" map/claims.rs 'self.claims.dropped.notify_all();' ''
mutant "another user comes in between two accesses" storage/lock.rs \
    '        let mut files = self.lock();
        let users = files.entry(identity).or_default();
        users.leave(from);
        users.enter(to, shown).inspect_err(|_| users.count(from))' \
    '        self.forget(identity, from);
        self.register(identity, to, shown)'
mutant "a barrier asks late what waits" meta/write_out.rs '        self.settler.advance()?;
        // What waited' '        self.settler.advance()?;
        let waits = self.waits_for(target);
        // What waited'
mutant "a write-through asks late what waits" meta/write_out.rs '        self.write_listed()?;
        if waits {
            self.write_waiting(target)?;
        }' '        self.write_listed()?;
        let waits = waits && self.waits_for(target);
        if waits {
            self.write_waiting(target)?;
        }'
mutant "nobody waits for pages in hand" meta/write_out.rs '        drop(announced);
        self.list.wait_in_flight();' '        drop(announced);'
mutant "nobody waits for the last page in hand" meta/write_out.rs \
    '        // The last of them may have been taken by somebody who is still writing.
        self.list.wait_in_flight();' ''
mutant "a page in hand is evicted" meta/page.rs \
    'let Ok(_idle) = self.writing.try_lock() else { return false };' ''
mutant "write-outs of a page overtake each other" meta/page.rs \
    'let _order = self.writing.lock().unwrap_or_else(|e| e.into_inner());' ''
mutant "a page that could not be written is forgotten" meta/page.rs '            self.take_back(ripe, list);
' ''
mutant "a flush does not see what comes back" meta/write_out.rs 'if self.list.failures() == failures {' \
    'if self.list.failures() >= failures {'
mutant "an evicted page is changed" meta/page.rs '        if !self.is_live() {
            return Updated::Evicted;
        }' ''
mutant "two threads load into one set" meta/cache.rs 'if !self.is_owned(&loading, key) {
                loading.keys.push(key);' 'if loading.keys.len() < 9 {
                loading.keys.push(key);'

echo "$caught passed, $missed failed"
[ "$missed" -eq 0 ]
