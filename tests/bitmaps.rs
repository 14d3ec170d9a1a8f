//! Dirty bitmaps whose clusters have a second owner, whose store fails, whose image changes hands, or that nobody has to
//! touch.

use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::bitmaps;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::inactive::{inactivate, invalidate};
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::Arc;
use testkit::bitmaps::{bitmaps as stored, directory, Bitmap};
use testkit::images::*;
use testkit::oracle::{be64, Head, OFFSET};
use testkit::rng::Rng;
use testkit::sweep::check_clean;

const SIZE: u64 = MIB;
const CLUSTER: u64 = 4096;

fn open(storage: &Arc<dyn Storage>) -> qcow2::testing::error::Result<Handle> {
    open_over(storage, None, WRITABLE, &[])
}

/// An image with data, an enabled bitmap "a" whose bits have a cluster, and a disabled one "off" that has one, too.
fn tracked() -> Arc<Memory> {
    let memory = new_image(SIZE, &["cluster_size=4096"]);
    let handle = open(&(Arc::clone(&memory) as _)).unwrap();
    write(&handle, 0, &[1; 4 * CLUSTER as usize]);
    for name in [b"a".as_slice(), b"off"] {
        bitmaps::add(&handle, name, Some(512), true).unwrap();
        write(&handle, 2 * CLUSTER, &[2; 512]);
    }
    bitmaps::set_enabled(&handle, b"off", false).unwrap();
    handle.close().unwrap();
    memory
}

fn one<'a>(list: &'a [Bitmap], name: &str) -> &'a Bitmap {
    list.iter().find(|bitmap| bitmap.name == name).unwrap_or_else(|| panic!("'{name}' is gone"))
}

/// Clusters that have an owner: what it is called, whether a load knows of it, and where it is.
fn owned(image: &[u8]) -> Vec<(&'static str, bool, u64)> {
    let head = Head::parse(image).unwrap();
    let l2 = be64(image, head.l1_offset as usize) & OFFSET;
    let list = stored(image);
    vec![
        ("guest data", false, be64(image, l2 as usize) & OFFSET),
        ("L2 table", true, l2),
        ("L1 table", true, head.l1_offset),
        ("refcount table", true, head.table_offset),
        ("refcount block", true, be64(image, head.table_offset as usize) & OFFSET),
        ("bitmap directory", true, directory(image).unwrap().0),
        ("bits of another bitmap", true, one(&list, "off").entries[0]),
        ("its own table", true, one(&list, "a").table.0),
    ]
}

/// As `tracked`, with the first entry of "a" led to another cluster.
fn with_two_owners(owner: u64) -> Vec<u8> {
    let mut bytes = tracked().contents();
    let table = one(&stored(&bytes), "a").table.0;
    put(&mut bytes, table as usize, &owner.to_be_bytes());
    bytes
}

#[test]
fn a_cluster_with_two_owners_is_named_by_a_check_and_refused_by_a_load() {
    for (what, known, offset) in owned(&tracked().contents()) {
        let image = memory(with_two_owners(offset));
        let (report, texts) = checked(&*image, LOOK);
        assert!(report.corruptions > 0, "{what}");
        let wanted =
            format!("ERROR bitmap table of 'a' entry 0: value {offset:#x}: a cluster that nothing else has");
        assert!(texts.iter().any(|text| text.starts_with(&wanted)), "{what}: {texts:?}");
        let opened = open(&image);
        if !known {
            opened.unwrap().close().unwrap();
            continue;
        }
        let error = opened.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        // Of two bitmaps, either may be the one that is named.
        let told = error.to_string();
        assert!(told.contains("entry 0: value") && told.contains(&format!("{offset:#x}")), "{what}: {told}");
        let dropped = open_over(&image, None, WRITABLE, &["drop-damaged-bitmaps=on"]).unwrap();
        write(&dropped, 0, &[9; 512]);
        assert_eq!(read(&dropped, 2 * CLUSTER, 512), [2; 512], "{what}");
        dropped.close().unwrap();
    }
}

