//! The storage double: bytes in memory, a log of every change and sync, injected faults, parked calls.
//!
//! A recording that ends is judged: whoever drops a recorder without a look at its trace has its rules and
//! ownership checked there, and panics if it breaks one. `leave_unjudged` is the only way out.

mod hold;
mod storage;

use crate::rules;
use hold::Hold;
use qcow2::testing::storage::Purpose;
use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::thread::ThreadId;

/// The calls that can be counted, failed and parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
    SetLength,
    Zeroes,
    Discard,
    Preallocate,
}

/// What an event did to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Write,
    Zeroes,
    Discard,
    SetLength,
    /// Everything before event number `covers` is durable.
    Sync {
        covers: usize,
    },
}

/// One completed call that changed something.
#[derive(Clone, Debug)]
pub struct Event {
    pub what: What,
    pub purpose: Purpose,
    /// Byte offset; the new length for `SetLength`.
    pub offset: u64,
    /// Bytes; 0 for `SetLength` and `Sync`.
    pub length: u64,
    /// What was written.
    pub bytes: Arc<[u8]>,
    /// The request that the thread was running.
    pub request: Option<Request>,
    /// Rises over all recorders: which of two events on two files was first.
    pub stamp: u64,
}

/// A request that a thread runs: the guest bytes that it touches, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub guest: Option<(u64, u64)>,
    /// What the disk shows stays.
    pub unchanging: bool,
}

fn next_stamp() -> u64 {
    static STAMPS: AtomicU64 = AtomicU64::new(0);
    STAMPS.fetch_add(1, Ordering::SeqCst)
}

/// Fails calls.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Calls of this kind are counted; `None` counts all.
    pub kind: Option<Kind>,
    /// The call that fails, from 0.
    pub call: u64,
    pub errno: i32,
    /// All later ones fail too.
    pub forever: bool,
    /// A failing write leaves its first half behind.
    pub torn: bool,
}

/// A host that has no room, until it has some again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Takes no bytes at all, as one that never writes in place.
    Everything,
    /// Takes bytes where it has some already: what was written before and not given back. Of a write it takes the part
    /// before the first place that it does not have.
    New,
}

/// What the storage cannot do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    pub set_length: bool,
    pub write_zeroes: bool,
    pub discard: bool,
    /// Discarded bytes stay.
    pub discard_keeps: bool,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    log: Vec<Event>,
    calls: u64,
    seen: u64,
    fault: Option<Fault>,
    /// Bytes-taking calls still to come before the host is full, how, and what it says then.
    full: Option<(u64, Full, i32)>,
    /// Sectors that the host has.
    held: HashSet<u64>,
    failed: u64,
    refusals: Refusals,
    holds: Vec<Hold>,
    zeroed: Vec<Zeroed>,
    kept: Vec<Kept>,
    /// The only thread that has changed anything, until there is a second one.
    writer: Option<ThreadId>,
    threads: bool,
    /// Events that have been judged.
    judged: Option<usize>,
    /// Guest bytes from here on read as zeroes where the image has nothing.
    backing_end: u64,
    /// A request changes the backing file's name, or the version.
    names_may_change: bool,
    /// A request changes settings, which may take zero flags out of shared tables.
    amended: bool,
    unjudged: Option<&'static str>,
    /// Where the guest data of the image is, if not in it.
    data_file: Option<Arc<Recorder>>,
    /// What threads work for that run no request of their own: those that the library starts.
    helped: Option<Request>,
}

/// Guest bytes that a request has zeroed, discarded or cut off.
#[derive(Clone, Copy, Debug)]
pub struct Zeroed {
    /// Events before the request.
    pub at: usize,
    pub from: u64,
    pub to: u64,
    /// Events before its end; `usize::MAX` while it runs.
    pub end: usize,
    /// The stamps of its start and its end.
    pub stamps: (u64, u64),
}

/// Guest bytes of which all was durable at a moment that had been acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub stamp: u64,
    pub from: u64,
    pub to: u64,
}

thread_local! {
    /// The request that this thread runs.
    static REQUEST: Cell<Option<Request>> = const { Cell::new(None) };
    /// Requests of this thread leave what the disk shows as it is.
    static UNCHANGING: Cell<bool> = const { Cell::new(false) };
    /// The number under which this thread's calls are parked.
    static ACTOR: Cell<u32> = const { Cell::new(0) };
}

/// Calls of this thread are those of `actor` (not 0) from now on.
pub fn act_as(actor: u32) {
    ACTOR.set(actor);
}

/// Requests that `run` makes leave what the disk shows as it is.
pub fn as_unchanging<T>(run: impl FnOnce() -> T) -> T {
    UNCHANGING.set(true);
    let answer = run();
    UNCHANGING.set(false);
    answer
}

