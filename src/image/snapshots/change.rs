//! Creating, applying and deleting internal snapshots.
//!
//! The caller is alone; everything is on the medium before the first step, and the image is loaded anew after the
//! last one. In version 3 the dirty bit brackets the steps of create and delete (R6), so that a power cut between them
//! ends in a repair. Version 2 has no such bit: there a cut leaves leaks, or COPIED flags that do not fit the counts,
//! which costs space or a copy and no data: a flag is never set on a cluster that two tables refer to. A cut while applying leaves leaks.
//!
//! ```text
//! create   room for the L1 copy and the new table -> both written -> counts of the whole tree rise, durable
//!          -> COPIED flags of the active tree cleared -> header names the new table -> old table goes
//!          -> VM state whose size is told goes from the active table
//! apply    room for a new L1 table -> counts of the snapshot's tree rise, durable -> L1 table written
//!          -> header names it, with the size -> loaded anew -> counts of the old tree fall
//! delete   new table written, its counts durable -> header names it -> counts of the snapshot's tree fall, durable
//!          -> COPIED flags of the active tree set where a count has become one
//! ```

use super::super::qcow2::ExclusiveImage;
use super::super::unfinished::{Gone, Steps};
use super::super::Core;
use super::load_snapshots;
use super::walk::{Flags, L1Table, Walk};
use crate::alloc::{Allocator, Freed, Reserved};
use crate::error::{room, zeroed, Error, ErrorKind, Result};
use crate::format::entries::COPIED;
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::header::MAX_SNAPSHOTS;
use crate::format::snapshot::{Snapshot, MAX_TABLE_BYTES, REQUIRED_EXTRA_BYTES};
use crate::meta::guard::Owner;
use crate::meta::{Release, Settler};
use crate::storage::medium::Ticket;
use crate::storage::Purpose;

/// What a new snapshot is called and when it was taken.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// Unique; `None`: one more than the largest number in use.
    pub id: Option<Vec<u8>>,
    /// Need not be unique.
    pub name: Vec<u8>,
    /// Seconds since the epoch.
    pub date_seconds: u32,
    /// And nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest has run, nanoseconds.
    pub guest_clock_nanoseconds: u64,
    /// Instructions executed; `u64::MAX` for none.
    pub icount: u64,
    /// Bytes of VM state, as its entry says. With any, the image as it is has none afterwards.
    pub vm_state_bytes: u64,
}

/// Bytes of extra data that a new entry gets: VM state size, virtual size, icount.
const EXTRA_BYTES: u32 = REQUIRED_EXTRA_BYTES + 8;

