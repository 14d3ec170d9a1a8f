//! Lazy refcounts: the dirty bit stands before the first count is outrun, and goes after the last one is durable.

use crate::corruption::take_snapshot;
use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::amend::amend;
use qcow2::testing::ops::create::create;
use qcow2::testing::ops::open::OpenFlags;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::{CreateOptions, Preallocation};
use qcow2::testing::storage::file::{FileOptions, FileStorage};
use qcow2::testing::storage::{Purpose, Storage};
use std::sync::Arc;
use testkit::images::*;
use testkit::ops::{Op, Op::*};
use testkit::oracle;
use testkit::overlay::Overlay;
use testkit::recorder::{Event, Fault, Recorder, What};
use testkit::rng::Rng;
use testkit::rules;
use testkit::runner::Runner;
use testkit::setup::{self, Setup, PREFILL_TAG};
use testkit::sweep::{check_clean, recover, sweep};
use testkit::SECTOR;

const LAZY: Setup = Setup {
    version: 3,
    cluster_bits: 9,
    refcount_order: 4,
    lazy: true,
    mode: testkit::setup::Mode::Writeback,
    sectors: 200,
    backing: None,
    tiny_cache: false,
    prefill: 20,
    extended: false,
    ahead: false,
    snapshots: false,
    amends: false,
    data_file: None,
    bitmaps: false,
    encrypted: None,
    encrypted_backing: false,
    depth: 0,
};

fn write_op(sector: u64, count: u64) -> Op {
    Write { sector, count, fua: false }
}

/// The image of a writer that died: sectors 40..80 were flushed.
fn killed() -> Vec<u8> {
    let recorder = LAZY.recorder();
    let handle = LAZY.open(recorder.clone()).unwrap();
    setup::write(&handle, 40, 40, 7, false).unwrap();
    handle.disk().flush().unwrap();
    drop(handle);
    let bytes = recorder.contents();
    assert!(oracle::is_dirty(&bytes), "the image is not dirty");
    bytes
}

fn has_what_was_flushed(tags: &[u32]) -> bool {
    tags[..20] == [PREFILL_TAG; 20] && tags[40..80] == [7; 40]
}

/// Row 1: Write and die: the bit is set, the entries are right, only the counts are behind.
#[test]
fn lazy_01_a_killed_writer_leaves_counts_behind_and_nothing_else() {
    let image: Arc<dyn Storage> = memory(killed());
    let (report, texts) = checked(&*image, LOOK);
    assert!(report.corruptions > 0, "no count is behind");
    assert!(texts.iter().all(|t| t.contains("refcount=0")), "{texts:?}");
    let handle = open_over(&image, None, READ_ONLY, &[]).unwrap();
    assert!(has_what_was_flushed(&setup::read_all(&handle).unwrap()));
    if let Some(bench) = Bench::with_stock_tools("lazy_01, the stock tool's opinion") {
        bench.write("disk", &killed());
        let (good, said) = bench.try_run("qemu-img", &["check", "-f", "qcow2", "disk"]);
        assert!(!good && said.contains("refcount=0 reference=1"), "{said}");
        bench.img(&["check", "-q", "-f", "qcow2", "-r", "all", "disk"]);
        bench.assert_clean("disk");
    }
}

/// Row 2: Reopen writable: repaired before the first request, the caller is told, the bit goes after the counts are
/// durable, and a second open has nothing to repair.
#[test]
fn lazy_02_the_next_writable_open_repairs_once() {
    let recorder = Recorder::new(killed());
    let handle = LAZY.open(recorder.clone()).unwrap();
    let report = handle.repaired().expect("the caller is told of the repair");
    assert!(report.corruptions_fixed > 0 && report.corruptions == 0);
    assert!(!oracle::is_dirty(&recorder.contents()));
    assert_eq!(check_clean(&*recorder), Ok(0));
    let log = recorder.log();
    let cleaned = header_writes(&log, |dirty| !dirty).next().expect("the bit was cleared");
    assert_all_durable_before(&log, cleaned);
    assert!(log[..cleaned].iter().any(|e| e.purpose == Purpose::RefcountBlock), "no count was written");
    assert!(has_what_was_flushed(&setup::read_all(&handle).unwrap()));
    handle.close().unwrap();
    let events = recorder.log_length();
    let handle = LAZY.open(recorder.clone()).unwrap();
    assert!(handle.repaired().is_none());
    handle.close().unwrap();
    assert!(
        recorder.log()[events..].iter().all(|e| matches!(e.what, What::Sync { .. })),
        "the second open wrote"
    );
}

