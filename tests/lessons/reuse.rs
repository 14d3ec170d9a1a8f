//! C17 to C19: what was linked already went back, what one image had in memory was shown by another, and a header of which
//! nobody knows whether it was written.

use qcow2::testing::disk::Disk;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::snapshot::{self, NewSnapshot, SnapshotRef};
use qcow2::testing::options::Preallocation;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use testkit::images::*;
use testkit::ops::Op::*;
use testkit::overlay::Overlay;
use testkit::recorder::{Fault, Full, Kind};
use testkit::runner::Runner;
use testkit::setup::{self, Setup};
use testkit::sweep::check_clean;
use testkit::SECTOR;

/// A grow with preallocation linked part of a run, could not read the next slice of the L2 table, and gave the whole run
/// back: clusters that were linked were handed out again, and two guest clusters showed the same bytes while all calls
/// succeeded. Here slices are shorter than their table; each read fails once; afterwards everything is written anew, each
/// sector with what names it, and read again.
#[test]
fn c17_what_is_linked_stays_when_the_rest_of_a_run_fails() {
    let write = |sector| Write { sector, count: 1, fua: false };
    for how in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        // Clusters of 4 KiB: an L2 table has 8 slices, of 64 entries, and four of them fit into the cache.
        let setup = Setup { cluster_bits: 12, tiny_cache: true, sectors: 300 * 8, ..Setup::default() };
        // Entries in the slices to come, so that these have to be read again.
        let before = [write(0), write(100 * 8), write(200 * 8), write(299 * 8), Flush];
        let mut failed = 0;
        for call in 0.. {
            let mut runner = Runner::new(&setup).unwrap();
            let recorder = runner.recorder.clone();
            before.iter().for_each(|op| assert!(runner.run(*op).unwrap().is_none()));
            let fault = Fault { kind: Some(Kind::Read), call, errno: libc::EIO, forever: false, torn: false };
            recorder.inject(Some(fault));
            let grown = runner.run(Grow { sectors: 500 * 8, how }).unwrap().is_none();
            let reached = recorder.failed() > 0;
            failed += u64::from(!grown);
            recorder.inject(None);
            assert!(grown || reached, "read {call}: fails without a fault");
            assert!(runner.run(Flush).unwrap().is_none(), "read {call}: a flush after the failure fails");
            let handle = runner.handle.take().unwrap();
            let sectors = handle.disk().length() / SECTOR;
            assert!([300 * 8, 500 * 8].contains(&sectors));
            for sector in (0..sectors).step_by(8) {
                setup::write(&handle, sector, 8, 0x1000 + sector as u32, false).unwrap();
            }
            for sector in (0..sectors).step_by(8) {
                let tags = setup::read(&handle, sector, 8).unwrap();
                assert_eq!(
                    tags,
                    [0x1000 + sector as u32; 8],
                    "read {call}: sector {sector} shows another's bytes"
                );
            }
            handle.close().unwrap();
            check_clean(&*recorder).unwrap();
            if !reached {
                break;
            }
        }
        assert!(failed > 3, "{how:?}: only {failed} grows failed");
    }
}