impl ExclusiveImage<'_> {
    /// Takes a snapshot of the disk as it is.
    pub fn create_snapshot(&self, new: &NewSnapshot) -> Result<()> {
        let core = self.core();
        let alloc = core.structure_writer()?;
        self.settle()?;
        let (mut list, _) = load_snapshots(&**core.storage(), &core.header())?;
        if list.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("snapshot table: {} entries is the limit", MAX_SNAPSHOTS),
            ));
        }
        let header = core.header();
        let mut active = core.read_l1("of the image", header.l1_table_offset, header.l1_size)?;
        core.check_vm_state_room(new.vm_state_bytes)?;
        // All of it: VM state belongs to the snapshot, whether its size is told or not.
        let all = active.entries.len();
        let copy = active.copied(all, |_, entry| entry & !COPIED)?;
        let (l1_room, copy) = core.write_l1(alloc, copy)?;
        list.push(core.describe(new, &list, &copy)?);
        let (table_room, table_offset) = core.write_snapshots(alloc, &list)?;

        core.bracket()?;
        core.raise_tree(alloc, &active, all)?;
        // Counts and contents are durable before a flag goes or the header points to them (R1, R2, R5).
        let changed = core
            .make_durable(alloc)
            .and_then(|()| core.set_flags(&mut active, all, true, Flags::ClearOwned))
            .and_then(|()| core.replace_table(table_offset, list.len()));
        if let Err(e) = changed {
            core.lower_again(alloc, &active, all, u64::MAX);
            drop((l1_room, table_room));
            // Some flags may have gone. This may have to wait, the answer is known.
            let _ = self.complete(Steps::flags(&core));
            return Err(e);
        }
        keep([l1_room, table_room]);
        self.complete_later(Steps::settle(&core))?;
        if new.vm_state_bytes == 0 {
            return Ok(());
        }
        // The disk does not need it any more; keeping it would only have the next one copied.
        match self.drop_vm_state() {
            Err(e) if self.core().check_latch().is_err() => Err(e),
            _ => Ok(()),
        }
    }

    /// Makes the disk what it was when snapshot number `index` was taken, its size too.
    pub fn apply_snapshot(&self, index: usize) -> Result<()> {
        let core = self.core();
        core.begin_write()?;
        let alloc = core.structure_writer()?;
        self.settle()?;
        let (list, _) = load_snapshots(&**core.storage(), &core.header())?;
        let snapshot = entry_of(&list, index)?;
        let size = snapshot.virtual_size.unwrap_or(core.virtual_size);
        core.geometry.check_virtual_size(size)?;
        let least = core.geometry.l1_entries_for(size).max(1) as usize;
        let header = core.header();
        let old = core.read_l1("of the image", header.l1_table_offset, header.l1_size)?;
        core.check_tree(&old, Owner::ACTIVE_L1)?;
        let wanted = core.read_snapshot_l1(snapshot)?;
        let wanted = wanted.copied(wanted.entries.len().max(least), |_, entry| entry & !COPIED)?;
        let (room, mut wanted) = core.write_l1(alloc, wanted)?;

        let (all, offset) = (wanted.entries.len(), wanted.offset);
        core.raise_tree(alloc, &wanted, all)?;
        let changed = core
            .make_durable(alloc)
            .and_then(|()| core.set_flags(&mut wanted, all, false, Flags::Clear))
            .and_then(|()| {
                core.shared.header.change(|h| {
                    h.l1_table_offset = offset;
                    h.l1_size = all as u32;
                    h.virtual_size = size;
                })
            });
        if let Err(e) = changed {
            core.lower_again(alloc, &wanted, all, u64::MAX);
            return Err(e);
        }
        keep([room]);
        // The old tree only then: whoever reads the state before must find its clusters as they were.
        self.complete(Steps::lower(&core, Gone::tree(old)))?;
        // The disk is what it is to be; what has become free may wait for the next barrier.
        let _ = self.settle();
        Ok(())
    }

    /// Deletes snapshot number `index`.
    pub fn delete_snapshot(&self, index: usize) -> Result<()> {
        let core = self.core();
        let alloc = core.structure_writer()?;
        self.settle()?;
        let (mut list, _) = load_snapshots(&**core.storage(), &core.header())?;
        let gone = entry_of(&list, index)?.clone();
        let tree = core.read_snapshot_l1(&gone)?;
        core.check_tree(&tree, Owner::INACTIVE_L1)?;
        list.remove(index);
        let (table_room, table_offset) = core.write_snapshots(alloc, &list)?;

        core.bracket()?;
        core.make_durable(alloc)?;
        core.replace_table(table_offset, list.len())?;
        keep([table_room]);
        // What cannot be counted down leaks.
        let single = core.lower_tree(alloc, &tree, Owner::INACTIVE_L1).unwrap_or(true);
        self.complete_later(if single { Steps::flags(&core) } else { Steps::settle(&core) })
    }
}

