//! Whose turn it is with the sectors of an encrypted disk.
//!
//! A write of whole sectors disturbs nobody, as one of a plain disk. A write of a part of one reads, changes and writes
//! the sector: meanwhile no other writes there, for what it wrote would be lost, and what is read from there beside it was
//! read before or after, for a sector that is half written decrypts to what nobody wrote, in bytes that are no part of
//! either request. All else goes on.
//!
//! Reads take no lock while no part is written: they look at a number before and after.

use crate::format::geometry::SECTOR_BYTES;
use crate::format::HostOffset;
use crate::planted::{planted, Plant};
use crate::sync::locked;
use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

/// Writes of parts under way are in the lower half of the number; those that have begun in the upper one.
const BEGUN: u64 = 1 << 32;

/// Sectors `[first, end)` of the host that one request is at.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u64,
    end: u64,
    /// It writes a part of the first one, or of the last one.
    parts: (bool, bool),
}

impl Range {
    fn has(&self, sector: u64) -> bool {
        (self.first..self.end).contains(&sector)
    }

    /// Whether the one writes a part of a sector that the other is at.
    fn meets(&self, other: &Range) -> bool {
        let disturbs = |one: &Range, with: &Range| {
            one.parts.0 && with.has(one.first) || one.parts.1 && with.has(one.end - 1)
        };
        disturbs(self, other) || disturbs(other, self)
    }

    fn writes_part(&self) -> bool {
        self.parts.0 || self.parts.1
    }
}

#[derive(Default)]
struct Held {
    ranges: Vec<Range>,
    /// Threads that wait: nobody is woken, by a system call, when there are none.
    waiting: usize,
}

/// The requests on the sectors of one disk.
#[derive(Default)]
pub(crate) struct Turns {
    held: Mutex<Held>,
    left: Condvar,
    parts: AtomicU64,
}

/// The turn of one request.
#[must_use]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    range: Range,
}

impl Turns {
    /// Waits until a write of `bytes` may begin.
    pub(crate) fn write(&self, host: HostOffset, bytes: u64) -> Turn<'_> {
        let end = host.0 + bytes;
        self.take(Range {
            first: host.0 / SECTOR_BYTES,
            end: end.div_ceil(SECTOR_BYTES),
            parts: (host.0 % SECTOR_BYTES != 0, end % SECTOR_BYTES != 0),
        })
    }

    /// Waits until no part of these sectors is being written, and keeps it so.
    pub(crate) fn read(&self, host: HostOffset, bytes: u64) -> Turn<'_> {
        let (first, end) = (host.0 / SECTOR_BYTES, (host.0 + bytes).div_ceil(SECTOR_BYTES));
        self.take(Range { first, end, parts: (false, false) })
    }

    fn take(&self, range: Range) -> Turn<'_> {
        let mut held = locked(self.held.lock());
        while !planted(Plant::SectorTurnSkipped) && held.ranges.iter().any(|other| range.meets(other)) {
            held.waiting += 1;
            held = locked(self.left.wait(held));
            held.waiting -= 1;
        }
        held.ranges.push(range);
        if range.writes_part() {
            self.parts.fetch_add(BEGUN + 1, Ordering::SeqCst);
        }
        Turn { turns: self, range }
    }

    /// For a read that is about to begin; `None`: a part of some sector is being written.
    pub(crate) fn look(&self) -> Option<u64> {
        let now = self.parts.load(Ordering::SeqCst);
        (now % BEGUN == 0).then_some(now)
    }

    /// Whether no write of a part has begun since that look.
    pub(crate) fn is_as_seen(&self, seen: u64) -> bool {
        fence(Ordering::SeqCst);
        self.parts.load(Ordering::SeqCst) == seen
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut held = locked(self.turns.held.lock());
        if let Some(at) = held.ranges.iter().position(|range| *range == self.range) {
            held.ranges.swap_remove(at);
        }
        if self.range.writes_part() {
            self.turns.parts.fetch_sub(1, Ordering::SeqCst);
        }
        if held.waiting > 0 {
            self.turns.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn only_parts_of_one_sector_meet() {
        let range = |from: u64, to: u64| Range {
            first: from / 512,
            end: to.div_ceil(512),
            parts: (from % 512 != 0, to % 512 != 0),
        };
        for (one, other, meets) in [
            ((0, 1024), (512, 1536), false),
            ((0, 1024), (1000, 1024), true),
            ((0, 1000), (512, 1024), true),
            ((0, 1000), (0, 512), false),
            ((100, 101), (511, 512), true),
            ((100, 101), (512, 513), false),
            ((100, 5000), (1024, 2048), false),
            ((100, 5000), (1024, 2000), true),
            ((100, 5000), (4608, 5120), true),
        ] {
            let (one, other) = (range(one.0, one.1), range(other.0, other.1));
            assert_eq!(
                (one.meets(&other), other.meets(&one)),
                (meets, meets),
                "{}, {}",
                one.first,
                other.first
            );
        }
    }

    #[test]
    fn a_read_sees_whether_a_part_was_written_meanwhile() {
        let turns = Turns::default();
        let seen = turns.look().expect("nobody writes");
        drop(turns.write(HostOffset(0), 1024));
        assert!(turns.is_as_seen(seen), "whole sectors");
        let part = turns.write(HostOffset(5), 1);
        assert!(turns.look().is_none() && !turns.is_as_seen(seen));
        drop(part);
        assert!(turns.look().is_some() && !turns.is_as_seen(seen));
    }

    #[test]
    fn whoever_is_at_the_sector_waits_and_nobody_else() {
        let turns = Turns::default();
        let part = turns.write(HostOffset(700), 1);
        drop(turns.write(HostOffset(0), 512));
        drop(turns.read(HostOffset(1024), 512));
        drop(turns.write(HostOffset(1030), 1));
        let (sender, receiver) = channel();
        std::thread::scope(|scope| {
            for write in [true, false] {
                let (sender, turns) = (sender.clone(), &turns);
                scope.spawn(move || {
                    let host = HostOffset(0);
                    drop(if write { turns.write(host, 1024) } else { turns.read(host, 1024) });
                    sender.send(()).unwrap();
                });
            }
            assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "nobody waits");
            drop(part);
            (0..2).for_each(|_| receiver.recv_timeout(Duration::from_secs(10)).unwrap());
        });
    }
}