/// Events that write the first sector of the header with a dirty bit that `wanted` accepts.
fn header_writes<'a>(
    log: &'a [Event],
    wanted: impl Fn(bool) -> bool + 'a,
) -> impl Iterator<Item = usize> + 'a {
    let fits = move |e: &Event| {
        e.purpose == Purpose::Header && e.offset <= 79 && e.offset + e.length > 79 && {
            wanted(e.bytes[(79 - e.offset) as usize] & 1 != 0)
        }
    };
    log.iter().enumerate().filter(move |(_, e)| fits(e)).map(|(i, _)| i)
}

/// Everything before event `at` is covered by a sync before it.
fn assert_all_durable_before(log: &[Event], at: usize) {
    let covered = |e: &Event| match e.what {
        What::Sync { covers } => covers,
        _ => 0,
    };
    let durable = log[..at].iter().map(covered).max().unwrap_or(0);
    let open = log[durable..at].iter().find(|e| !matches!(e.what, What::Sync { .. }));
    assert!(open.is_none(), "event {at} came before {open:?} was durable");
}

/// Row 3: Reopen read-only: not one byte changes, and reads are right.
#[test]
fn lazy_03_a_read_only_open_of_a_dirty_image_changes_nothing() {
    let bench = Bench::new();
    let bytes = killed();
    bench.write("disk", &bytes);
    for flags in [
        READ_ONLY,
        OpenFlags { metadata_only: true, ..READ_ONLY },
        OpenFlags { no_repair: true, ..READ_ONLY },
    ] {
        let handle = open_file(&bench.path("disk"), flags, &[]).unwrap();
        assert!(handle.repaired().is_none());
        if !flags.metadata_only {
            assert!(has_what_was_flushed(&setup::read_all(&handle).unwrap()));
        }
        handle.close().unwrap();
        assert!(bench.read("disk") == bytes, "{flags:?}");
    }
}

/// Row 4: Open with "no repair": an error of its own; who asks for information is told that the image is dirty.
#[test]
fn lazy_04_no_repair_is_an_error_of_its_own() {
    let bytes = killed();
    let bench = Bench::new();
    bench.write("disk", &bytes);
    let no_repair = OpenFlags { no_repair: true, ..WRITABLE };
    let error = open_file(&bench.path("disk"), no_repair, &[]).map(drop).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Dirty, libc::EUCLEAN));
    let metadata_only = OpenFlags { metadata_only: true, ..READ_ONLY };
    let handle = open_file(&bench.path("disk"), metadata_only, &[]).unwrap();
    let image = qcow2::testing::image::Image::find(handle.disk()).unwrap();
    assert_eq!(image.core().header().incompatible & 1, 1);
    assert!(bench.read("disk") == bytes);
}

/// Row 5: Die during the repair, at every write: the next repair succeeds.
#[test]
fn lazy_05_dying_in_the_repair() {
    // The power fails after each event of a session, a kill and the repair after it.
    let setup = Setup { prefill: 6, sectors: 100, ..LAZY };
    let count = sweep(&setup, &[write_op(20, 30), Flush, Kill, write_op(3, 1)], &mut Rng::new(1)).unwrap();
    assert!(count.repaired > 50, "{count:?}");
    // Each call of the repair fails, and all after it.
    let bytes = killed();
    let mut calls = 0;
    loop {
        let recorder = Recorder::new(bytes.clone());
        let errno = libc::EIO;
        recorder.inject(Some(Fault { kind: None, call: calls, errno, forever: true, torn: calls % 2 == 0 }));
        let answer = LAZY.open(recorder.clone());
        let reached = recorder.failed() > 0;
        recorder.inject(None);
        assert_eq!(answer.is_err(), reached, "call {calls}");
        if !reached {
            break;
        }
        let handle = LAZY.open(recorder.clone()).unwrap_or_else(|e| panic!("after call {calls}: {e}"));
        assert!(has_what_was_flushed(&setup::read_all(&handle).unwrap()), "after call {calls}");
        handle.close().unwrap();
        assert_eq!(check_clean(&*recorder), Ok(0), "after call {calls}");
        calls += 1;
    }
    assert!(calls > 15, "the repair made only {calls} calls");
}

