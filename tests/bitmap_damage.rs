//! Bitmaps whose directory or tables lie, bitmaps of a handle that shows less than the disk, and a header that fails
//! while they change.

use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::bitmaps;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::Arc;
use testkit::bitmaps::{bitmaps as stored, directory, Bitmap};
use testkit::images::*;
use testkit::oracle::{be64, Head, OFFSET};

const SIZE: u64 = MIB;
const CLUSTER: u64 = 4096;
const EIO: i32 = 5;
const DROP: &[&str] = &["drop-damaged-bitmaps=on"];

fn open(storage: &Arc<dyn Storage>) -> Result<Handle> {
    open_over(storage, None, WRITABLE, &[])
}

/// An image with data, and enabled bitmaps of these names whose bits have a cluster.
fn tracked(names: &[&str]) -> Arc<Memory> {
    let memory = new_image(SIZE, &["cluster_size=4096"]);
    let handle = open(&(Arc::clone(&memory) as _)).unwrap();
    write(&handle, 0, &[1; 4 * CLUSTER as usize]);
    for name in names {
        bitmaps::add(&handle, name.as_bytes(), Some(512), true).unwrap();
    }
    write(&handle, 2 * CLUSTER, &[2; 512]);
    handle.close().unwrap();
    memory
}

fn one<'a>(list: &'a [Bitmap], name: &str) -> &'a Bitmap {
    list.iter().find(|bitmap| bitmap.name == name).unwrap_or_else(|| panic!("'{name}' is gone"))
}

/// Says in the directory, whose entry of "A" is the first one, that "A" is in use.
fn put_in_use(bytes: &mut [u8]) {
    let at = directory(bytes).unwrap().0 as usize + 15;
    bytes[at] |= 1;
}

/// Carries out the first write of sector 0 that is to fail, and none of those after it.
struct LastHeader {
    inner: Arc<Memory>,
    /// Writes of the header that are left; below 0: they fail.
    left: AtomicI64,
    /// From here on the host has nothing, and nobody may read bits there.
    hole: u64,
}

impl LastHeader {
    fn new(inner: &Arc<Memory>, hole: u64) -> LastHeader {
        LastHeader { inner: Arc::clone(inner), left: AtomicI64::new(i64::MAX), hole }
    }
}

impl Storage for LastHeader {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        assert!(purpose != Purpose::Bitmaps || offset < self.hole, "bits in a hole are read");
        self.inner.read(purpose, offset, buffers)
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if purpose == Purpose::Header && offset == 0 {
            let left = self.left.fetch_sub(1, SeqCst);
            if left <= 0 {
                if left == 0 {
                    self.inner.write(purpose, offset, buffers)?;
                }
                return Err(io::Error::from_raw_os_error(EIO));
            }
        }
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
        self.inner.write_zeroes(purpose, offset, length)
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.discard(offset, length)
    }
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.preallocate(offset, length)
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        match offset < self.hole {
            true => self.inner.host_run(offset),
            false => Ok(HostRun { data: false, end: self.inner.length()? }),
        }
    }
    fn traits(&self) -> Traits {
        self.inner.traits()
    }
}