/// Runs a request of this thread on `guest`, as part of the one that it runs already if there is one.
pub fn as_request<T>(guest: Option<(u64, u64)>, run: impl FnOnce() -> T) -> T {
    let outer = REQUEST.get();
    REQUEST.set(outer.or(Some(Request { guest, unchanging: UNCHANGING.get() })));
    let answer = run();
    REQUEST.set(outer);
    answer
}

/// See the module.
pub struct Recorder {
    state: Mutex<State>,
    moved: Condvar,
    base: Vec<u8>,
}

impl Recorder {
    pub fn new(bytes: Vec<u8>) -> Arc<Recorder> {
        let sectors = bytes.chunks(crate::SECTOR as usize).zip(0..);
        let held = sectors.filter(|(s, _)| s.iter().any(|b| *b != 0)).map(|(_, i)| i).collect();
        let state = State { bytes: bytes.clone(), held, ..State::default() };
        Arc::new(Recorder { state: Mutex::new(state), moved: Condvar::new(), base: bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What the storage held at first.
    pub fn base(&self) -> &[u8] {
        &self.base
    }

    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// What completed syncs have made durable.
    pub fn durable_contents(&self) -> Vec<u8> {
        let state = self.lock();
        let covers = |e: &Event| match e.what {
            What::Sync { covers } => covers,
            _ => 0,
        };
        let covered = state.log.iter().map(covers).max().unwrap_or(0);
        let mut bytes = self.base.clone();
        state.log[..covered].iter().for_each(|e| crate::cut::apply(&mut bytes, e));
        bytes
    }

    pub fn log(&self) -> Vec<Event> {
        self.lock().log.clone()
    }

    pub fn log_length(&self) -> usize {
        self.lock().log.len()
    }

    /// Calls of every kind so far.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Calls that the injected fault has counted.
    pub fn counted(&self) -> u64 {
        self.lock().seen
    }

    /// Calls that an injected fault has failed.
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// As `failed`, those of the data file too.
    pub fn failures(&self) -> u64 {
        self.failed() + self.data_file().map_or(0, |d| d.failed())
    }

    /// Counts from now on for `fault`.
    pub fn inject(&self, fault: Option<Fault>) {
        let mut state = self.lock();
        state.fault = fault;
        state.seen = 0;
        state.failed = 0;
    }

    /// After `calls` more calls that take bytes the host is full, and says `errno`.
    pub fn fill_up(&self, calls: u64, full: Full, errno: i32) {
        self.lock().full = Some((calls, full, errno));
    }

    /// The host has room. Whether it was full before, and how many calls were left until then.
    pub fn make_room(&self) -> (bool, u64) {
        let mut state = self.lock();
        let left = state.full.take().map_or(0, |f| f.0);
        (std::mem::take(&mut state.failed) > 0, left)
    }

    /// Whether a call has met the full host.
    pub fn was_full(&self) -> bool {
        self.lock().failed > 0
    }

    /// How many of `length` bytes at `offset` the host takes, and what it says of the others.
    fn takes(state: &mut State, offset: u64, length: u64) -> Result<(), (u64, i32)> {
        let Some((calls, full, errno)) = state.full else { return Ok(()) };
        if calls > 0 {
            state.full = Some((calls - 1, full, errno));
            return Ok(());
        }
        let sector = crate::SECTOR;
        let mut sectors = offset / sector..(offset + length).div_ceil(sector);
        let taken = match full {
            Full::Everything => Some(offset / sector),
            Full::New => sectors.find(|s| !state.held.contains(s)),
        };
        let Some(end) = taken else { return Ok(()) };
        state.failed += 1;
        Err(((end * sector).max(offset) - offset, errno))
    }

    pub fn refuse(&self, refusals: Refusals) {
        self.lock().refusals = refusals;
    }

    /// Runs a request of this thread; `range` are its guest bytes, `zeroes` what it zeroes or drops.
    pub fn request<T>(
        &self,
        range: Option<(u64, u64)>,
        zeroes: Option<(u64, u64)>,
        run: impl FnOnce() -> T,
    ) -> T {
        let number = zeroes.map(|(from, to)| {
            let mut state = self.lock();
            let (at, stamp) = (state.log.len(), next_stamp());
            state.zeroed.push(Zeroed { at, from, to, end: usize::MAX, stamps: (stamp, u64::MAX) });
            state.zeroed.len() - 1
        });
        let answer = as_request(range, run);
        if let Some(number) = number {
            let mut state = self.lock();
            state.zeroed[number].end = state.log.len();
            state.zeroed[number].stamps.1 = next_stamp();
        }
        answer
    }

    pub fn zeroed(&self) -> Vec<Zeroed> {
        self.lock().zeroed.clone()
    }

    /// All that was acknowledged of guest bytes `[from, to)` is durable.
    pub fn kept(&self, from: u64, to: u64) {
        self.lock().kept.push(Kept { stamp: next_stamp(), from, to });
    }

    pub fn all_kept(&self) -> Vec<Kept> {
        self.lock().kept.clone()
    }

    /// The guest data of the image is on `data_file`: their traces are judged together.
    pub fn set_data_file(&self, data_file: Arc<Recorder>) {
        self.lock().data_file = Some(data_file);
    }

    pub fn data_file(&self) -> Option<Arc<Recorder>> {
        self.lock().data_file.clone()
    }

    /// Events so far, those of the data file too.
    pub fn events(&self) -> usize {
        self.log_length() + self.data_file().map_or(0, |d| d.log_length())
    }

    /// Holes below this many guest bytes show a backing disk.
    pub fn set_backing(&self, bytes: u64) {
        self.lock().backing_end = bytes;
    }

    pub fn backing_end(&self) -> u64 {
        self.lock().backing_end
    }

    /// The trace is about a change of the backing file's name.
    pub fn change_names(&self) {
        self.lock().names_may_change = true;
    }

    /// The trace has a change of settings.
    pub fn amend(&self) {
        let mut state = self.lock();
        (state.amended, state.names_may_change) = (true, true);
    }

    pub fn is_amended(&self) -> bool {
        self.lock().amended
    }

    pub fn names_may_change(&self) -> bool {
        self.lock().names_may_change
    }

    /// More than one thread has changed something.
    pub fn has_threads(&self) -> bool {
        self.lock().threads
    }

    /// Checks the rules and the ownership of every event so far. `QCOW2_TEST_RULES=0` is for tests of the kit,
    /// which ask what the other levels see by themselves.
    pub fn judge(&self) -> Result<(), String> {
        static OFF: LazyLock<bool> =
            LazyLock::new(|| std::env::var("QCOW2_TEST_RULES").is_ok_and(|s| s == "0"));
        if *OFF {
            return Ok(());
        }
        let length = {
            let state = self.lock();
            if state.unjudged.is_some() || state.judged == Some(state.log.len()) {
                return Ok(());
            }
            state.log.len()
        };
        let verdict = rules::check_trace(self);
        self.lock().judged = Some(length);
        verdict
    }

    /// Threads that run no request of their own work for one on `guest`.
    pub fn helpers_work_on(&self, guest: (u64, u64)) {
        self.lock().helped = Some(Request { guest: Some(guest), unchanging: true });
    }

    /// The trace is not judged, and `reason` says why the rules do not hold for it.
    pub fn leave_unjudged(&self, reason: &'static str) {
        assert!(reason.len() > 20, "a reason is a sentence");
        self.lock().unjudged = Some(reason);
    }

    /// Counts a call, parks it if asked, and fails it if its time has come.
    fn enter(&self, kind: Kind, purpose: Option<Purpose>) -> Result<MutexGuard<'_, State>, (i32, bool)> {
        let mut state = self.lock();
        state.calls += 1;
        state = self.park(state, kind, purpose, false);
        let Some(fault) = state.fault else { return Ok(state) };
        if fault.kind.is_some_and(|k| k != kind) {
            return Ok(state);
        }
        let number = state.seen;
        state.seen += 1;
        if number == fault.call || (fault.forever && number > fault.call) {
            state.failed += 1;
            return Err((fault.errno, fault.torn));
        }
        Ok(state)
    }

    fn refused(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // A test that fails already says why.
        if std::thread::panicking() {
            return;
        }
        if let Err(e) = self.judge() {
            panic!("the trace of this test breaks a rule: {e}");
        }
    }
}

impl State {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (at, end) = (offset as usize, offset as usize + bytes.len());
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
        self.held.extend(offset / crate::SECTOR..(end as u64).div_ceil(crate::SECTOR));
    }

    fn note(&mut self, what: What, purpose: Purpose, offset: u64, length: u64, bytes: Arc<[u8]>) {
        let me = std::thread::current().id();
        self.threads |= *self.writer.get_or_insert(me) != me;
        let (request, stamp) = (REQUEST.get().or(self.helped), next_stamp());
        self.log.push(Event { what, purpose, offset, length, bytes, request, stamp });
    }

    fn write(&mut self, purpose: Purpose, offset: u64, bytes: Vec<u8>) {
        self.put(offset, &bytes);
        let length = bytes.len() as u64;
        self.note(What::Write, purpose, offset, length, bytes.into());
    }
}
