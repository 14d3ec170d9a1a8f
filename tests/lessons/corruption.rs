//! C1 to C3, C5 and C7 to C9, C13: two owners, lost bytes, bytes that come back.

use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{Opening, Origin};
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot;
use qcow2::testing::ops::snapshot::NewSnapshot;
use qcow2::testing::options::{OpenOptions, Preallocation};
use qcow2::testing::storage::{Purpose, Storage};
use std::sync::Arc;
use std::time::Duration;
use testkit::images::*;
use testkit::ops::Op::*;
use testkit::overlay::Overlay;
use testkit::recorder::{as_request, Fault, Kind, What};
use testkit::rng::Rng;
use testkit::runner::Runner;
use testkit::setup::{self, Mode, Setup, PREFILL_TAG};
use testkit::sweep::{check_clean, recover, sweep};
use testkit::{oracle, rules, SECTOR};

const PATIENCE: Duration = Duration::from_secs(10);

pub fn take_snapshot(handle: &Handle, name: &str) {
    let new = NewSnapshot {
        id: None,
        name: name.into(),
        date_seconds: 1,
        date_nanoseconds: 2,
        guest_clock_nanoseconds: 3,
        icount: u64::MAX,
        vm_state_bytes: 0,
    };
    snapshot::create(handle, &new).unwrap();
}

/// An allocating write had its data in flight while a discard freed the cluster that it was about to link: the
/// cluster had two owners from then on. Here the data of the write is parked, the same range is dropped in each
/// way, somebody else allocates, and then the write goes on.
#[test]
fn c01_a_write_in_flight_meets_whatever_drops_its_cluster() {
    for drops in ["discard", "zero", "snapshot", "shrink"] {
        for (allocating, compresses) in [(false, false), (true, false), (true, true)] {
            let setup = Setup { sectors: 96, prefill: 48, ..Setup::default() };
            let recorder = setup.recorder();
            let handle = setup.open(recorder.clone()).unwrap();
            let first = if allocating { 60 } else { 40 };
            let hold = recorder.hold(Kind::Write, Some(Purpose::Data));
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| match compresses {
                    false => setup::write(&handle, first, 4, 7, false),
                    true => {
                        let mut bytes = vec![0; 4 * SECTOR as usize];
                        setup::fill(&mut bytes, first, 7);
                        let range = Some((first * SECTOR, (first + 4) * SECTOR));
                        let buffers = [std::io::IoSlice::new(&bytes)];
                        as_request(range, || handle.disk().write_compressed(first * SECTOR, &buffers, false))
                    }
                });
                assert!(recorder.wait_parked(hold, PATIENCE), "the data write was not caught");
                let other = scope.spawn(|| {
                    let (from, bytes) = (first * SECTOR, 4 * SECTOR);
                    match drops {
                        "discard" => handle.disk().discard(from, bytes).unwrap(),
                        "zero" => {
                            let flags = ZeroFlags { unmap: true, no_fallback: false };
                            handle.disk().write_zeroes(from, bytes, flags, false).unwrap();
                        }
                        "snapshot" => take_snapshot(&handle, "meanwhile"),
                        _ => resize(&handle, 32 * SECTOR, Preallocation::Off).unwrap(),
                    }
                    handle.disk().flush().unwrap();
                    setup::write(&handle, 10, 8, 8, false).unwrap();
                    setup::write(&handle, 0, 4, 9, false).unwrap();
                });
                // Some of them wait for the writer, and rightly so.
                std::thread::sleep(Duration::from_millis(20));
                recorder.release(hold);
                let wrote = writer.join().unwrap();
                assert!(wrote.is_ok() || drops == "shrink", "{drops}: {wrote:?}");
                other.join().unwrap();
            });
            handle.disk().flush().unwrap();
            let tags = setup::read_all(&handle).unwrap();
            assert_eq!((&tags[10..18], &tags[..4]), (&[8; 8][..], &[9; 4][..]), "{drops}");
            if drops != "shrink" {
                assert!(tags[first as usize..][..4].iter().all(|t| [0, 7].contains(t)), "{drops}: {tags:x?}");
            }
            handle.close().unwrap();
            assert_eq!(check_clean(&*recorder), Ok(0), "{drops}");
            // Counts, and who owns what, by the kit's own parser, too.
            let bytes = recorder.contents();
            if drops != "snapshot" && !compresses {
                assert!(oracle::Owners::of(&bytes).0.values().all(|owners| owners.len() == 1), "{drops}");
            }
        }
    }
}