/// A change of the bitmaps whose header is on the medium although its write failed: no write in place passes until the
/// header before is there again, or the medium's bitmaps are in use.
#[test]
fn no_write_passes_a_header_that_nobody_knows() {
    type Step = fn(&Handle) -> Result<()>;
    let add: Step = |handle| bitmaps::add(handle, b"new", Some(512), true);
    let enable: Step = |handle| bitmaps::set_enabled(handle, b"A", true);
    let cut: Step = |handle| resize(handle, SIZE / 2, Default::default());
    for (what, names, disabled, step) in [
        ("add", &[][..], false, add),
        ("add", &["A"], true, add),
        ("enable", &["A"], true, enable),
        ("cut", &["A"], false, cut),
    ] {
        for short_way in [false, true] {
            let image = tracked(names);
            let failing = Arc::new(LastHeader::new(&image, u64::MAX));
            let handle = open(&(Arc::clone(&failing) as _)).unwrap();
            if disabled {
                bitmaps::set_enabled(&handle, b"A", false).unwrap();
            }
            write(&handle, CLUSTER, &[3; 512]);
            failing.left.store(0, SeqCst);
            step(&handle).unwrap_err();
            let at = 3 * CLUSTER;
            let written = match short_way {
                true => handle.disk().overwrite(at, &[7; 512]).map(drop),
                false => handle.disk().write(at, &[IoSlice::new(&[7; 512])], false),
            };
            let bytes = image.contents();
            let believed = stored(&bytes).iter().any(|b| b.enabled && !b.in_use && !b.is_dirty(at));
            assert!(!(written.is_ok() && believed && has(&bytes, 3)), "{what} {names:?} {short_way}");
            // Once the header can be written again everything goes on.
            failing.left.store(i64::MAX, SeqCst);
            write(&handle, at, &[8; 512]);
            handle.close().unwrap();
            let list = stored(&image.contents());
            assert!(list.iter().all(|b| !b.enabled || b.in_use || b.is_dirty(at)), "{what} {names:?}");
        }
    }
}

/// Whether the guest's cluster has what a write here wrote.
fn has(bytes: &[u8], cluster: usize) -> bool {
    bytes[data_of(bytes, cluster) as usize] == 7
}

fn data_of(bytes: &[u8], cluster: usize) -> u64 {
    let head = Head::parse(bytes).unwrap();
    let l2 = be64(bytes, head.l1_offset as usize) & OFFSET;
    be64(bytes, l2 as usize + cluster * 8) & OFFSET
}

#[test]
fn what_another_bitmap_has_stays_when_one_that_is_not_believed_goes() {
    for recover in [false, true] {
        let mut bytes = tracked(&["A", "B"]).contents();
        let list = stored(&bytes);
        let (table, bits) = (one(&list, "A").table.0, one(&list, "B").entries[0]);
        put(&mut bytes, table as usize, &bits.to_be_bytes());
        put_in_use(&mut bytes);
        let image = memory(bytes);
        let handle = open(&image).unwrap();
        match recover {
            true => bitmaps::recover(&handle, b"A").unwrap(),
            false => bitmaps::remove(&handle, b"A").unwrap(),
        }
        write(&handle, SIZE / 2, &[5; SIZE as usize / 2]);
        handle.close().unwrap();
        let handle = open(&image).unwrap();
        assert!(read(&handle, SIZE / 2, SIZE / 2).iter().all(|byte| *byte == 5), "the guest's data is bits");
        handle.close().unwrap();
    }
}

#[test]
fn a_table_or_directory_that_the_guest_has_too_is_not_written() {
    let whole = tracked(&["A"]).contents();
    let places = [one(&stored(&whole), "A").table.0, directory(&whole).unwrap().0];
    for place in places {
        let mut bytes = whole.clone();
        let head = Head::parse(&bytes).unwrap();
        let l2 = be64(&bytes, head.l1_offset as usize) & OFFSET;
        put(&mut bytes, l2 as usize + 100 * 8, &place.to_be_bytes());
        let block = be64(&bytes, head.table_offset as usize) & OFFSET;
        put(&mut bytes, block as usize + (place / CLUSTER) as usize * 2, &2u16.to_be_bytes());
        let image = memory(bytes);
        let error = open(&image).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("{place:#x}")), "{error}");
        let handle = open_over(&image, None, WRITABLE, DROP).unwrap();
        let before = read(&handle, 100 * CLUSTER, CLUSTER);
        write(&handle, 0, &[9; 512]);
        assert!(read(&handle, 100 * CLUSTER, CLUSTER) == before);
        handle.close().unwrap();
    }
}