/// Row 6: From the trace, not by timing: the bit is durable before an entry outruns its count, the counts before the
/// bit goes.
#[test]
fn lazy_06_the_bit_brackets_everything_in_the_trace() {
    let mut runner = Runner::new(&LAZY).unwrap();
    for op in [write_op(30, 30), Flush] {
        assert!(runner.run(op).unwrap().is_none());
    }
    let flushed = memory(runner.recorder.contents());
    assert!(checked(&*flushed, LOOK).0.corruptions >= 30, "a flush has written the counts: not lazy at all");
    for op in [write_op(60, 40), Discard { sector: 50, count: 9 }, Flush, write_op(120, 30)] {
        assert!(runner.run(op).unwrap().is_none());
    }
    runner.handle.take().unwrap().close().unwrap();
    let log = runner.recorder.log();
    rules::check_trace(&runner.recorder).unwrap();
    let set = header_writes(&log, |dirty| dirty).next().expect("the bit was set");
    let durable = log.iter().position(|e| matches!(e.what, What::Sync { covers } if covers > set)).unwrap();
    let is_table = |e: &Event| matches!(e.purpose, Purpose::L1 | Purpose::L2) && e.what == What::Write;
    let first = log.iter().position(is_table).expect("an entry was written");
    assert!(durable < first, "event {first} writes an entry before the bit is durable ({durable})");
    let cleaned = header_writes(&log, |dirty| !dirty).last().expect("the bit was cleared");
    assert_all_durable_before(&log, cleaned);
    let counts = log.iter().rposition(|e| e.purpose == Purpose::RefcountBlock).expect("counts were written");
    assert!(counts < cleaned, "counts are written after the bit is gone");
}