/// A freed cluster was handed out again before the hole punch that was queued for it had run: a table was punched
/// out. Here the punch is slow.
#[test]
fn c02_a_slow_hole_punch_hits_nothing_that_is_in_use_again() {
    let setup = Setup { sectors: 96, prefill: 48, ..Setup::default() };
    let recorder = setup.recorder();
    let options = OpenOptions::parse(&["discard=unmap"]).unwrap();
    let mut opening =
        Opening { flags: WRITABLE, options, resolver: None, messages: None, secrets: Default::default() };
    let handle = opening.open(&Origin::Custom(recorder.clone())).unwrap();
    let hold = recorder.hold(Kind::Discard, None);
    handle.disk().discard(40 * SECTOR, 8 * SECTOR).unwrap();
    std::thread::scope(|scope| {
        let punching = scope.spawn(|| handle.disk().flush());
        assert!(recorder.wait_parked(hold, PATIENCE), "no hole was punched");
        let writing = scope.spawn(|| setup::write(&handle, 60, 30, 5, false));
        std::thread::sleep(Duration::from_millis(20));
        recorder.release(hold);
        punching.join().unwrap().unwrap();
        writing.join().unwrap().unwrap();
    });
    handle.disk().flush().unwrap();
    let log = recorder.log();
    let punched = log.iter().find(|e| e.what == What::Discard).expect("no hole was punched");
    let again = |e: &&testkit::recorder::Event| {
        e.what == What::Write
            && e.offset < punched.offset + punched.length
            && punched.offset < e.offset + e.length
    };
    assert!(log.iter().any(|e| again(&e)), "the freed clusters were not used again");
    assert_eq!(setup::read(&handle, 60, 30).unwrap(), [5; 30]);
    assert_eq!(setup::read(&handle, 0, 40).unwrap(), [PREFILL_TAG; 40]);
    handle.close().unwrap();
    assert_eq!(check_clean(&*recorder), Ok(0));
    rules::check_trace(&recorder).unwrap();
}

/// The old refcount table went to the free list before the new one was secured; the host was full, and clusters
/// were handed out twice. Every call fails from some point on while the table grows; nothing but leaks may be left.
#[test]
fn c03_a_full_host_while_the_refcount_table_grows() {
    let setup =
        Setup { refcount_order: 6, sectors: 4200, prefill: 3940, tiny_cache: true, ..Setup::default() };
    let image = setup.create();
    let ops = [Write { sector: 3940, count: 60, fua: false }, Discard { sector: 10, count: 3 }, Flush];
    let table = |bytes: &[u8]| oracle::Head::parse(bytes).unwrap().table_offset;
    let mut calls = 0;
    loop {
        let recorder = testkit::recorder::Recorder::new(image.clone());
        let mut runner = Runner::on(&setup, recorder.clone()).unwrap();
        let errno = libc::ENOSPC;
        recorder.inject(Some(Fault { kind: None, call: calls, errno, forever: true, torn: false }));
        let errors = ops.iter().filter_map(|op| runner.run(*op).unwrap()).count();
        let reached = recorder.failed() > 0;
        recorder.inject(None);
        let bytes = recorder.contents();
        if !reached {
            assert_eq!(errors, 0);
            assert_ne!(table(&bytes), table(&image), "the table has not grown");
            break;
        }
        let length = bytes.len() as u64;
        let medium = Overlay::new(bytes.into(), Default::default(), length);
        let tags = recover(&setup, &medium, false).unwrap_or_else(|e| panic!("call {calls}: {e}"));
        runner.expect.check(&tags, false).unwrap_or_else(|e| panic!("call {calls}: {e}"));
        calls += 1;
    }
    assert!(calls > 15, "only {calls} calls");
}

