//! Space that nobody asked for.

use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::Preallocation;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::Storage;
use std::sync::Arc;
use testkit::images::*;
use testkit::oracle::be64;
use testkit::recorder::{Recorder, What};

const CLUSTER: u64 = 64 * KIB;

/// Sessions that end without a close.
fn sessions(options: &[&str], flush: bool, count: u64, writes: u64) -> Vec<u8> {
    let mut image = new_image(16 * 1024 * MIB, &[]).contents();
    for session in 0..count {
        let memory = Arc::new(Memory::new(image));
        let storage: Arc<dyn Storage> = memory.clone();
        let handle = open_over(&storage, None, WRITABLE, options).unwrap();
        for number in 0..writes {
            write(&handle, (session * writes + number) * 4 * CLUSTER, &pattern(4 * KIB, number));
            if flush {
                handle.disk().flush().unwrap();
            }
        }
        // Gone as it stands. What the handle holds stays with it: 32 bits have no room for forty copies.
        image = memory.take();
        std::mem::forget(handle);
    }
    image
}

/// Counts that were raised ahead, and the file's growth ahead, piled up with each exit.
#[test]
fn waste_exits_without_close_leave_little() {
    for (options, flush) in
        [(&["metadata-writethrough=on"][..], false), (&[][..], true), (&["refcounts-ahead=on"][..], true)]
    {
        for (count, writes) in [(10, 40), (40, 1), (40, 10), (5, 400)] {
            let image = sessions(options, flush, count, writes);
            let used = count * writes;
            let (report, texts) = checked(&Memory::new(image.clone()), LOOK);
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{texts:?}");
            let told = format!("{options:?}, {count} exits, {writes} writes each");
            testkit::tell!("{told}: {} leaks, {} KiB", report.leaks, image.len() / 1024);
            assert!(report.leaks <= used * 3 / 4 + 10 * count, "{told}: {} leaks", report.leaks);
            if (count, writes) == (10, 40) {
                assert!(report.leaks <= 300, "{told}: {} leaks", report.leaks);
                assert!(image.len() as u64 <= 64 * MIB, "{told}: {} bytes", image.len());
            }
            // What leaks and what is used, the tables, and one growth ahead.
            let most = (used + report.leaks + 40) * CLUSTER * 5 / 4 + 2 * MIB;
            assert!(image.len() as u64 <= most, "{told}: {} bytes, {most} at most", image.len());
        }
    }
}

#[test]
fn waste_committed_zeroes_free_what_the_base_has() {
    for compat in ["compat=1.1", "compat=0.10"] {
        let base = new_image(4 * MIB, &[compat]);
        let below: Arc<dyn Storage> = base.clone();
        let handle = open_over(&below, None, WRITABLE, &[]).unwrap();
        write(&handle, 0, &pattern(2 * MIB, 1));
        handle.close().unwrap();
        let before = l2_entries(&base.contents()).iter().filter(|(_, e)| e & !(1 << 63 | 1) != 0).count();
        assert_eq!(before, 32);
        let top: Arc<dyn Storage> = new_image(4 * MIB, &["backing_file=base", "backing_fmt=qcow2"]);
        let handle = open_over(&top, Some(&below), WRITABLE, &[]).unwrap();
        handle.disk().write_zeroes(0, MIB, ZeroFlags::default(), false).unwrap();
        commit(&handle, false, None, &mut |_, _| true).unwrap();
        assert_eq!(read(&handle, 0, MIB), vec![0; MIB as usize]);
        handle.close().unwrap();
        let after = l2_entries(&base.contents()).iter().filter(|(_, e)| e & !(1 << 63 | 1) != 0).count();
        assert_eq!(after, 16, "{compat}: the base keeps what zeroes cover");
        assert_sound(&*below);
    }
}