/// The disk is smaller, or larger, than the snapshot that a handle shows.
#[test]
fn a_handle_on_a_snapshot_copies_bitmaps_of_the_disk() {
    for size in [SIZE / 2, 2 * SIZE] {
        let image = new_image(SIZE, &["cluster_size=512"]);
        let handle = open(&(Arc::clone(&image) as _)).unwrap();
        snapshot::create(&handle, &testkit::setup::snapshot_named(b"s")).unwrap();
        resize(&handle, size, Default::default()).unwrap();
        bitmaps::add(&handle, b"A", Some(512), true).unwrap();
        write(&handle, size - CLUSTER, &[3; 512]);
        handle.close().unwrap();
        let shown = open_over(&(image as _), None, READ_ONLY, &["snapshot.name=s"]).unwrap();
        let target = new_image(size, &["cluster_size=4096"]);
        let target = open(&(target as _)).unwrap();
        bitmaps::copy(&target, &shown, b"A").unwrap();
        let range = bitmaps::next_dirty(&target, b"A", 0).unwrap();
        assert_eq!(range, Some((size - CLUSTER, size - CLUSTER + 512)));
    }
}

#[test]
fn bitmaps_that_come_after_damaged_ones_were_dropped_stay() {
    let mut bytes = tracked(&["A"]).contents();
    let table = one(&stored(&bytes), "A").table.0;
    put(&mut bytes, table as usize, &0x50001_u64.to_be_bytes());
    let image = memory(bytes);
    assert!(open(&image).is_err());
    let handle = open_over(&image, None, WRITABLE, DROP).unwrap();
    bitmaps::add(&handle, b"B", Some(512), true).unwrap();
    let names = |handle: &Handle| -> Vec<Vec<u8>> {
        bitmaps::list(handle).unwrap().into_iter().map(|status| status.name).collect()
    };
    assert_eq!(names(&handle), [b"B"]);
    write(&handle, 0, &[4; 512]);
    handle.close().unwrap();
    let handle = open(&image).unwrap();
    assert_eq!(names(&handle), [b"B"]);
    assert_eq!(bitmaps::next_dirty(&handle, b"B", 0).unwrap(), Some((0, 512)));
    handle.close().unwrap();
}

/// Another handle clears a bitmap and the guest gets the place of its bits: a reader tells what was there at first.
#[test]
fn a_reader_tells_of_the_moment_of_its_first_look() {
    let image: Arc<dyn Storage> = tracked(&["A", "B"]);
    let reader = open_over(&image, None, READ_ONLY, &[]).unwrap();
    let wanted = Some((2 * CLUSTER, 2 * CLUSTER + 512));
    assert_eq!(bitmaps::next_dirty(&reader, b"B", 0).unwrap(), wanted);
    let writer = open(&image).unwrap();
    bitmaps::clear(&writer, b"A").unwrap();
    write(&writer, SIZE / 2, &[0; SIZE as usize / 2]);
    writer.close().unwrap();
    assert_eq!(bitmaps::next_dirty(&reader, b"A", 0).unwrap(), wanted);
}

/// A small file may have tables of terabytes of bits.
#[test]
fn bits_where_the_host_has_nothing_are_not_read() {
    let mut bytes = tracked(&["A"]).contents();
    let (table, hole) = (one(&stored(&bytes), "A").table.0, bytes.len() as u64);
    put(&mut bytes, table as usize, &hole.to_be_bytes());
    bytes.resize(bytes.len() + CLUSTER as usize, 0);
    let image: Arc<dyn Storage> = Arc::new(LastHeader::new(&Arc::new(Memory::new(bytes)), hole));
    for flags in [READ_ONLY, WRITABLE] {
        let handle = open_over(&image, None, flags, &[]).unwrap();
        assert_eq!(bitmaps::list(&handle).unwrap()[0].dirty_bytes, 0);
        assert_eq!(bitmaps::next_dirty(&handle, b"A", 0).unwrap(), None);
    }
}
