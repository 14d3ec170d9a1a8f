//! An entry that names what it does not own gives nothing away (C28).

use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::snapshot::{NewSnapshot, SnapshotRef};
use qcow2::testing::ops::{amend, backing, resize, snapshot};
use qcow2::testing::options::Preallocation;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::Storage;
use std::io::IoSlice;
use std::sync::Arc;
use testkit::images::*;
use testkit::oracle::{be32, be64, Head, COMPRESSED, OFFSET};

const COPIED: u64 = 1 << 63;
const CLUSTER: u64 = 4 * KIB;
/// The guest cluster whose entry is damaged.
const VICTIM: u64 = 3;
/// The snapshot.
const NAMED: SnapshotRef<'static> = SnapshotRef { id: None, name: Some(b"s") };

fn taken() -> NewSnapshot {
    NewSnapshot {
        id: None,
        name: b"s".to_vec(),
        date_seconds: 0,
        date_nanoseconds: 0,
        guest_clock_nanoseconds: 0,
        icount: u64::MAX,
        vm_state_bytes: 0,
    }
}

/// What a damaged entry may name: offsets of one cluster each.
fn structures(image: &[u8]) -> Vec<(&'static str, u64)> {
    let head = Head::parse(image).unwrap();
    let l2 = be64(image, head.l1_offset as usize) & OFFSET;
    let other = be64(image, head.l1_offset as usize + 8) & OFFSET;
    let block = be64(image, head.table_offset as usize) & OFFSET;
    assert!(l2 != 0 && other != 0 && block != 0 && l2 != other);
    let mut all = vec![
        ("its own L2 table", l2),
        ("another L2 table", other),
        ("the L1 table", head.l1_offset),
        ("the refcount table", head.table_offset),
        ("a refcount block", block),
        ("the header", 0),
    ];
    if be32(image, 60) > 0 {
        all.push(("the snapshot table", be64(image, 64)));
        all.push(("the L1 table of a snapshot", be64(image, be64(image, 64) as usize)));
    }
    all
}

fn zero(handle: &Handle, offset: u64, length: u64, unmap: bool) -> Result<()> {
    handle.disk().write_zeroes(offset, length, ZeroFlags { unmap, no_fallback: false }, false)
}

fn write_at(handle: &Handle, offset: u64, length: u64) -> Result<()> {
    handle.disk().write(offset, &[IoSlice::new(&vec![7; length as usize])], false)
}