/// Guest writes went into clusters that a snapshot had, because a flag was on the wrong table. Every kind of change
/// is made after a snapshot; the snapshot is what it was, byte for byte.
#[test]
fn c05_guest_writes_never_change_a_snapshot() {
    for options in [
        &["cluster_size=512", "refcount_bits=2"][..],
        &["cluster_size=4k", "lazy_refcounts=on"],
        &["compat=0.10"],
    ] {
        let image: Arc<dyn Storage> = new_image(3 * MIB, options);
        let open = || open_over(&image, None, WRITABLE, &[]).unwrap();
        let handle = open();
        let before = pattern(2 * MIB, 1);
        write(&handle, 0, &before);
        take_snapshot(&handle, "first");
        write(&handle, 0, &pattern(100 * KIB, 2)); // whole clusters
        write(&handle, 300 * KIB + 17, &pattern(1000, 3)); // parts
        handle.disk().write_zeroes(400 * KIB, 100 * KIB, ZeroFlags::default(), false).unwrap();
        let unmap = ZeroFlags { unmap: true, no_fallback: false };
        handle.disk().write_zeroes(600 * KIB, 100 * KIB, unmap, true).unwrap();
        handle.disk().discard(800 * KIB, 100 * KIB).unwrap();
        handle.disk().flush().unwrap();
        write(&handle, 800 * KIB, &pattern(50 * KIB, 4));
        let small = if options == ["compat=0.10"] { 3 * MIB } else { MIB };
        if small != 3 * MIB {
            resize(&handle, small, Preallocation::Off).unwrap();
            resize(&handle, 4 * MIB, Preallocation::Off).unwrap();
        }
        handle.close().unwrap();
        assert_sound(&*image);
        let handle = open();
        write(&handle, 10 * KIB, &pattern(MIB, 5)); // after a new open, too
        let now = read_all(&handle);
        take_snapshot(&handle, "second");
        write(&handle, 0, &pattern(MIB, 6));
        let wanted = |name| snapshot::SnapshotRef { id: None, name: Some(name) };
        snapshot::apply(&handle, wanted(b"first")).unwrap();
        assert_eq!(handle.disk().length(), 3 * MIB);
        assert!(read(&handle, 0, 2 * MIB) == before, "{options:?}: the snapshot has changed");
        assert!(read(&handle, 2 * MIB, MIB).iter().all(|b| *b == 0));
        write(&handle, 0, &pattern(MIB, 7));
        snapshot::apply(&handle, wanted(b"second")).unwrap();
        assert!(read_all(&handle) == now, "{options:?}: the second snapshot has changed");
        snapshot::delete(&handle, wanted(b"second")).unwrap();
        write(&handle, 0, &pattern(MIB, 8));
        snapshot::apply(&handle, wanted(b"first")).unwrap();
        assert!(read(&handle, 0, 2 * MIB) == before, "{options:?}: the snapshot has changed");
        handle.close().unwrap();
        assert_sound(&*image);
    }
}

/// The entry of a discarded cluster became "nothing here", and the guest saw what the backing file had there.
#[test]
fn c07_discard_and_zero_never_show_the_backing_file() {
    let base: Arc<dyn Storage> = memory(vec![0xbb; MIB as usize]);
    for compat in ["compat=0.10", "compat=1.1"] {
        for cluster_size in [512u64, 4096, 65536] {
            let size = format!("cluster_size={cluster_size}");
            let image: Arc<dyn Storage> =
                new_image(MIB, &[compat, &size, "backing_file=base", "backing_fmt=raw"]);
            let handle = open_over(&image, Some(&base), WRITABLE, &["discard=unmap"]).unwrap();
            write(&handle, 0, &vec![0x11; 512 * KIB as usize]);
            // With data and without, whole clusters and parts of them.
            for from in [0, 600 * KIB] {
                for (at, length) in [(0, 128 * KIB), (130 * KIB, 100), (140 * KIB - 7, 70 * KIB)] {
                    let before = read(&handle, from + at, length);
                    handle.disk().discard(from + at, length).unwrap();
                    let after = read(&handle, from + at, length);
                    let fine =
                        |(now, old): (&u8, &u8)| *now == 0 || (now == old && (*old != 0xbb || from > 0));
                    assert!(after.iter().zip(&before).all(fine), "{compat} {size}: discard at {}", from + at);
                    handle.disk().write_zeroes(from + at, length, ZeroFlags::default(), false).unwrap();
                    assert!(read(&handle, from + at, length).iter().all(|b| *b == 0), "{compat} {size}");
                }
            }
            assert!(read(&handle, 240 * KIB, 272 * KIB).iter().all(|b| *b == 0x11));
            assert!(read(&handle, 900 * KIB, 124 * KIB).iter().all(|b| *b == 0xbb));
            handle.close().unwrap();
            assert_sound(&*image);
            let handle = open_over(&image, Some(&base), READ_ONLY, &[]).unwrap();
            assert!(read(&handle, 0, 128 * KIB).iter().all(|b| *b == 0), "{compat} {size}: after a new open");
        }
    }
}