/// The stock tool and we count another reference: from then on bits are stored elsewhere, and the data stays.
#[test]
fn bits_move_away_from_a_cluster_that_a_repair_has_counted_twice() {
    let data = owned(&tracked().contents())[0].2;
    let image = memory(with_two_owners(data));
    checked(&*image, REPAIR);
    let handle = open(&image).unwrap();
    write(&handle, 3 * CLUSTER, &[7; 512]);
    handle.close().unwrap();
    let handle = open(&image).unwrap();
    assert_eq!(read(&handle, 0, CLUSTER), [1; CLUSTER as usize]);
    handle.close().unwrap();
    // That its one owner may write in place is a flag that the repair took away.
    let texts = checked(&*image, LOOK).1;
    assert!(texts.iter().all(|text| text.contains("OFLAG_COPIED")), "{texts:?}");
}

/// Fails calls for bitmaps: the one with this number, or it and all after it.
struct Failing {
    inner: Arc<Memory>,
    left: AtomicI64,
    forever: bool,
}

impl Failing {
    fn new(inner: &Arc<Memory>, forever: bool) -> Arc<Failing> {
        Arc::new(Failing { inner: Arc::clone(inner), left: AtomicI64::new(i64::MAX), forever })
    }

    fn call(&self, purpose: Purpose) -> io::Result<()> {
        if purpose != Purpose::Bitmaps {
            return Ok(());
        }
        match self.left.fetch_sub(1, SeqCst) {
            0 => Err(io::Error::from_raw_os_error(libc_eio())),
            left if left < 0 && self.forever => Err(io::Error::from_raw_os_error(libc_eio())),
            _ => Ok(()),
        }
    }

    /// Whether the call that was to fail has come.
    fn has_failed(&self) -> bool {
        self.left.swap(i64::MAX, SeqCst) < 0
    }
}

fn libc_eio() -> i32 {
    5
}

impl Storage for Failing {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.call(purpose)?;
        self.inner.read(purpose, offset, buffers)
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.call(purpose)?;
        self.inner.write(purpose, offset, buffers)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner.set_length(length)
    }
    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        self.call(purpose)?;
        self.inner.write_zeroes(purpose, offset, length)
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.discard(offset, length)
    }
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.preallocate(offset, length)
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.inner.host_run(offset)
    }
    fn traits(&self) -> Traits {
        self.inner.traits()
    }
}

/// Of what `tracked` and one more write have left: believed bitmaps have both, the disabled one is as it was.
fn assert_covered(image: &Memory, before: &[Bitmap], at: u64) {
    let list = stored(&image.contents());
    let a = one(&list, "a");
    assert!(a.in_use || a.is_dirty(at) && a.is_dirty(2 * CLUSTER), "believed without a change");
    let (off, was) = (one(&list, "off"), one(before, "off"));
    assert_eq!((off.in_use, &off.entries, off.granules()), (false, &was.entries, was.granules()));
    assert_eq!(check_clean(image).map(drop), Ok(()));
}

#[test]
fn a_close_whose_calls_for_bitmaps_fail_leaves_them_in_use() {
    for forever in [false, true] {
        let mut failures = 0;
        for call in 0.. {
            let image = tracked();
            let before = stored(&image.contents());
            let failing = Failing::new(&image, forever);
            let handle = open(&(Arc::clone(&failing) as _)).unwrap();
            write(&handle, 9 * CLUSTER, &[4; 512]);
            failing.left.store(call, SeqCst);
            let closed = handle.close();
            let failed = failing.has_failed();
            assert!(closed.is_ok() || failed, "{closed:?}");
            assert_covered(&image, &before, 9 * CLUSTER);
            let again = open(&(Arc::clone(&image) as _)).unwrap();
            assert_eq!(
                read(&again, 9 * CLUSTER, 512),
                [4; 512],
                "what the guest wrote went with the bitmaps"
            );
            assert!(closed.is_ok() || one(&stored(&image.contents()), "a").in_use);
            if !failed {
                break;
            }
            failures += 1;
        }
        assert!(failures >= 3, "only {failures} calls for bitmaps at a close");
    }
}