/// What is zeroed shows the disk below; the rest of the cluster reads as zeroes.
#[test]
fn waste_zeroes_over_all_data_of_a_cluster_are_an_entry() {
    for extended in ["extended_l2=off", "extended_l2=on"] {
        let below: Arc<dyn Storage> = new_image(4 * MIB, &["cluster_size=1k"]);
        let handle = open_over(&below, None, WRITABLE, &[]).unwrap();
        write(&handle, 4 * KIB, &pattern(KIB, 1));
        write(&handle, CLUSTER + 4 * KIB, &pattern(KIB, 2));
        write(&handle, CLUSTER + 5 * KIB, &pattern(KIB, 3));
        handle.close().unwrap();
        let memory = new_image(4 * MIB, &["backing_file=base", "backing_fmt=qcow2", extended]);
        let top: Arc<dyn Storage> = memory.clone();
        let handle = open_over(&top, Some(&below), WRITABLE, &[]).unwrap();
        handle.disk().write_zeroes(4 * KIB, KIB, ZeroFlags::default(), false).unwrap();
        assert_eq!(read(&handle, 0, CLUSTER), vec![0; CLUSTER as usize]);
        let status = handle.disk().status(4 * KIB, KIB, true).unwrap();
        assert!(status.zero && status.allocated, "{extended}: {status:?}");
        // The rest does not read as zeroes: it stays what it is.
        handle.disk().write_zeroes(CLUSTER + 4 * KIB, KIB, ZeroFlags::default(), false).unwrap();
        assert_eq!(read(&handle, CLUSTER + 5 * KIB, KIB), pattern(KIB, 3), "{extended}");
        assert_eq!(read(&handle, CLUSTER + 4 * KIB, KIB), vec![0; KIB as usize], "{extended}");
        handle.close().unwrap();
        assert_sound(&*top);
        let hosts = |e: &&(usize, u64)| e.1 & 0x00ff_ffff_ffff_fe00 != 0;
        assert_eq!(l2_entries(&memory.contents()).iter().filter(hosts).count(), 1, "{extended}");
    }
}

/// What a resize makes void is freed.
#[test]
fn waste_a_resize_leaks_no_bitmaps() {
    let Some(bench) = Bench::with_stock_tools("waste_a_resize_leaks_no_bitmaps") else { return };
    for (size, again) in [("16M", 8 * MIB), ("8M", 16 * MIB)] {
        bench.img(&["create", "-q", "-f", "qcow2", "disk", size]);
        for name in ["a", "b"] {
            bench.img(&["bitmap", "--add", "-g", "512", "disk", name]);
        }
        bench.io("disk", &["write -P 1 0 1M", "write -P 2 5M 1M"]);
        assert!(bench.read("disk")[95] & 1 != 0, "the bitmaps are in force");
        let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
        resize(&handle, again, Preallocation::Off).unwrap();
        write(&handle, 3 * MIB, &pattern(MIB, 3));
        assert_eq!(read(&handle, 3 * MIB, MIB), pattern(MIB, 3));
        handle.close().unwrap();
        bench.assert_clean("disk");
        let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
        assert_eq!(read(&handle, 5 * MIB, MIB), vec![2; MIB as usize]);
        handle.close().unwrap();
    }
}

#[test]
fn waste_freed_clusters_are_used_before_the_file_grows() {
    let memory = new_image(64 * MIB, &[]);
    let storage: Arc<dyn Storage> = memory.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    for round in 0..8 {
        write(&handle, round * 4 * MIB, &pattern(2 * MIB, round));
        handle.disk().discard(round * 4 * MIB, 2 * MIB).unwrap();
    }
    handle.close().unwrap();
    let length = memory.contents().len() as u64;
    assert!(length <= 3 * MIB, "{length} bytes for 2 MiB");
    assert_sound(&*storage);
}

/// Blocks of 512-byte clusters count 128 KiB each.
#[test]
fn waste_small_refcount_blocks_do_not_sync_each() {
    let recorder = Recorder::new(new_image(64 * MIB, &["cluster_size=512"]).contents());
    recorder.leave_unjudged("it is written outside requests");
    let storage: Arc<dyn Storage> = recorder.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    let before = recorder.log().len();
    for at in (0..8 * MIB).step_by(64 << 10) {
        write(&handle, at, &pattern(64 * KIB, at));
    }
    let syncs = recorder.log()[before..].iter().filter(|e| matches!(e.what, What::Sync { .. })).count();
    handle.close().unwrap();
    let blocks = 8 * MIB / (128 * KIB);
    testkit::tell!("{syncs} syncs for {blocks} refcount blocks");
    assert!(syncs as u64 * 4 <= blocks, "{syncs} syncs for {blocks} blocks");
    let image = recorder.contents();
    assert_ne!(be64(&image, 48), 0);
    assert_sound(&Memory::new(image));
}