/// The same by subclusters, on an image of the stock tool.
#[test]
fn c07_subclusters_never_show_the_backing_file() {
    let Some(bench) = Bench::with_stock_tools("c07_subclusters") else { return };
    bench.write("base", &vec![0xbb; MIB as usize]);
    bench.img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on,cluster_size=64k",
        "-b",
        "base",
        "-F",
        "raw",
        "top",
    ]);
    let flags = qcow2::testing::ops::open::OpenFlags { allow_recorded: true, ..WRITABLE };
    let handle = open_file(&bench.path("top"), flags, &["discard=unmap"]).unwrap();
    write(&handle, 64 * KIB, &vec![0x11; 64 * KIB as usize]);
    write(&handle, 130 * KIB, &[0x22; 100]);
    let zeroed = [
        (64 * KIB, 2 * KIB),
        (70 * KIB, 6 * KIB),
        (130 * KIB, 2 * KIB),
        (192 * KIB, 64 * KIB),
        (300 * KIB, 3000),
    ];
    for (at, length) in zeroed {
        handle.disk().write_zeroes(at, length, ZeroFlags::default(), false).unwrap();
    }
    handle.disk().discard(64 * KIB, 64 * KIB).unwrap();
    handle.disk().discard(512 * KIB, 64 * KIB).unwrap();
    handle.close().unwrap();
    bench.assert_clean("top");
    bench.img(&["convert", "-f", "qcow2", "-O", "raw", "top", "flat"]);
    let flat = bench.read("flat");
    for (at, length) in zeroed.into_iter().chain([(64 * KIB, 64 * KIB), (512 * KIB, 64 * KIB)]) {
        assert!(flat[at as usize..(at + length) as usize].iter().all(|b| *b == 0), "{at}");
    }
    assert!(flat[128 * KIB as usize..130 * KIB as usize].iter().all(|b| *b == 0xbb));
    let handle = open_file(&bench.path("top"), flags, &[]).unwrap();
    assert!(read_all(&handle) == flat);
}

/// A version 3 image of 4 KiB clusters with an extension and header bytes that nobody knows.
fn with_unknown_parts() -> Vec<u8> {
    let mut bytes = new_image(MIB, &["cluster_size=4k", "backing_file=base", "backing_fmt=raw"]).contents();
    let old_length = oracle::be32(&bytes, 100) as usize;
    let name_at = oracle::be64(&bytes, 8) as usize;
    let rest = bytes[old_length..name_at + 4].to_vec();
    // 24 more header bytes, then an unknown extension of 5 bytes, then what was there.
    let length = old_length + 24;
    bytes[length..length + 16 + rest.len()].fill(0);
    put(&mut bytes, old_length, b"unknown header fields 24");
    put(&mut bytes, length, &[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 5, b'h', b'e', b'l', b'l', b'o', 0, 0, 0]);
    put(&mut bytes, length + 16, &rest);
    put(&mut bytes, 100, &(length as u32).to_be_bytes());
    put(&mut bytes, 8, &((name_at + 40) as u64).to_be_bytes());
    put(&mut bytes, 80, &(1u64 << 41).to_be_bytes()); // an unknown compatible feature
    bytes
}