/// Row 8: Switching at run time, and by amend, in a handle that is dirty. On version 2 it is an error.
#[test]
fn lazy_08_switching_on_and_off() {
    let eager = Setup { lazy: false, ..LAZY };
    let recorder = eager.recorder();
    let handle = eager.open(recorder.clone()).unwrap();
    let dirty = || oracle::is_dirty(&recorder.contents());
    setup::write(&handle, 40, 5, 1, false).unwrap();
    assert!(!dirty(), "an eager session is never dirty");
    handle.reopen(false, false, &["lazy-refcounts=on".as_ref()], None).unwrap();
    assert!(!dirty());
    setup::write(&handle, 60, 5, 2, false).unwrap();
    assert!(dirty(), "a lazy session is dirty from its first allocation on");
    handle.reopen(false, false, &["lazy-refcounts=off".as_ref()], None).unwrap();
    assert!(!dirty(), "the switch settles everything");
    assert_eq!(check_clean(&*recorder), Ok(0));
    setup::write(&handle, 80, 5, 3, false).unwrap();
    assert!(!dirty());
    handle.close().unwrap();
    assert_eq!(check_clean(&*recorder), Ok(0));
    rules::check_trace(&recorder).unwrap();

    amended_while_dirty();

    // The image says lazy, the caller says no, and the other way round; the image's own word stays.
    for (options, lazy) in [(&["lazy_refcounts=on"][..], "off"), (&[], "on")] {
        let image: Arc<dyn Storage> = new_image(MIB, options);
        let words = format!("lazy-refcounts={lazy}");
        let handle = open_over(&image, None, WRITABLE, &[&words]).unwrap();
        write(&handle, 0, &[1; 70000]);
        let mut header = vec![0; 104];
        image.read(Purpose::Header, 0, &mut [std::io::IoSliceMut::new(&mut header)]).unwrap();
        assert_eq!(oracle::is_dirty(&header), lazy == "on");
        assert_eq!(oracle::be64(&header, 80) & 1, u64::from(!options.is_empty()));
        handle.close().unwrap();
        assert_sound(&*image);
    }

    let image: Arc<dyn Storage> = new_image(MIB, &["compat=0.10"]);
    let error = open_over(&image, None, WRITABLE, &["lazy-refcounts=on"]).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let handle = open_over(&image, None, WRITABLE, &[]).unwrap();
    assert_eq!(
        handle.reopen(false, false, &["lazy-refcounts=on".as_ref()], None).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    write(&handle, 0, &[1; 70000]);
    handle.close().unwrap();
    assert_sound(&*image);
    let refused = CreateOptions::parse(&["compat=0.10", "lazy_refcounts=on"]).and_then(|o| o.validate());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}

/// The image's own word changes below a session that has outrun its counts.
fn amended_while_dirty() {
    let recorder = LAZY.recorder();
    recorder.amend();
    let handle = LAZY.open(recorder.clone()).unwrap();
    let set = |option: &str| {
        recorder.request(None, None, || amend(&handle, &[option], &mut |_, _| true)).map_err(|e| e.kind())
    };
    let (dirty, compatible) =
        (|| oracle::is_dirty(&recorder.contents()), || oracle::be64(&recorder.contents(), 80) & 1);
    setup::write(&handle, 40, 5, 1, false).unwrap();
    assert!(dirty() && compatible() == 1);
    assert_eq!(set("lazy_refcounts=off"), Ok(()));
    assert!(!dirty() && compatible() == 0, "the switch settles everything");
    assert_eq!(check_clean(&*recorder), Ok(0));
    setup::write(&handle, 60, 5, 2, false).unwrap();
    assert!(!dirty(), "the session follows the image");
    assert_eq!(set("lazy_refcounts=on"), Ok(()));
    setup::write(&handle, 80, 5, 3, false).unwrap();
    assert!(dirty());
    assert_eq!(set("compat=0.10"), Ok(()));
    assert!(!dirty(), "version 2 has no dirty bit");
    assert_eq!(set("lazy_refcounts=on"), Err(ErrorKind::Invalid));
    setup::write(&handle, 100, 5, 4, false).unwrap();
    handle.close().unwrap();
    assert_eq!(check_clean(&*recorder), Ok(0));
    rules::check_trace(&recorder).unwrap();
}

/// Row 9: No space while repairing, a storage that takes no writes, a lock that somebody else has: an error each, the
/// image as it was, and a later open repairs.
#[test]
fn lazy_09_a_repair_that_cannot_be_made_now() {
    let bytes = killed();
    let mut writes = 0;
    loop {
        let recorder = Recorder::new(bytes.clone());
        let errno = libc::ENOSPC;
        let kind = Some(testkit::recorder::Kind::Write);
        recorder.inject(Some(Fault { kind, call: writes, errno, forever: true, torn: false }));
        let answer = LAZY.open(recorder.clone()).map(drop);
        if recorder.failed() == 0 {
            answer.unwrap();
            break;
        }
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Host(errno), "write {writes}");
        assert!(oracle::is_dirty(&recorder.contents()) || check_clean(&*recorder).is_ok(), "write {writes}");
        recorder.inject(None);
        let handle = LAZY.open(recorder.clone()).unwrap();
        assert!(has_what_was_flushed(&setup::read_all(&handle).unwrap()));
        writes += 1;
    }
    assert!(writes >= 2, "the repair made only {writes} writes");

    let bench = Bench::new();
    bench.write("disk", &bytes);
    let reader = open_file(&bench.path("disk"), READ_ONLY, &[]).unwrap();
    let error = open_file(&bench.path("disk"), WRITABLE, &[]).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(has_what_was_flushed(&setup::read_all(&reader).unwrap()));
    reader.close().unwrap();
    let read_only = FileStorage::open(&bench.path("disk"), FileOptions::default()).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(read_only);
    assert_eq!(open_over(&storage, None, WRITABLE, &[]).map(drop).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(bench.read("disk") == bytes);
    let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
    assert!(handle.repaired().is_some());
}

/// A way to let go of guest sectors 2 to 12.
type Drops = fn(&qcow2::testing::ops::handle::Handle);

/// Row 10: Discard, resize and snapshots while lazy: a cluster is not used again before the entry that dropped it is
/// durable.
#[test]
fn lazy_10_nothing_is_used_again_too_early() {
    let drops: [(&str, Drops); 3] = [
        ("discard", |h| h.disk().discard(2 * SECTOR, 10 * SECTOR).unwrap()),
        ("unmap", |h| {
            let unmap = qcow2::testing::disk::ZeroFlags { unmap: true, no_fallback: false };
            h.disk().write_zeroes(2 * SECTOR, 10 * SECTOR, unmap, false).unwrap();
        }),
        ("overwrite after a discard", |h| {
            h.disk().discard(2 * SECTOR, 10 * SECTOR).unwrap();
            setup::write(h, 2, 10, 5, false).unwrap();
        }),
    ];
    for (name, drop_them) in drops {
        let recorder = LAZY.recorder();
        let handle = LAZY.open(recorder.clone()).unwrap();
        let owners = oracle::Owners::of(&recorder.contents());
        let ours = |u: &oracle::Use| matches!(u, oracle::Use::Data { guest_cluster: 2..=11 });
        let clusters: Vec<u64> =
            owners.0.iter().filter(|(_, u)| u.iter().any(ours)).map(|(c, _)| *c).collect();
        assert_eq!(clusters.len(), 10);
        let used = |from: usize| {
            let log = recorder.log();
            let hit = |e: &&Event| {
                e.what == What::Write
                    && clusters.iter().any(|c| (e.offset..e.offset + e.length).contains(&(c * SECTOR)))
            };
            log[from..].iter().filter(hit).count()
        };
        let begin = recorder.log_length();
        drop_them(&handle);
        setup::write(&handle, 60, 12, 6, false).unwrap();
        assert_eq!(used(begin), 0, "{name}: used again before a sync");
        handle.disk().flush().unwrap();
        handle.disk().flush().unwrap();
        let begin = recorder.log_length();
        setup::write(&handle, 90, 12, 7, false).unwrap();
        assert!(used(begin) > 0, "{name}: not free after the flush");
        handle.close().unwrap();
        assert_eq!(check_clean(&*recorder), Ok(0), "{name}");
        rules::check_trace(&recorder).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    // The power fails anywhere in lists that drop and take again.
    for drops in [Discard { sector: 2, count: 10 }, Resize { sectors: 4 }] {
        let ops = [drops, Resize { sectors: 120 }, write_op(60, 12), Flush, write_op(90, 12)];
        let count = sweep(&LAZY, &ops, &mut Rng::new(3)).unwrap();
        assert!(count.repaired > 50, "{count:?}");
    }
}

/// Row 10, with a snapshot in between, killed at the end.
#[test]
fn lazy_10_nor_with_a_snapshot_in_between() {
    let recorder = LAZY.recorder();
    let handle = LAZY.open(recorder.clone()).unwrap();
    take_snapshot(&handle, "one");
    setup::write(&handle, 0, 12, 8, false).unwrap();
    handle.disk().discard(4 * SECTOR, 10 * SECTOR).unwrap();
    setup::write(&handle, 60, 30, 9, false).unwrap();
    resize(&handle, 400 * SECTOR, Preallocation::Off).unwrap();
    setup::write(&handle, 300, 30, 9, false).unwrap();
    handle.disk().flush().unwrap();
    drop(handle);
    let bytes = recorder.contents();
    assert!(oracle::is_dirty(&bytes));
    let length = bytes.len() as u64;
    let medium = Overlay::new(bytes.into(), Default::default(), length);
    let tags = recover(&LAZY, &medium, true).unwrap();
    assert_eq!((&tags.disk[..4], &tags.disk[300..330]), (&[8; 4][..], &[9; 30][..]));
    let handle = LAZY.open(medium.clone()).unwrap();
    let wanted = qcow2::testing::ops::snapshot::SnapshotRef { id: None, name: Some(b"one") };
    qcow2::testing::ops::snapshot::apply(&handle, wanted).unwrap();
    assert_eq!(setup::read(&handle, 0, 20).unwrap(), [PREFILL_TAG; 20]);
    handle.close().unwrap();
    assert_eq!(check_clean(&*medium), Ok(0));
}

/// Row 11: Dirty, with an unknown autoclear bit: repaired, and the bit cleared by the first change. Dirty and corrupt: no
/// writable open, and not one byte changes.
#[test]
fn lazy_11_dirty_with_other_bits() {
    let mut bytes = killed();
    put(&mut bytes, 88, &(1u64 << 63 | 1 << 17).to_be_bytes());
    let recorder = Recorder::new(bytes.clone());
    let handle = LAZY.open(recorder.clone()).unwrap();
    assert!(handle.repaired().is_some());
    setup::write(&handle, 3, 1, 5, false).unwrap();
    handle.close().unwrap();
    let after = recorder.contents();
    assert_eq!((oracle::be64(&after, 88), oracle::is_dirty(&after)), (0, false));
    assert_eq!(check_clean(&*recorder), Ok(0));

    let bench = Bench::new();
    bytes[79] |= 2;
    bench.write("disk", &bytes);
    let refused = open_file(&bench.path("disk"), WRITABLE, &[]).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::MarkedCorrupt);
    assert!(bench.read("disk") == bytes);
    let handle = open_file(&bench.path("disk"), READ_ONLY, &[]).unwrap();
    assert!(has_what_was_flushed(&setup::read_all(&handle).unwrap()));
    drop(handle);
    assert!(bench.read("disk") == bytes);
}

/// Row 12: Several handles: a reader that closes, or looks at the header only, does not clear the writer's bit.
#[test]
fn lazy_12_only_the_writer_cleans() {
    let bench = Bench::new();
    let path = bench.path("disk");
    let how = FileOptions { writable: true, create: true, ..FileOptions::default() };
    let options = CreateOptions::parse(&["lazy_refcounts=on"]).unwrap();
    create(&FileStorage::open(&path, how).unwrap(), MIB, &options).unwrap();
    let writer = open_file(&path, WRITABLE, &[]).unwrap();
    write(&writer, 0, &[1; 100_000]);
    writer.disk().flush().unwrap();
    let dirty = || bench.read("disk")[79] & 1 == 1;
    assert!(dirty());
    let along = OpenFlags { force_share: true, ..READ_ONLY };
    for flags in [along, OpenFlags { metadata_only: true, ..along }] {
        let before = bench.read("disk");
        let reader = open_file(&path, flags, &[]).unwrap();
        assert!(reader.repaired().is_none());
        reader.close().unwrap();
        assert!(bench.read("disk") == before, "{flags:?}: closing a reader has changed the file");
    }
    // As a base that is read along, too.
    let top = bench.path("top");
    let words = ["backing_file=disk", "backing_fmt=qcow2"];
    create(&FileStorage::open(&top, how).unwrap(), MIB, &CreateOptions::parse(&words).unwrap()).unwrap();
    let above = OpenFlags { allow_recorded: true, ..along };
    let reader = open_file(&top, above, &[]).unwrap();
    assert!(read(&reader, 0, 1000).iter().all(|b| *b == 1));
    reader.close().unwrap();
    assert!(dirty());
    assert_eq!(open_file(&path, WRITABLE, &[]).map(drop).unwrap_err().kind(), ErrorKind::Locked);
    write(&writer, 500_000, &[2; 100_000]);
    assert!(dirty());
    writer.close().unwrap();
    assert!(!dirty());
    assert_sound(&FileStorage::open(&path, FileOptions::default()).unwrap());
}