#[test]
fn a_hand_over_that_fails_leaves_no_old_bitmap_to_be_believed() {
    let mut failures = 0;
    for call in 0.. {
        let image = tracked();
        let before = stored(&image.contents());
        let failing = Failing::new(&image, false);
        let handle = open(&(Arc::clone(&failing) as _)).unwrap();
        write(&handle, 9 * CLUSTER, &[4; 512]);
        failing.left.store(call, SeqCst);
        let given = inactivate(&handle);
        let failed = failing.has_failed();
        assert_covered(&image, &before, 9 * CLUSTER);
        if let Err(e) = &given {
            assert!(failed, "{e}");
            failures += 1;
            // It is still here: nobody may believe anything, and the next time it goes.
            assert!(one(&stored(&image.contents()), "a").in_use);
            inactivate(&handle).unwrap();
        }
        assert!(!one(&stored(&image.contents()), "a").in_use);
        // The other side writes, and what comes back is its.
        let other = open(&(Arc::clone(&image) as _)).unwrap();
        write(&other, 20 * CLUSTER, &[5; 512]);
        other.close().unwrap();
        taken_back(&failing, &handle, call);
        let ranges = bitmaps::next_dirty(&handle, b"a", 10 * CLUSTER).unwrap();
        assert_eq!(ranges, Some((20 * CLUSTER, 20 * CLUSTER + 512)));
        handle.close().unwrap();
        assert_covered(&image, &before, 20 * CLUSTER);
        if !failed {
            break;
        }
    }
    assert!(failures >= 3, "only {failures} calls for bitmaps at a hand-over");
}

/// Takes the image back, with a call for bitmaps failing first.
fn taken_back(failing: &Failing, handle: &Handle, call: i64) {
    failing.left.store(call % 2, SeqCst);
    let taken = invalidate(handle, None, None);
    let failed = failing.has_failed();
    assert_eq!(taken.is_err(), failed, "{taken:?}");
    if failed {
        assert!(bitmaps::next_dirty(handle, b"a", 0).is_err(), "an inactive handle shows bitmaps");
        invalidate(handle, None, None).unwrap();
    }
}

#[test]
fn a_write_that_is_refused_leaves_every_byte() {
    let image = tracked();
    let before = image.contents();
    let handle = open(&(Arc::clone(&image) as _)).unwrap();
    let refused = handle.disk().write_compressed(0, &[IoSlice::new(&[9; CLUSTER as usize])], false);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Occupied);
    assert!(handle.disk().write(SIZE, &[IoSlice::new(&[9; 512])], false).is_err());
    assert!(image.contents() == before, "a refused write has changed the image");
    // Where it is not refused, it is marked.
    handle.disk().write_compressed(8 * CLUSTER, &[IoSlice::new(&[9; CLUSTER as usize])], false).unwrap();
    let range = bitmaps::next_dirty(&handle, b"a", 3 * CLUSTER).unwrap();
    assert_eq!(range, Some((8 * CLUSTER, 9 * CLUSTER)));
    handle.close().unwrap();
}

