//! C17 and C18: what was linked already went back, and what one image had in memory was shown by another.

use crate::kit::*;
use crate::testkit::ops::Op::*;
use crate::testkit::recorder::{libc_errno, Fault, Kind};
use crate::testkit::runner::Runner;
use crate::testkit::setup::{self, Setup};
use crate::testkit::sweep::check_clean;
use crate::testkit::SECTOR;
use qcow2::image::Disk;
use qcow2::ops::handle::Handle;
use qcow2::options::Preallocation;
use qcow2::storage::Storage;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

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
            let fault =
                Fault { kind: Some(Kind::Read), call, errno: libc_errno::EIO, forever: false, torn: false };
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
