//! A storage in memory that counts what it is asked for, and of which the host holds what was written and nothing else.

use crate::images::KIB;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::collections::BTreeSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What the host holds, it holds in pieces of so many bytes.
const PAGE: u64 = 4 * KIB;

/// Calls of one storage, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    /// Where the host has data and holes: the host may walk over all data from there on to tell.
    pub walks: u64,
    /// Where a hole ends, which costs no walk over data.
    pub questions: u64,
    /// Lengths that were asked for or changed.
    pub lengths: u64,
    /// Zeroes, discards, room taken.
    pub others: u64,
}

impl Add for Calls {
    type Output = Calls;

    fn add(self, other: Calls) -> Calls {
        Calls {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            syncs: self.syncs + other.syncs,
            walks: self.walks + other.walks,
            questions: self.questions + other.questions,
            lengths: self.lengths + other.lengths,
            others: self.others + other.others,
        }
    }
}

impl Sub for Calls {
    type Output = Calls;

    fn sub(self, before: Calls) -> Calls {
        Calls {
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
            syncs: self.syncs - before.syncs,
            walks: self.walks - before.walks,
            questions: self.questions - before.questions,
            lengths: self.lengths - before.lengths,
            others: self.others - before.others,
        }
    }
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    syncs: AtomicU64,
    walks: AtomicU64,
    questions: AtomicU64,
    lengths: AtomicU64,
    others: AtomicU64,
}

/// The storage.
pub struct Counting {
    memory: Arc<Memory>,
    read_only: bool,
    /// Numbers of the pages that the host has.
    pages: Arc<Mutex<BTreeSet<u64>>>,
    counters: Counters,
}

impl Counting {
    /// Takes writes; everything in `memory` is data.
    pub fn new(memory: Arc<Memory>) -> Arc<Counting> {
        let pages = (0..(memory.contents().len() as u64).div_ceil(PAGE)).collect();
        Arc::new(Counting {
            memory,
            read_only: false,
            pages: Arc::new(Mutex::new(pages)),
            counters: Counters::default(),
        })
    }

    /// The same bytes and holes for somebody who only reads; its calls are counted from 0.
    pub fn for_reading(&self) -> Arc<Counting> {
        Arc::new(Counting {
            memory: Arc::clone(&self.memory),
            read_only: true,
            pages: Arc::clone(&self.pages),
            counters: Counters::default(),
        })
    }

    /// What has been asked for so far.
    pub fn calls(&self) -> Calls {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = &self.counters;
        Calls {
            reads: count(&of.reads),
            writes: count(&of.writes),
            syncs: count(&of.syncs),
            walks: count(&of.walks),
            questions: count(&of.questions),
            lengths: count(&of.lengths),
            others: count(&of.others),
        }
    }

    /// Runs of data that the host has.
    pub fn host_extents(&self) -> u64 {
        let pages = self.pages.lock().unwrap();
        pages.iter().filter(|page| **page == 0 || !pages.contains(&(**page - 1))).count() as u64
    }

    fn hold(&self, offset: u64, length: u64) {
        self.pages.lock().unwrap().extend(offset / PAGE..(offset + length).div_ceil(PAGE));
    }

    fn run(&self, offset: u64) -> io::Result<HostRun> {
        let length = self.memory.length()?;
        if offset >= length {
            return Ok(HostRun { data: true, end: length });
        }
        let pages = self.pages.lock().unwrap();
        let page = offset / PAGE;
        let data = pages.contains(&page);
        let end = match data {
            true => (page..).find(|page| !pages.contains(page)),
            false => pages.range(page..).next().copied(),
        };
        Ok(HostRun { data, end: end.map_or(length, |end| (end * PAGE).min(length)) })
    }

    fn let_go(&self, offset: u64, length: u64) {
        let whole = offset.div_ceil(PAGE)..(offset + length) / PAGE;
        self.pages.lock().unwrap().retain(|page| !whole.contains(page));
    }
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Storage for Counting {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        one_more(&self.counters.reads);
        self.memory.read(purpose, offset, buffers)
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        one_more(&self.counters.writes);
        self.hold(offset, buffers.iter().map(|b| b.len() as u64).sum());
        self.memory.write(purpose, offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        one_more(&self.counters.syncs);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        one_more(&self.counters.lengths);
        self.memory.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        one_more(&self.counters.lengths);
        self.memory.set_length(length)
    }

    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        one_more(&self.counters.others);
        self.let_go(offset, length);
        self.memory.write_zeroes(purpose, offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        one_more(&self.counters.others);
        self.let_go(offset, length);
        self.memory.discard(offset, length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        one_more(&self.counters.others);
        self.memory.preallocate(offset, length)
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        one_more(&self.counters.walks);
        self.run(offset)
    }

    fn hole_end(&self, offset: u64) -> io::Result<Option<u64>> {
        one_more(&self.counters.questions);
        self.run(offset).map(|run| (!run.data && run.end > offset).then_some(run.end))
    }

    fn settle_runs(&self) -> io::Result<()> {
        Ok(())
    }

    fn traits(&self) -> Traits {
        Traits { read_only: self.read_only, ..self.memory.traits() }
    }
}
