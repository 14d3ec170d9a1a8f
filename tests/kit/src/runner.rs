//! Runs an operation list on a recorder and keeps, for every point of the log, what each sector may hold.

use crate::expect::Expect;
use crate::ops::Op;
use crate::recorder::{as_unchanging, Recorder};
use crate::setup::{self, Setup};
use crate::SECTOR;
use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::{Error, ErrorKind};
use qcow2::testing::image::{Image, StreamScope};
use qcow2::testing::ops::amend::amend;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::inactive::{inactivate, invalidate};
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot;
use qcow2::testing::ops::snapshot::{NewSnapshot, SnapshotRef};
use qcow2::testing::ops::stream::stream;
use qcow2::testing::options::Preallocation;
use std::sync::Arc;

/// From event count `first` on the medium may hold `expect`.
pub struct Stage {
    pub first: usize,
    pub expect: Expect,
}

/// See the module.
pub struct Runner {
    pub setup: Setup,
    pub recorder: Arc<Recorder>,
    pub handle: Option<Handle>,
    pub expect: Expect,
    pub stages: Vec<Stage>,
    next_tag: u32,
    /// An eager image leaks after this.
    pub killed: bool,
}

impl Runner {
    pub fn new(setup: &Setup) -> Result<Runner, String> {
        Self::on(setup, setup.recorder())
    }

    pub fn on(setup: &Setup, recorder: Arc<Recorder>) -> Result<Runner, String> {
        let handle = setup.open_recorded(&recorder).map_err(|e| format!("open: {e}"))?;
        let expect = Expect::new(setup);
        let stages = vec![Stage { first: 0, expect: expect.clone() }];
        let handle = Some(handle);
        Ok(Runner { setup: *setup, recorder, handle, expect, stages, next_tag: 1, killed: false })
    }

    /// Runs `op` as far as it fits the disk. `Ok(Some(e))`: it failed, and the expectations know.
    pub fn run(&mut self, op: Op) -> Result<Option<Error>, String> {
        let Some(op) = op.clipped(self.expect.size()) else { return Ok(None) };
        let Some(handle) = self.handle.take() else { return Ok(None) };
        let tag = self.next_tag;
        self.next_tag += 1;
        // The last steps of a change that failed may have come since.
        self.expect.has_size(handle.disk().length() / SECTOR);
        let before = self.recorder.events();
        let (range, zeroes) = touched_bytes(&op, self.expect.size());
        let name = self.expect.name_of(&op, tag);
        if matches!(op, Op::Apply { .. } | Op::Delete { .. }) && name.is_none() {
            self.handle = Some(handle);
            return Ok(None);
        }
        let saved = self.expect.clone();
        self.expect.begin(&op, tag);
        let running = self.expect.clone();
        let recorder = self.recorder.clone();
        if matches!(op, Op::Amend { .. }) {
            recorder.amend();
        }
        let run = || self.apply(handle, &op, name.as_deref(), tag);
        let answer = match op {
            // What the disk shows stays.
            Op::Stream { .. } => as_unchanging(|| recorder.request(range, zeroes, run)),
            _ => recorder.request(range, zeroes, run),
        };
        let after = self.recorder.events();
        if after > before {
            self.stages.push(Stage { first: before + 1, expect: running });
        }
        match answer {
            Ok(()) => self.note_success(&op, name.as_deref(), tag, after)?,
            Err(e) if refused(&op, &e) => {
                self.expect = saved;
                self.expect.refused();
                self.stages.push(Stage { first: after, expect: self.expect.clone() });
            }
            Err(e) => {
                let size = self.handle.as_ref().map(|h| h.disk().length() / SECTOR);
                self.expect.failed(&op, size);
                return Ok(Some(e));
            }
        }
        Ok(None)
    }

    fn note_success(&mut self, op: &Op, name: Option<&str>, tag: u32, after: usize) -> Result<(), String> {
        let range = match *op {
            Op::Discard { sector, count } => Some((sector, count)),
            Op::Kill => Some((0, self.expect.size())),
            _ => None,
        };
        let (first, tags) = match (range, &self.handle) {
            (Some((sector, count)), Some(handle)) => {
                match setup::read(handle, sector, count) {
                    Ok(tags) => (sector, tags),
                    // An injected fault: old and new value stay possible.
                    Err(_) if self.recorder.failures() > 0 => {
                        self.expect.forget_current();
                        return Ok(());
                    }
                    Err(e) => return Err(format!("reading back after {op:?}: {e}")),
                }
            }
            _ => (0, Vec::new()),
        };
        if let Some((from, to)) = self.expect.keeps(op) {
            self.recorder.kept(from, to);
        }
        let done = self.expect.complete(op, name, tag, &|s| tags[(s - first) as usize]);
        done.map_err(|e| format!("after {op:?}: {e}"))?;
        self.stages.push(Stage { first: after, expect: self.expect.clone() });
        Ok(())
    }

    fn apply(&mut self, handle: Handle, op: &Op, name: Option<&str>, tag: u32) -> Result<(), Error> {
        match *op {
            Op::Reopen => {
                handle.close()?;
                self.handle = Some(self.setup.open_recorded(&self.recorder)?);
                return Ok(());
            }
            Op::Kill => {
                drop(handle);
                self.killed = true;
                self.handle = Some(self.setup.open_recorded(&self.recorder)?);
                return Ok(());
            }
            _ => {}
        }
        let answer = match name {
            Some(name) => apply_snapshot(&handle, op, name),
            None => apply_plain(&handle, op, tag),
        };
        self.handle = Some(handle);
        answer
    }