#[test]
fn bitmaps_that_nobody_has_to_touch_keep_every_byte() {
    let image = tracked();
    let handle = open(&(Arc::clone(&image) as _)).unwrap();
    bitmaps::set_enabled(&handle, b"a", false).unwrap();
    handle.close().unwrap();
    let before = image.contents();
    let parts = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let (offset, length, _) = directory(bytes).unwrap();
        let mut places = vec![(offset, length)];
        for bitmap in stored(bytes) {
            places.push((bitmap.table.0, bitmap.table.1 * 8));
            let bits = bitmap.entries.iter().filter(|entry| **entry & OFFSET != 0);
            places.extend(bits.map(|entry| (*entry, CLUSTER)));
        }
        places.into_iter().map(|(at, length)| bytes[at as usize..(at + length) as usize].to_vec()).collect()
    };
    // Opened and not written.
    let handle = open(&(Arc::clone(&image) as _)).unwrap();
    bitmaps::sync(&handle).unwrap();
    bitmaps::list(&handle).unwrap();
    handle.close().unwrap();
    assert!(image.contents() == before, "an open that writes nothing has changed the image");
    // Written: what a killed writer leaves, and then what a close leaves.
    let handle = open(&(Arc::clone(&image) as _)).unwrap();
    write(&handle, 0, &[8; 8 * CLUSTER as usize]);
    handle.disk().flush().unwrap();
    assert_eq!(parts(&image.contents()), parts(&before));
    handle.close().unwrap();
    assert_eq!(parts(&image.contents()), parts(&before));
}

/// Bits are about the disk, whatever a handle shows of it.
#[test]
fn a_handle_on_a_snapshot_tells_of_the_disk() {
    let image = tracked();
    let handle = open(&(Arc::clone(&image) as _)).unwrap();
    let taken = testkit::setup::snapshot_named(b"s");
    qcow2::testing::ops::snapshot::create(&handle, &taken).unwrap();
    qcow2::testing::ops::resize::resize(&handle, 2 * SIZE, Default::default()).unwrap();
    write(&handle, SIZE, &[3; 512]);
    handle.close().unwrap();
    let shown = open_over(&(image as _), None, READ_ONLY, &["snapshot.name=s"]).unwrap();
    assert_eq!(shown.disk().length(), SIZE);
    let range = bitmaps::next_dirty(&shown, b"a", 3 * CLUSTER).unwrap();
    assert_eq!(range, Some((SIZE, SIZE + 512)));
}

/// Short overwrites, which look at one granule for all bitmaps, whatever the granularities.
#[test]
fn overwrites_are_in_each_of_several_bitmaps() {
    for (seed, granularities) in
        (1..).zip([&[512, 2048, 8192][..], &[4096, 65536], &[65536, 131_072, 65536], &[512]])
    {
        let memory = new_image(SIZE, &["cluster_size=65536"]);
        let handle = open(&(memory as _)).unwrap();
        write(&handle, 0, &vec![1; SIZE as usize]);
        let names: Vec<String> = (0..granularities.len()).map(|n| format!("b{n}")).collect();
        for (name, granularity) in names.iter().zip(granularities) {
            bitmaps::add(&handle, name.as_bytes(), Some(*granularity), true).unwrap();
        }
        let mut rng = Rng::new(seed);
        let (mut fast, mut wanted) = (0, vec![vec![false; (SIZE / 512) as usize]; names.len()]);
        for _ in 0..400 {
            let bytes = vec![3; 1 + rng.below(9000) as usize];
            let at = rng.below(SIZE - bytes.len() as u64);
            let at = if rng.one_in(2) { at / 4096 * 4096 } else { at };
            match handle.disk().overwrite(at, &bytes).unwrap() {
                true => fast += 1,
                false => write(&handle, at, &bytes),
            }
            for (wanted, granularity) in wanted.iter_mut().zip(granularities) {
                let (from, to) = (at / granularity, (at + bytes.len() as u64).div_ceil(*granularity));
                wanted[(from * granularity / 512) as usize..(to * granularity / 512) as usize].fill(true);
            }
            for (name, wanted) in names.iter().zip(&wanted) {
                let (mut dirty, mut from) = (vec![false; wanted.len()], 0);
                while let Some((start, end)) = bitmaps::next_dirty(&handle, name.as_bytes(), from).unwrap() {
                    dirty[(start / 512) as usize..(end / 512) as usize].fill(true);
                    from = end;
                }
                assert!(dirty == *wanted, "{granularities:?}: '{name}' after {at}+{}", bytes.len());
            }
        }
        assert!(fast > 100, "only {fast} overwrites were of the short way");
        handle.close().unwrap();
    }
}
