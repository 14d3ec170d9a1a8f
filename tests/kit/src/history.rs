//! Histories of concurrent requests: when each started and ended, and what each sector was given or gave.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

/// What a request did to one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// Gave it this tag (0: zeroes).
    Gave(u32),
    /// Gave it zeroes or left it.
    MayZero,
    /// Saw this tag.
    Saw(u32),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    did: Did,
    start: u64,
    end: u64,
}

/// The history of a disk.
pub struct History {
    clock: AtomicU64,
    sectors: Vec<Mutex<Vec<Entry>>>,
}

impl History {
    /// A disk that holds `initial`.
    pub fn new(initial: &[u32]) -> History {
        let first = |tag: &u32| Mutex::new(vec![Entry { did: Did::Gave(*tag), start: 0, end: 0 }]);
        History { clock: AtomicU64::new(1), sectors: initial.iter().map(first).collect() }
    }

    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A request that started at `start` has just ended.
    pub fn note(&self, start: u64, sector: u64, did: impl Iterator<Item = Did>) {
        let end = self.now();
        for (index, did) in did.enumerate() {
            self.sectors[sector as usize + index].lock().unwrap().push(Entry { did, start, end });
        }
    }

    /// Each tag that was seen can have been there: its writer started before the reader ended, and no other
    /// write lies wholly between the two.
    pub fn judge(&self) -> Result<u64, String> {
        let mut reads = 0;
        for (sector, entries) in self.sectors.iter().enumerate() {
            let entries = entries.lock().unwrap();
            for read in entries.iter() {
                let Did::Saw(tag) = read.did else { continue };
                reads += 1;
                let gave = |e: &&Entry| match e.did {
                    Did::Gave(t) => t == tag,
                    Did::MayZero => tag == 0,
                    Did::Saw(_) => false,
                };
                let hidden = |w: &Entry| {
                    let between =
                        |e: &Entry| matches!(e.did, Did::Gave(_)) && e.start > w.end && e.end < read.start;
                    entries.iter().any(between)
                };
                let mut writers = entries.iter().filter(gave).filter(|w| w.start < read.end);
                if !writers.any(|w| !hidden(w)) {
                    let mut near: Vec<_> = entries.iter().filter(|e| e.start < read.end).copied().collect();
                    near.sort_by_key(|e| e.start);
                    let near = &near[near.len().saturating_sub(12)..];
                    return Err(format!("sector {sector}: {read:?} after {near:?}"));
                }
            }
        }
        Ok(reads)
    }
}
