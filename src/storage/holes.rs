//! Whether the host may be asked where a file has holes.
//!
//! Some hosts answer by what is on the medium and know nothing of what is still in a cache above it (FUSE with a cache
//! that writes back): what was just written is a hole to them. So nobody is asked about a file that has changed since
//! it was last settled, which a sync does; what is not known counts as data.

//!
//! What was learned is remembered, for an answer may cost a walk over the file: data until the host may have less, holes
//! until the next change. A walk begins a little before the place that is asked for, and each time twice as far before
//! it, so that questions in any order cost one walk in all; where runs are short, and perhaps more than can be remembered,
//! it begins nearer, so that each question costs a few steps.

use super::{is_not_supported, HostRun, Storage};
use crate::sync::locked;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

/// Most runs that are remembered.
const MAX_RUNS: usize = 32 << 10;
/// Steps of a walk after which the next one begins nearer to the place that is asked for.
const MANY_STEPS: u64 = 8;
/// How far before the place that is asked for the second walk begins.
const LOOK_BACK_BYTES: u64 = 16 << 10;
/// Runs from this length on are remembered when there are many.
const LONG_RUN_BYTES: u64 = 1 << 20;

/// What was written before the file was opened counts as a change, too.
pub struct Holes {
    /// Changes, as far as they came after a settling had begun.
    changes: AtomicU64,
    /// Of these, what the last settling that has begun covers, and what is settled.
    begun: AtomicU64,
    settled: AtomicU64,
    memory: Mutex<Memory>,
}

/// Runs that the host has told.
#[derive(Default)]
struct Memory {
    /// By their starts.
    runs: BTreeMap<u64, HostRun>,
    /// Changes before the holes among them were told.
    changes: u64,
    /// Counts `forget`: who asked before must not teach afterwards.
    forgotten: u64,
    look_back: u64,
}

impl Memory {
    fn find(&self, offset: u64, changes: u64) -> Option<HostRun> {
        let (_, run) = self.runs.range(..=offset).next_back()?;
        (run.end > offset && (run.data || self.changes == changes)).then_some(*run)
    }

    fn learn(&mut self, start: u64, run: HostRun, changes: u64) {
        if self.changes != changes {
            self.runs.retain(|_, run| run.data);
            self.changes = changes;
        }
        if self.runs.len() >= MAX_RUNS {
            // Long ones cost a host more to tell again.
            self.runs.retain(|start, run| run.end - start >= LONG_RUN_BYTES);
            if self.runs.len() >= MAX_RUNS / 2 {
                self.runs.clear();
            }
        }
        while let Some((&inside, _)) = self.runs.range(start..run.end).next() {
            self.runs.remove(&inside);
        }
        self.runs.insert(start, run);
    }
}

impl Default for Holes {
    fn default() -> Self {
        Holes {
            changes: AtomicU64::new(1),
            begun: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            memory: Mutex::default(),
        }
    }
}

impl Holes {
    /// A write has returned.
    #[inline]
    pub fn note_change(&self) {
        if self.begun.load(Ordering::SeqCst) >= self.changes.load(Ordering::SeqCst) {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::SeqCst) >= self.changes.load(Ordering::SeqCst)
    }

    /// Makes the host see every write that has returned.
    pub fn settle(&self, storage: &dyn Storage) -> io::Result<()> {
        if self.is_settled() {
            return Ok(());
        }
        let changes = self.changes.load(Ordering::SeqCst);
        self.begun.fetch_max(changes, Ordering::SeqCst);
        storage.settle_runs()?;
        self.settled.fetch_max(changes, Ordering::SeqCst);
        Ok(())
    }

    /// The run that holds `offset`, all data where nobody can tell. A file that is open for reading, which nobody
    /// changes here, is settled when it is first asked for.
    pub fn run(&self, storage: &dyn Storage, offset: u64) -> io::Result<HostRun> {
        if let Some(run) = self.known(offset) {
            return Ok(run);
        }
        // Before it is known that they are settled: what changes after that makes the answer worth nothing later.
        let changes = self.changes.load(Ordering::SeqCst);
        if !self.may_ask(storage) {
            return Ok(HostRun { data: true, end: storage.length()? });
        }
        let (mut at, forgotten) = {
            let memory = locked(self.memory.lock());
            let before = memory.runs.range(..offset).next_back().map_or(0, |(_, run)| run.end);
            let start = offset.saturating_sub(memory.look_back).max(before.min(offset));
            (start, memory.forgotten)
        };
        let mut steps = 0;
        loop {
            let run = storage.host_run(at)?;
            steps += 1;
            if run.end <= at {
                return storage.host_run(offset);
            }
            let mut memory = locked(self.memory.lock());
            if memory.forgotten == forgotten && self.changes.load(Ordering::SeqCst) == changes {
                memory.learn(at, run, changes);
            }
            if run.end > offset {
                memory.look_back = match steps > MANY_STEPS {
                    true => memory.look_back / 4,
                    false => memory.look_back.saturating_mul(2).max(LOOK_BACK_BYTES),
                };
                return Ok(run);
            }
            at = run.end;
        }
    }

    /// Whether `[offset, offset + length)` is a hole, by one question that costs no walk over data.
    pub fn is_hole(&self, storage: &dyn Storage, offset: u64, length: u64) -> io::Result<bool> {
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            match self.known(at) {
                Some(run) if run.data => return Ok(false),
                Some(run) => at = run.end,
                None => {
                    let changes = self.changes.load(Ordering::SeqCst);
                    let Some(hole_end) =
                        self.may_ask(storage).then(|| storage.hole_end(at)).transpose()?.flatten()
                    else {
                        return Ok(false);
                    };
                    let mut memory = locked(self.memory.lock());
                    if self.changes.load(Ordering::SeqCst) == changes {
                        memory.learn(at, HostRun { data: false, end: hole_end }, changes);
                    }
                    at = hole_end;
                }
            }
        }
        Ok(true)
    }

    /// The rest of a run that holds `offset`, if it is known.
    pub fn known(&self, offset: u64) -> Option<HostRun> {
        let changes = self.changes.load(Ordering::SeqCst);
        // Of what has changed since, holes are not known: no settling is as new.
        locked(self.memory.lock()).find(offset, changes)
    }

    /// Remembers a run of data from `start` on.
    pub fn learn(&self, start: u64, run: HostRun) {
        let mut memory = locked(self.memory.lock());
        let changes = memory.changes;
        memory.learn(start, run, changes);
    }

    /// The host may have less than before.
    pub fn forget(&self) {
        let mut memory = locked(self.memory.lock());
        memory.runs.clear();
        memory.forgotten += 1;
    }

    /// Whether the host knows what was written.
    fn may_ask(&self, storage: &dyn Storage) -> bool {
        self.is_settled()
            || storage.traits().read_only && self.settle(storage).or_else(|e| self.never_changes(e)).is_ok()
    }

    /// A host without a sync has nothing that is not on the medium.
    fn never_changes(&self, error: io::Error) -> io::Result<()> {
        if !is_not_supported(&error) && error.raw_os_error() != Some(libc::EROFS) {
            return Err(error);
        }
        self.settled.fetch_max(self.begun.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
