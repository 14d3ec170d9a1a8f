//! Memory that grows with what the file holds and not with what it names (C28): hostile images and huge ones, each in a
//! process with 256 MiB of address space.

use qcow2::testing::error::Result;
use qcow2::testing::ops::backing::make_empty;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::snapshot::{NewSnapshot, SnapshotRef};
use qcow2::testing::ops::{amend, commit, resize, snapshot};
use qcow2::testing::options::Preallocation;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use testkit::images::*;
use testkit::oracle::{be64, Head, OFFSET};

const CLUSTER: u64 = 64 * KIB;
const COPIED: u64 = 1 << 63;

fn taken(name: &[u8]) -> NewSnapshot {
    NewSnapshot {
        id: None,
        name: name.to_vec(),
        date_seconds: 0,
        date_nanoseconds: 0,
        guest_clock_nanoseconds: 0,
        icount: u64::MAX,
        vm_state_bytes: 0,
    }
}

fn shrink(handle: &Handle) -> Result<()> {
    resize::resize(handle, MIB, Preallocation::Off)
}

fn grow(handle: &Handle) -> Result<()> {
    resize::resize(handle, handle.disk().length() + MIB, Preallocation::Off)
}

fn amended(handle: &Handle, word: &str) -> Result<()> {
    amend::amend(handle, &[word], &mut |_, _| true)
}

fn snapshots(handle: &Handle) -> Result<()> {
    let wanted = SnapshotRef { id: None, name: Some(b"s") };
    snapshot::create(handle, &taken(b"s"))?;
    snapshot::apply(handle, wanted)?;
    snapshot::delete(handle, wanted)
}

type Operation = (&'static str, fn(&Handle) -> Result<()>);

const OPERATIONS: [Operation; 8] = [
    ("make_empty", make_empty),
    ("shrink", shrink),
    ("grow", grow),
    ("discard", |h| h.disk().discard(0, h.disk().length())),
    ("downgrade", |h| amended(h, "compat=0.10")),
    ("wider counts", |h| amended(h, "refcount_bits=64")),
    ("narrower counts", |h| amended(h, "refcount_bits=1")),
    ("snapshots", snapshots),
];

/// An image of 1,024 L1 entries that all name one L2 table, whose entries all name one cluster, zero flag and all;
/// with `past_end`, all of them but the first are past the end of the disk: VM state.
fn aliasing(past_end: bool) -> Vec<u8> {
    let memory = new_image(1024 * 512 * MIB, &[]);
    let storage: Arc<dyn Storage> = memory.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    write(&handle, 0, &pattern(CLUSTER, 1));
    handle.close().unwrap();
    let mut image = memory.contents();
    let l1 = Head::parse(&image).unwrap().l1_offset as usize;
    let table = be64(&image, l1);
    let entry = be64(&image, (table & OFFSET) as usize) | 1;
    for index in 0..1024 {
        put(&mut image, l1 + index * 8, &table.to_be_bytes());
    }
    for index in 0..CLUSTER as usize / 8 {
        put(&mut image, (table & OFFSET) as usize + index * 8, &entry.to_be_bytes());
    }
    if past_end {
        put(&mut image, 24, &(512 * MIB).to_be_bytes());
    }
    image
}

#[test]
fn bounded_entries_that_alias_cost_no_memory() {
    if !in_bounded_process("bounded::bounded_entries_that_alias_cost_no_memory") {
        return;
    }
    for past_end in [false, true] {
        let image = aliasing(past_end);
        assert!(image.len() < 1 << 20);
        for (name, run) in OPERATIONS {
            let storage = small_host(image.clone());
            let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
            // Refused or not: the process goes on.
            let done = run(&handle);
            assert!(name != "make_empty" || done.is_ok(), "{name}: {done:?}");
            let _ = handle.close();
        }
    }
    // The overlay of a hostile base, and a hostile overlay.
    let base = memory(aliasing(false));
    let top: Arc<dyn Storage> =
        new_image(1024 * 512 * MIB, &["backing_file=base", "backing_fmt=qcow2", "cluster_size=2M"]);
    let handle = open_over(&top, Some(&base), WRITABLE, &[]).unwrap();
    write(&handle, 0, &pattern(CLUSTER, 2));
    let _ = commit::commit(&handle, false, None, &mut |_, _| true);
    let _ = handle.close();
}

/// Version 2, with snapshots whose L1 tables are as long as they may be.
#[test]
fn bounded_snapshots_are_looked_at_one_by_one() {
    if !in_bounded_process("bounded::bounded_snapshots_are_looked_at_one_by_one") {
        return;
    }
    let memory = new_image(MIB, &["compat=0.10"]);
    let storage: Arc<dyn Storage> = memory.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    for number in 0..20u8 {
        snapshot::create(&handle, &taken(&[b'a' + number])).unwrap();
    }
    handle.close().unwrap();
    let mut image = memory.contents();
    let table = be64(&image, 64) as usize;
    let end = image.len().next_multiple_of(CLUSTER as usize);
    let (_, bytes) = testkit::oracle::snapshots(&image);
    // All entries have the same length: names of one letter, IDs of one digit or two.
    let mut at = table;
    while at < table + bytes as usize {
        put(&mut image, at, &(end as u64).to_be_bytes());
        put(&mut image, at + 8, &(4u32 << 20).to_be_bytes());
        let names = usize::from(image[at + 13]) + usize::from(image[at + 15]);
        let extra = usize::from(image[at + 39]);
        at = (at + 40 + extra + names).next_multiple_of(8);
    }
    image.resize(end + (32 << 20), 0);
    for word in ["compat=1.1", "refcount_bits=16"] {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new(image.clone()));
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        amended(&handle, word).unwrap();
        snapshot::delete(&handle, SnapshotRef { id: None, name: Some(b"b") }).unwrap();
        handle.close().unwrap();
    }
}