pub(super) fn keep<const N: usize>(rooms: [Option<Reserved<'_>>; N]) {
    rooms.into_iter().flatten().for_each(Reserved::keep);
}

fn entry_of(list: &[Snapshot], index: usize) -> Result<&Snapshot> {
    list.get(index)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no snapshot number {index}")))
}

/// One more than the largest number that an ID starts with.
fn next_id(list: &[Snapshot]) -> Vec<u8> {
    let number = |id: &[u8]| {
        let digits = id.iter().take_while(|b| b.is_ascii_digit());
        digits.fold(0u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0')))
    };
    let largest = list.iter().map(|s| number(&s.id)).max().unwrap_or(0);
    largest.saturating_add(1).to_string().into_bytes()
}

impl Core {
    /// The allocator, for changes that leave the guest's contents as they are.
    pub(in crate::image) fn structure_writer(&self) -> Result<&Allocator> {
        let io = self.io()?;
        let Some(alloc) = &io.alloc else {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
        };
        self.check_writable()?;
        self.shared.header.clear_autoclear(AUTOCLEAR_BITMAPS)?;
        Ok(alloc)
    }

    /// Sets the dirty bit around the steps of one operation.
    fn bracket(&self) -> Result<()> {
        match self.geometry.version {
            2 => Ok(()),
            _ => self.shared.header.mark_dirty(),
        }
    }

    /// Counts, and everything written before, are durable when it returns.
    pub(in crate::image) fn make_durable(&self, alloc: &Allocator) -> Result<()> {
        alloc.write_counts()?;
        alloc.advance()
    }

    fn describe(&self, new: &NewSnapshot, list: &[Snapshot], l1: &L1Table) -> Result<Snapshot> {
        let id = new.id.clone().unwrap_or_else(|| next_id(list));
        if list.iter().any(|s| s.id == id) {
            let id = String::from_utf8_lossy(&id).into_owned();
            return Err(Error::invalid(format!("snapshot ID '{id}' is in use")));
        }
        for (what, bytes) in [("ID", &id), ("name", &new.name)] {
            if bytes.len() > usize::from(u16::MAX) {
                return Err(Error::invalid(format!(
                    "snapshot {what}: {} bytes, the limit is 65535",
                    bytes.len()
                )));
            }
        }
        Ok(Snapshot {
            l1_table_offset: l1.offset,
            l1_size: l1.entries.len() as u32,
            id,
            name: new.name.clone(),
            date_seconds: new.date_seconds,
            date_nanoseconds: new.date_nanoseconds,
            guest_clock_nanoseconds: new.guest_clock_nanoseconds,
            vm_state_bytes: new.vm_state_bytes,
            virtual_size: Some(self.virtual_size),
            icount: Some(new.icount),
            extra_bytes: EXTRA_BYTES,
            unknown_extra: Vec::new(),
        })
    }

    pub(super) fn read_snapshot_l1(&self, snapshot: &Snapshot) -> Result<L1Table> {
        let id = String::from_utf8_lossy(&snapshot.id);
        self.read_l1(&format!("of snapshot '{id}'"), snapshot.l1_table_offset, snapshot.l1_size)
    }

    /// Writes an L1 table that nothing points to yet.
    fn write_l1<'a>(
        &self,
        alloc: &'a Allocator,
        entries: Vec<u64>,
    ) -> Result<(Option<Reserved<'a>>, L1Table)> {
        let mut bytes = room("L1 table", entries.len() as u64 * 8)?;
        entries.iter().for_each(|e| bytes.extend_from_slice(&e.to_be_bytes()));
        let (room, offset) = self.write_unlinked(alloc, Purpose::L1, &bytes)?;
        Ok((room, L1Table { offset, entries }))
    }

    /// Writes a snapshot table that nothing points to yet.
    pub(super) fn write_snapshots<'a>(
        &self,
        alloc: &'a Allocator,
        list: &[Snapshot],
    ) -> Result<(Option<Reserved<'a>>, u64)> {
        let mut bytes = Vec::new();
        list.iter().for_each(|s| s.encode(self.virtual_size, &mut bytes));
        if bytes.len() as u64 > MAX_TABLE_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("snapshot table: {} bytes, the limit is {MAX_TABLE_BYTES}", bytes.len()),
            ));
        }
        self.write_unlinked(alloc, Purpose::Snapshots, &bytes)
    }

    fn write_unlinked<'a>(
        &self,
        alloc: &'a Allocator,
        purpose: Purpose,
        bytes: &[u8],
    ) -> Result<(Option<Reserved<'a>>, u64)> {
        if bytes.is_empty() {
            return Ok((None, 0));
        }
        let clusters = self.geometry.clusters_ceil(bytes.len() as u64);
        let room = alloc.reserve_contiguous(clusters)?;
        let offset = self.geometry.cluster_offset(room.first_cluster());
        let mut padded = zeroed("table", clusters << self.geometry.cluster_bits)?;
        padded[..bytes.len()].copy_from_slice(bytes);
        self.shared.medium.write_unlinked(purpose, offset, &padded)?;
        Ok((Some(room), offset))
    }

    /// Fails while nothing has changed when a tree that is going to be let go of breaks a rule, or refers to what is not
    /// its own; the L1 table itself holds `l1_owner`.
    fn check_tree(&self, tree: &L1Table, l1_owner: Owner) -> Result<()> {
        let clusters = self.geometry.clusters_ceil(tree.entries.len() as u64 * 8);
        if clusters > 0 {
            self.shared.guard.check_release(l1_owner, self.geometry.cluster_index(tree.offset), clusters)?;
        }
        self.walk(tree, 0..tree.entries.len(), Walk::Release, &mut |_| Ok(()))
    }

    /// Raises the counts of everything that the first `count` entries of a tree refer to, or of nothing.
    fn raise_tree(&self, alloc: &Allocator, tree: &L1Table, count: usize) -> Result<()> {
        let mut raised = 0;
        let done = self.walk(tree, 0..count, Walk::Raise, &mut |runs| {
            alloc.raise_all(runs)?;
            raised += 1;
            Ok(())
        });
        let Err(e) = done else { return Ok(()) };
        self.lower_again(alloc, tree, count, raised);
        // Nothing has changed: the image need not stay dirty.
        let _ = self.settle();
        Err(e)
    }

    /// Undoes the first `left` steps of `raise_tree`. What fails of this leaks.
    fn lower_again(&self, alloc: &Allocator, tree: &L1Table, count: usize, mut left: u64) {
        let _ = self.walk(tree, 0..count, Walk::Raise, &mut |runs| {
            if left > 0 {
                left -= 1;
                alloc.unraise(runs, 1)?;
            }
            Ok(())
        });
    }

    /// Brings the flags of the active tree to what the counts say, durable ones.
    pub(in crate::image) fn match_flags(&self) -> Result<()> {
        let alloc = match &self.io()?.alloc {
            Some(alloc) => alloc,
            None => return Ok(()),
        };
        self.make_durable(alloc)?;
        let header = self.header();
        let mut active = self.read_l1("of the image", header.l1_table_offset, header.l1_size)?;
        let all = active.entries.len();
        self.set_flags(&mut active, all, true, Flags::Match(alloc))
    }

    /// Lowers the counts of everything that a tree refers to, and of its L1 table, which holds `l1_owner`. `true`: a
    /// count became one.
    fn lower_tree(&self, alloc: &Allocator, tree: &L1Table, l1_owner: Owner) -> Result<bool> {
        let mut single = false;
        self.walk(tree, 0..tree.entries.len(), Walk::Release, &mut |runs| {
            single |= alloc.lower_all(runs, Freed::BySnapshot)?;
            Ok(())
        })?;
        self.let_go(alloc, l1_owner, tree.offset, tree.entries.len() as u64 * 8);
        Ok(single)
    }

    /// Has the clusters of a table freed that nothing durable refers to any more, and that hold `owner`.
    pub(in crate::image) fn let_go(&self, alloc: &Allocator, owner: Owner, offset: u64, bytes: u64) {
        let clusters = self.geometry.clusters_ceil(bytes);
        if offset != 0 && clusters != 0 {
            let release = Release::of(owner, self.geometry.cluster_index(offset), clusters);
            alloc.settle_after(Ticket::PAST, vec![release]);
        }
    }

    /// Has the header name a snapshot table that is written; the old one goes.
    pub(super) fn replace_table(&self, offset: u64, count: usize) -> Result<()> {
        let old = self.header();
        let (_, old_bytes) = load_snapshots(&**self.storage(), &old)?;
        let clusters = self.geometry.clusters_ceil(old_bytes);
        let first = self.geometry.cluster_index(old.snapshots_offset);
        self.shared.guard.check_release(Owner::SNAPSHOT_TABLE, first, clusters)?;
        self.shared.header.change(|h| {
            h.snapshots_offset = offset;
            h.snapshot_count = count as u32;
        })?;
        if let Some(alloc) = &self.io()?.alloc {
            self.let_go(alloc, Owner::SNAPSHOT_TABLE, old.snapshots_offset, old_bytes);
        }
        Ok(())
    }
}