/// A resize wrote the header anew with default fields, and every compressed cluster was lost with the compression
/// type; others dropped extensions that they did not know. Each operation changes its own fields and no others.
#[test]
fn c08_an_operation_changes_its_own_header_fields_only() {
    let original = with_unknown_parts();
    let base = memory(vec![0xbb; MIB as usize]);
    let image = memory(original.clone());
    let handle = open_over(&image, Some(&base), WRITABLE, &[]).unwrap();
    let header_now = || {
        let mut bytes = vec![0; 4096];
        image.read(Purpose::Header, 0, &mut [std::io::IoSliceMut::new(&mut bytes)]).unwrap();
        bytes
    };
    let same_but = |what: &str, fields: &[std::ops::Range<usize>]| {
        let now = header_now();
        for at in 0..4096 {
            let own = fields.iter().any(|f| f.contains(&at));
            assert!(own || now[at] == original[at], "{what}: header byte {at} has changed");
        }
    };
    assert!(handle.disk().length() == MIB);
    write(&handle, 5000, &[1; 20000]);
    handle.disk().write_zeroes(0, 8192, ZeroFlags::default(), true).unwrap();
    handle.disk().discard(16384, 8192).unwrap();
    handle.disk().flush().unwrap();
    same_but("guest I/O", &[]);
    resize(&handle, 2 * MIB, Preallocation::Off).unwrap();
    let none = 0..0;
    same_but("small resize", &[24..32, none]);
    resize(&handle, 64 * MIB, Preallocation::Off).unwrap();
    same_but("resize with a longer L1 table", &[24..32, 36..48]);
    let fields = [24..32, 36..48, 60..72];
    take_snapshot(&handle, "one");
    same_but("snapshot", &fields);
    snapshot::delete(&handle, snapshot::SnapshotRef { id: None, name: Some(b"one") }).unwrap();
    same_but("snapshot deleted", &fields);
    handle.reopen(false, false, &["lazy-refcounts=on".as_ref()], None).unwrap();
    write(&handle, 0, &[2; 9000]);
    assert_eq!(header_now()[79] & 1, 1);
    handle.close().unwrap();
    same_but("lazy session", &fields);
    let mut bytes = vec![0; image.length().unwrap() as usize];
    image.read(Purpose::Data, 0, &mut [std::io::IoSliceMut::new(&mut bytes)]).unwrap();
    make_dirty(&mut bytes);
    scramble_counts(&mut bytes, || 0);
    let image = memory(bytes);
    checked(&*image, REPAIR);
    let mut repaired = vec![0; 4096];
    image.read(Purpose::Header, 0, &mut [std::io::IoSliceMut::new(&mut repaired)]).unwrap();
    let own = |at: usize| fields.iter().any(|f| f.contains(&at)) || (48..60).contains(&at);
    assert!((0..4096).all(|at| own(at) || repaired[at] == original[at]), "a repair changes other fields");
}

/// An open that was then refused had cleared feature bits already.
#[test]
fn c08_a_refused_open_changes_nothing() {
    let bench = Bench::new();
    let path = bench.path("image");
    for (at, byte, kind) in [
        (79usize, 0x20u8, ErrorKind::Unsupported), // an unknown incompatible feature
        (79, 0x02, ErrorKind::MarkedCorrupt),
        (79, 0x04, ErrorKind::Invalid), // a data file without a name
        (35, 0x02, ErrorKind::Invalid), // encryption, and an autoclear bit of a data file
        (23, 40, ErrorKind::Invalid),   // cluster size
    ] {
        let mut bytes = with_unknown_parts();
        put(&mut bytes, 8, &[0; 12]); // without a backing file
        bytes[at] |= byte;
        put(&mut bytes, 88, &u64::MAX.to_be_bytes()); // every autoclear bit
        bench.write("image", &bytes);
        let error = open_file(&path, WRITABLE, &[]).map(drop).unwrap_err();
        assert!(kind == ErrorKind::Invalid || error.kind() == kind, "{at} {byte}: {error}");
        assert!(bench.read("image") == bytes, "{at} {byte}: the file has changed");
    }
    // Refused for another reason: the backing file, an option, the lock.
    let bytes = with_unknown_parts();
    bench.write("image", &bytes);
    assert_eq!(open_file(&path, WRITABLE, &[]).map(drop).unwrap_err().kind(), ErrorKind::NotAllowed);
    assert!(open_file(&path, WRITABLE, &["l2-cache-entry-size=3"]).is_err());
    assert!(bench.read("image") == bytes);
}