type Operation = (&'static str, fn(&Handle) -> Result<()>);

/// Whatever lets go of the victim.
const OPERATIONS: [Operation; 9] = [
    ("discard", |h| h.disk().discard(VICTIM * CLUSTER, CLUSTER)),
    ("discard of all", |h| h.disk().discard(0, h.disk().length())),
    ("zeroes that unmap", |h| zero(h, VICTIM * CLUSTER, CLUSTER, true)),
    ("overwrite", |h| write_at(h, VICTIM * CLUSTER, CLUSTER)),
    ("overwrite of a part", |h| write_at(h, VICTIM * CLUSTER + 512, 512)),
    ("shrink", |h| resize::resize(h, CLUSTER, Preallocation::Off)),
    ("delete", |h| snapshot::delete(h, NAMED)),
    ("apply", |h| snapshot::apply(h, NAMED)),
    ("make empty", backing::make_empty),
];

/// Two L2 tables in use; with a snapshot, whose first table is then shared no more.
fn image(with_snapshot: bool) -> Vec<u8> {
    let memory = new_image(4 * MIB, &["cluster_size=4k"]);
    let storage: Arc<dyn Storage> = memory.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    write(&handle, 0, &pattern(8 * CLUSTER, 1));
    write(&handle, 3 * MIB, &pattern(2 * CLUSTER, 2));
    if with_snapshot {
        snapshot::create(&handle, &taken()).unwrap();
        write(&handle, 0, &pattern(CLUSTER, 3));
    }
    handle.close().unwrap();
    memory.contents()
}

/// The table that holds the victim's entry: of the disk, or of the snapshot.
fn victims_entry(image: &[u8], of_snapshot: bool) -> usize {
    let l1 = match of_snapshot {
        true => be64(image, be64(image, 64) as usize),
        false => Head::parse(image).unwrap().l1_offset,
    };
    (be64(image, l1 as usize) & OFFSET) as usize + VICTIM as usize * 8
}

/// Nothing but the header's corrupt bit differs from `before` in the structures.
fn assert_kept(before: &[u8], after: &[u8], what: &str) {
    let mut marked = before.to_vec();
    marked[79] |= 2;
    for (name, offset) in structures(before) {
        let (from, to) = (offset as usize, (offset + CLUSTER) as usize);
        if name == "the header" {
            assert_eq!(after[72..80], marked[72..80], "{what}: the image is not marked corrupt");
            assert_eq!(after[..72], before[..72], "{what}: the header has changed");
        }
        let gone = after.len() < to || after[from..to].iter().all(|b| *b == 0);
        assert!(!gone || before[from..to].iter().all(|b| *b == 0), "{what}: {name} is gone");
        let head = Head::parse(before).unwrap();
        let (was, is) = (head.count(before, offset / CLUSTER), head.count(after, offset / CLUSTER));
        assert!(is >= was, "{what}: the count of {name} fell from {was} to {is}");
    }
}

#[test]
fn corruption_an_entry_gives_away_only_what_it_owns() {
    let mut refused = 0;
    for (with_snapshot, compressed) in [(false, false), (false, true), (true, false), (true, true)] {
        let whole = image(with_snapshot);
        for (name, target) in structures(&whole) {
            // A standard entry of offset 0 is a hole.
            if target == 0 && !compressed {
                continue;
            }
            for (operation, run) in OPERATIONS {
                let of_snapshot = operation == "delete";
                if !with_snapshot && (of_snapshot || operation == "apply") {
                    continue;
                }
                let what = format!("{operation}, an entry names {name}, compressed: {compressed}");
                let mut bytes = whole.clone();
                let entry = if compressed { COMPRESSED | target } else { COPIED | target };
                let at = victims_entry(&bytes, of_snapshot);
                put(&mut bytes, at, &entry.to_be_bytes());
                let memory = Arc::new(Memory::new(bytes.clone()));
                let storage: Arc<dyn Storage> = memory.clone();
                let handle = open_over(&storage, None, WRITABLE, &["discard=unmap"]).unwrap();
                let done = run(&handle);
                let closed = handle.close();
                let Err(e) = done else { panic!("{what}: it succeeds") };
                // A compressed stream that is none is found when it is read.
                if operation == "overwrite of a part" && compressed && e.kind() != ErrorKind::MarkedCorrupt {
                    continue;
                }
                assert_eq!(e.kind(), ErrorKind::MarkedCorrupt, "{what}: {e}");
                assert!(closed.is_err(), "{what}: closed as if nothing had happened");
                assert_kept(&bytes, &memory.contents(), &what);
                refused += 1;
            }
        }
    }
    assert!(refused > 100, "only {refused}");
}

/// What the base holds is let go of when zeroes are committed.
#[test]
fn corruption_commit_and_amend_give_away_only_what_is_owned() {
    let whole = image(false);
    for (name, target) in structures(&whole) {
        let mut bytes = whole.clone();
        let at = victims_entry(&bytes, false);
        put(&mut bytes, at, &(COMPRESSED | target).to_be_bytes());
        let base = Arc::new(Memory::new(bytes.clone()));
        let below: Arc<dyn Storage> = base.clone();
        let top: Arc<dyn Storage> =
            new_image(4 * MIB, &["cluster_size=4k", "backing_file=base", "backing_fmt=qcow2"]);
        let handle = open_over(&top, Some(&below), WRITABLE, &[]).unwrap();
        write_at(&handle, VICTIM * CLUSTER, CLUSTER).unwrap();
        let Err(e) = commit(&handle, false, None, &mut |_, _| true) else { panic!("{name}: committed") };
        assert_eq!(e.kind(), ErrorKind::MarkedCorrupt, "{name}: {e}");
        assert_kept(&bytes, &base.contents(), name);
    }
    // A zero entry that has a cluster: amending to version 2 lets go of it.
    for (name, target) in structures(&whole).into_iter().filter(|(_, target)| *target != 0) {
        let mut bytes = whole.clone();
        let at = victims_entry(&bytes, false);
        put(&mut bytes, at, &(COPIED | target | 1).to_be_bytes());
        let memory = Arc::new(Memory::new(bytes.clone()));
        let storage: Arc<dyn Storage> = memory.clone();
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        let Err(e) = amend::amend(&handle, &["compat=0.10"], &mut |_, _| true) else {
            panic!("{name}: amended")
        };
        assert_eq!(e.kind(), ErrorKind::MarkedCorrupt, "{name}: {e}");
        assert_kept(&bytes, &memory.contents(), name);
    }
    // A refcount table that names another structure as a block: another width lets go of the old blocks.
    for (name, target) in structures(&whole) {
        let head = Head::parse(&whole).unwrap();
        let mut bytes = whole.clone();
        // The second entry: nothing that far is counted.
        put(&mut bytes, head.table_offset as usize + 8, &target.max(CLUSTER).to_be_bytes());
        if target == 0 || name == "a refcount block" {
            continue;
        }
        let memory = Arc::new(Memory::new(bytes.clone()));
        let storage: Arc<dyn Storage> = memory.clone();
        let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
        let Err(e) = amend::amend(&handle, &["refcount_bits=32"], &mut |_, _| true) else {
            panic!("{name}: amended")
        };
        assert_eq!(e.kind(), ErrorKind::MarkedCorrupt, "{name}: {e}");
        assert_kept(&bytes, &memory.contents(), name);
    }
}