/// A disk whose first half TiB is in use, no two clusters neighbours. What would be large is worked out when it is read, and
/// writes there are forgotten.
struct Terabyte(Memory);

const TABLES: u64 = 1024;
/// Host clusters where the L2 tables, the refcount blocks, and the data begin.
const FIRST_TABLE: u64 = 40_000;
const FIRST_BLOCK: u64 = 60_000;
const FIRST_DATA: u64 = 1 << 20;
const BLOCKS: u64 = 1100;

impl Terabyte {
    fn open(options: &[&str]) -> Handle {
        let memory = new_image(TIB, &[]);
        let head = Head::parse(&memory.contents()).unwrap();
        let put = |at: u64, value: u64| {
            memory.write(Purpose::L1, at, &[IoSlice::new(&value.to_be_bytes())]).unwrap();
        };
        for index in 0..TABLES {
            put(head.l1_offset + index * 8, ((FIRST_TABLE + index) * CLUSTER) | COPIED);
        }
        for index in 1..BLOCKS {
            put(head.table_offset + index * 8, (FIRST_BLOCK + index) * CLUSTER);
        }
        let storage: Arc<dyn Storage> = Arc::new(Terabyte(Memory::new(memory.contents())));
        open_over(&storage, None, WRITABLE, options).unwrap()
    }

    fn word(at: u64) -> u64 {
        let (cluster, slot) = (at / CLUSTER, at % CLUSTER / 8);
        match cluster {
            FIRST_TABLE.. if cluster < FIRST_TABLE + TABLES => {
                let guest = (cluster - FIRST_TABLE) * (CLUSTER / 8) + slot;
                ((FIRST_DATA + guest * 2) * CLUSTER) | COPIED
            }
            FIRST_BLOCK.. if cluster < FIRST_BLOCK + BLOCKS => 0x0001_0001_0001_0001,
            _ => 0,
        }
    }
}

impl Storage for Terabyte {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        if offset < FIRST_TABLE * CLUSTER {
            return self.0.read(purpose, offset, buffers);
        }
        assert_eq!(offset % 8, 0);
        let mut at = offset;
        for word in buffers.iter_mut().flat_map(|b| b.chunks_exact_mut(8)) {
            word.copy_from_slice(&Self::word(at).to_be_bytes());
            at += 8;
        }
        Ok(())
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        match offset < FIRST_TABLE * CLUSTER {
            true => self.0.write(purpose, offset, buffers),
            false => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok((FIRST_DATA + TABLES * (CLUSTER / 8) * 2) * CLUSTER)
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn host_run(&self, _: u64) -> io::Result<HostRun> {
        Ok(HostRun { data: true, end: self.length()? })
    }

    fn traits(&self) -> Traits {
        self.0.traits()
    }
}

#[test]
fn bounded_half_a_terabyte_is_let_go_of_in_pieces() {
    if !in_bounded_process("bounded::bounded_half_a_terabyte_is_let_go_of_in_pieces") {
        return;
    }
    for (name, run) in [("make_empty", make_empty as fn(&Handle) -> Result<()>), ("shrink", shrink)] {
        let handle = Terabyte::open(&[]);
        if let Err(e) = run(&handle) {
            panic!("{name}: {e}");
        }
        handle.close().unwrap();
    }
    let handle = Terabyte::open(&[]);
    snapshot::create(&handle, &taken(b"s")).unwrap();
    handle.close().unwrap();
}