/// The L2 cache was a lock-free slot that could hand out the page of another image, which had got the address of one
/// that was freed. Overlay and base count their slices alike, so nothing else told them apart. Here two images with
/// different contents, and caches of two slices, are read by threads that make each other's pages go.
#[test]
fn c18_two_images_in_one_process_show_their_own_data() {
    const CLUSTERS: u64 = 4096;
    let make = |tag: u8| -> Handle {
        let memory = new_image(CLUSTERS * 512, &["cluster_size=512"]) as Arc<dyn Storage>;
        let handle = open_over(&memory, None, WRITABLE, &[]).unwrap();
        for cluster in (0..CLUSTERS).step_by(8) {
            let mut bytes = [tag; 8 * 512];
            for (number, part) in bytes.chunks_exact_mut(512).enumerate() {
                part[8..16].copy_from_slice(&(cluster + number as u64).to_be_bytes());
            }
            handle.disk().write(cluster * 512, &[IoSlice::new(&bytes)], false).unwrap();
        }
        handle.close().unwrap();
        let options = ["l2-cache-size=1k", "l2-cache-entry-size=512", "cache-clean-interval=0"];
        open_over(&memory, None, WRITABLE, &options).unwrap()
    };
    let images = [make(0x11), make(0x22)];
    let (reads, rounds) = (AtomicU64::new(0), 40_000);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (images, reads) = (&images, &reads);
            scope.spawn(move || {
                let mut place = thread * 977 + 1;
                for _ in 0..rounds {
                    place =
                        place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (image, cluster) = ((place >> 60) as usize & 1, (place >> 33) % CLUSTERS);
                    assert_shows(images[image].disk(), [0x11, 0x22][image], cluster);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(reads.into_inner(), 4 * rounds);
}

fn assert_shows(disk: &Disk, tag: u8, cluster: u64) {
    let mut bytes = [0; 512];
    disk.read(cluster * 512, &mut [std::io::IoSliceMut::new(&mut bytes)]).unwrap();
    assert_eq!(bytes[0], tag, "cluster {cluster} shows another image's data");
    assert_eq!(bytes[8..16], cluster.to_be_bytes(), "cluster {cluster} shows another cluster's data");
}

/// A host that says that the next write of the header failed, although it was carried out, and refuses those that come
/// then. Everything else it takes.
struct Undecided {
    image: Arc<Overlay>,
    /// Writes of the header since it began; `u64::MAX`: it has not.
    headers: AtomicU64,
}

impl Storage for Undecided {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.image.read(purpose, offset, buffers)
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if offset == 0 && self.headers.load(Ordering::SeqCst) != u64::MAX {
            if self.headers.fetch_add(1, Ordering::SeqCst) == 0 {
                self.image.write(purpose, offset, buffers)?;
            }
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.image.write(purpose, offset, buffers)
    }
    fn sync(&self) -> io::Result<()> {
        self.image.sync()
    }
    fn length(&self) -> io::Result<u64> {
        self.image.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.image.set_length(length)
    }
    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        self.image.write_zeroes(purpose, offset, length)
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.image.discard(offset, length)
    }
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.image.preallocate(offset, length)
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.image.host_run(offset)
    }
    fn traits(&self) -> Traits {
        self.image.traits()
    }
}

/// C19: an apply whose header is written although the host says that it failed takes back the counts that it has
/// raised. They go to the file by themselves where the cache of refcount blocks is small; a process that ended then left
/// a header with a tree whose clusters were counted for the snapshot alone, and no dirty bit.
#[test]
fn c19_no_count_is_lowered_in_the_file_while_its_header_is_undecided() {
    let setup = Setup { sectors: 2000, tiny_cache: true, refcount_order: 6, ..Setup::default() };
    let bytes = setup.create();
    let length = bytes.len() as u64;
    let image = Overlay::new(bytes.into(), Default::default(), length);
    let host = Arc::new(Undecided { image: image.clone(), headers: AtomicU64::new(u64::MAX) });
    let handle = setup.open(host.clone()).unwrap();
    setup::write(&handle, 0, 1000, 1, false).unwrap();
    let named = SnapshotRef { id: None, name: Some(b"s") };
    let new = NewSnapshot {
        id: None,
        name: b"s".to_vec(),
        date_seconds: 1,
        date_nanoseconds: 0,
        guest_clock_nanoseconds: 0,
        icount: u64::MAX,
        vm_state_bytes: 0,
    };
    snapshot::create(&handle, &new).unwrap();
    setup::write(&handle, 0, 1000, 2, false).unwrap();
    handle.disk().flush().unwrap();
    host.headers.store(0, Ordering::SeqCst);
    assert!(snapshot::apply(&handle, named).is_err());
    assert!(host.headers.load(Ordering::SeqCst) > 1, "the header was not to be put back");
    // The process ends here.
    check_clean(&*image).unwrap();
    host.headers.store(u64::MAX, Ordering::SeqCst);
    handle.disk().flush().unwrap();
    assert_eq!(setup::read(&handle, 0, 1000).unwrap(), vec![2; 1000]);
    snapshot::apply(&handle, named).unwrap();
    assert_eq!(setup::read(&handle, 0, 1000).unwrap(), vec![1; 1000]);
    handle.close().unwrap();
    assert_eq!(check_clean(&*image).unwrap(), 0);
}

/// Tables that a full host did not take filled the cache, and reads of everything else were refused with the host's
/// error, which an emulator passes on as an error of the disk.
#[test]
fn c19_a_full_host_can_be_read() {
    let setup = Setup { sectors: 64 * 64 * 8, tiny_cache: true, ..Setup::default() };
    let recorder = setup.recorder();
    let handle = setup.open(recorder.clone()).unwrap();
    // A cluster for each table, so that each is a slice of its own.
    let places: Vec<u64> = (0..64).map(|table| table * 64).collect();
    for sector in &places {
        setup::write(&handle, *sector, 1, 0x2000 + *sector as u32, false).unwrap();
    }
    handle.disk().flush().unwrap();
    recorder.fill_up(0, Full::Everything, libc::ENOSPC);
    for sector in &places {
        // Some of them go to memory, and cannot leave it.
        let _ = handle.disk().discard(*sector * SECTOR, SECTOR);
    }
    assert!(recorder.was_full(), "no table was in the way");
    let shown = |sector: u64| setup::read(&handle, sector, 1).unwrap()[0];
    let kept = places.iter().filter(|s| shown(**s) == 0x2000 + **s as u32).count();
    let gone = places.iter().filter(|s| shown(**s) == 0).count();
    assert_eq!((kept + gone, gone > 0), (places.len(), true));
    recorder.make_room();
    handle.disk().flush().unwrap();
    assert_eq!(places.iter().filter(|s| shown(**s) == 0).count(), gone);
    handle.close().unwrap();
    check_clean(&*recorder).unwrap();
}