/// A buffered writer was dropped with its errors; nothing had reached the disk. A power cut after each call, with
/// every subset of what was not synced, and a close that cannot write says so.
#[test]
fn c09_what_was_flushed_or_closed_is_on_disk() {
    let write = Write { sector: 3, count: 70, fua: false };
    for lazy in [false, true] {
        for mode in [Mode::Writeback, Mode::MetadataWritethrough] {
            let setup = Setup { lazy, mode, ..Setup::default() };
            let ops = [
                write,
                Flush,
                Write { sector: 5, count: 3, fua: false },
                Reopen,
                Discard { sector: 4, count: 9 },
            ];
            let count = sweep(&setup, &ops, &mut Rng::new(1)).unwrap();
            assert!(count.opened > 50 && count.cuts > 15, "{count:?}");
        }
        let setup = Setup { lazy, ..Setup::default() };
        let mut runner = Runner::new(&setup).unwrap();
        assert!(runner.run(write).unwrap().is_none());
        let errno = libc::EIO;
        let fault = Fault { kind: Some(Kind::Write), call: 0, errno, forever: false, torn: false };
        runner.recorder.inject(Some(fault));
        let error = runner.handle.take().unwrap().close().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Host(errno), "lazy {lazy}: {error}");
    }
}

/// A close while a request was inside cut it in two.
#[test]
fn c09_close_waits_for_requests_in_flight() {
    let setup = Setup { prefill: 20, ..Setup::default() };
    let recorder = setup.recorder();
    let handle = setup.open(recorder.clone()).unwrap();
    let hold = recorder.hold(Kind::Write, Some(Purpose::Data));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| setup::write(&handle, 30, 40, 5, false));
        assert!(recorder.wait_parked(hold, PATIENCE));
        let closing = scope.spawn(|| handle.disk().stop().close());
        std::thread::sleep(Duration::from_millis(30));
        assert!(!closing.is_finished(), "closed while a write was inside");
        recorder.release(hold);
        writer.join().unwrap().unwrap();
        closing.join().unwrap().unwrap();
    });
    let again = setup.open(testkit::recorder::Recorder::new(recorder.durable_contents())).unwrap();
    assert_eq!(setup::read(&again, 30, 40).unwrap(), [5; 40]);
}

/// After ten days of load an L2 table was overwritten; nobody found out by what. Every write, data too, is judged
/// against the map of who owns what, and the judge sees the mistake when it is made on purpose.
#[test]
fn c13_no_write_hits_what_another_owns() {
    let setup = Setup { prefill: 30, ..Setup::default() };
    let mut runner = Runner::new(&setup).unwrap();
    let write = |sector, count| Write { sector, count, fua: false };
    for op in [
        write(3, 90),
        Discard { sector: 10, count: 40 },
        Flush,
        write(12, 50),
        Resize { sectors: 900 },
        write(800, 50),
        Flush,
    ] {
        assert!(runner.run(op).unwrap().is_none());
    }
    rules::check_trace(&runner.recorder).unwrap();
    let owners = oracle::Owners::of(&runner.recorder.contents());
    let is_l2 = |u: &oracle::Use| matches!(u, oracle::Use::L2 { .. });
    let table = owners.0.iter().find(|(_, uses)| uses.iter().any(is_l2)).map(|(c, _)| *c).unwrap();
    let recorder = testkit::recorder::Recorder::new(runner.recorder.contents());
    let bad = || recorder.write(Purpose::Data, table * SECTOR, &[std::io::IoSlice::new(&[1; 512])]);
    as_request(Some((0, 512)), bad).unwrap();
    let found = rules::check_trace(&recorder).unwrap_err();
    assert!(found.contains("C13"), "{found}");
    // The recorder itself says so, too, when it ends.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(recorder)));
    assert!(end.is_err(), "a recording that breaks a rule ends in silence");
}