    /// The disk reads as it must.
    pub fn check_live(&self) -> Result<(), String> {
        let Some(handle) = &self.handle else { return Ok(()) };
        let tags = setup::read_all(handle).map_err(|e| format!("reading all: {e}"))?;
        self.expect.check_live(&tags)
    }
}

/// Whether an operation has found that it cannot be done here, and has changed nothing.
fn refused(op: &Op, e: &Error) -> bool {
    match op {
        // Or the disk has been resized, and its last cluster is another one.
        Op::Compressed { .. } => {
            e.kind() == ErrorKind::Occupied || e.to_string().contains("a compressed write is whole clusters")
        }
        Op::Snapshot | Op::Apply { .. } => {
            let text = e.to_string();
            e.kind() == ErrorKind::Invalid && text.contains("refcount") || text.contains("dirty bitmaps")
        }
        Op::Resize { .. } => {
            let text = e.to_string();
            text.contains("v2 image which has snapshots") || text.contains("is inconsistent")
        }
        Op::Grow { .. } => {
            let text = e.to_string();
            text.contains("v2 image which has snapshots")
                || text.contains("used for shrinking")
                || text.contains("encrypted image needs version 3")
                || text.contains("is inconsistent")
        }
        Op::Amend { .. } => matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported),
        _ => false,
    }
}

fn apply_snapshot(handle: &Handle, op: &Op, name: &str) -> Result<(), Error> {
    let wanted = SnapshotRef { id: None, name: Some(name.as_bytes()) };
    match op {
        Op::Apply { .. } => snapshot::apply(handle, wanted),
        Op::Delete { .. } => snapshot::delete(handle, wanted),
        _ => {
            let state = setup::vm_state_of(name);
            if !state.is_empty() {
                qcow2::testing::ops::vm_state::write(handle, 0, &state)?;
            }
            let vm_state_bytes = state.len() as u64;
            snapshot::create(
                handle,
                &NewSnapshot {
                    id: None,
                    name: name.into(),
                    date_seconds: 1,
                    date_nanoseconds: 2,
                    guest_clock_nanoseconds: 3,
                    icount: 4,
                    vm_state_bytes,
                },
            )
        }
    }
}

/// First and one past the last guest byte of something.
pub type Bytes = Option<(u64, u64)>;

/// Guest bytes that an operation touches on a disk of `size` sectors, and those that it zeroes or drops.
pub fn touched_bytes(op: &Op, size: u64) -> (Bytes, Bytes) {
    let range = op.range().map(|(s, n)| (s * SECTOR, (s + n) * SECTOR));
    match *op {
        Op::Zero { .. } | Op::Discard { .. } => (range, range),
        Op::Resize { sectors } | Op::Grow { sectors, .. } => resized_bytes(size * SECTOR, sectors * SECTOR),
        Op::Apply { .. } => (Some((0, u64::MAX)), Some((0, u64::MAX))),
        Op::Stream { sector, count, .. } => (Some((sector * SECTOR, (sector + count) * SECTOR)), None),
        // VM state is written before.
        Op::Snapshot => (Some((size * SECTOR, u64::MAX)), None),
        _ => (range, None),
    }
}

/// As `touched_bytes`, for a change of the size: a disk that grows over its backing file writes zeroes.
pub fn resized_bytes(old: u64, new: u64) -> (Bytes, Bytes) {
    (Some((old.min(new), u64::MAX)), Some((new, u64::MAX)))
}

/// As `apply_plain`, as a request on `recorder`.
pub fn apply_recorded(recorder: &Recorder, handle: &Handle, op: &Op, tag: u32) -> Result<(), Error> {
    let (range, zeroes) = touched_bytes(op, handle.disk().length() / SECTOR);
    recorder.request(range, zeroes, || apply_plain(handle, op, tag))
}

/// Takes over what is below a range; nothing happens where nothing can be below.
pub fn take_over(handle: &Handle, sector: u64, count: u64, reads: bool) -> Result<(), Error> {
    let (offset, length) = (sector * SECTOR, count * SECTOR);
    match Image::find(handle.disk()) {
        Some(image) if reads => image.stream(offset, length, StreamScope::Read, &mut |_, _| true),
        _ => stream(handle, offset, length, 0, &mut |_, _| true),
    }
}

/// What two sides of a migration do, by one handle.
pub fn hand_over(handle: &Handle) -> Result<(), Error> {
    inactivate(handle)?;
    invalidate(handle, None, None)
}

/// An operation that needs no new handle.
pub fn apply_plain(handle: &Handle, op: &Op, tag: u32) -> Result<(), Error> {
    match *op {
        Op::Write { sector, count, fua } => setup::write(handle, sector, count, tag, fua),
        Op::Zero { sector, count, unmap, fua } => {
            let flags = ZeroFlags { unmap, no_fallback: false };
            handle.disk().write_zeroes(sector * SECTOR, count * SECTOR, flags, fua)
        }
        Op::Discard { sector, count } => handle.disk().discard(sector * SECTOR, count * SECTOR),
        Op::Flush => handle.disk().flush(),
        Op::Resize { sectors } => resize(handle, sectors * SECTOR, Preallocation::Off),
        Op::Grow { sectors, how } => resize(handle, sectors * SECTOR, how),
        Op::Amend { option } => amend(handle, &[option], &mut |_, _| true),
        Op::Compressed { sector, count } => setup::write_compressed(handle, sector, count, tag),
        Op::HandOver => hand_over(handle),
        Op::Stream { sector, count, reads } => take_over(handle, sector, count, reads),
        Op::Bitmaps { op } => op.run(handle, tag),
        // They need names and a new handle.
        Op::Reopen | Op::Kill | Op::Snapshot | Op::Apply { .. } | Op::Delete { .. } => Ok(()),
    }
}
