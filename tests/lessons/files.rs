//! C10, C11, C14 to C16: locks, shared offsets, names of backing files, hosts that surprise, other writers.

use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::create::create;
use qcow2::testing::ops::inactive::{inactivate, invalidate};
use qcow2::testing::ops::open::{OpenFlags, Origin};
use qcow2::testing::options::CreateOptions;
use qcow2::testing::storage::file::{FileOptions, FileStorage};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::images::*;
use testkit::ops::Op::*;
use testkit::recorder::{Fault, Kind, Refusals};
use testkit::rng::Rng;
use testkit::runner::Runner;
use testkit::setup::Setup;
use testkit::sweep::check_clean;

fn create_file(path: &Path, size: u64, options: &[&str]) {
    let how = FileOptions { writable: true, create: true, ..FileOptions::default() };
    let file = FileStorage::open(path, how).unwrap();
    create(&file, size, &CreateOptions::parse(options).unwrap()).unwrap();
}

/// Two programs wrote one image, for the second had another name for it, or an unrelated close had dropped the lock.
/// (Other processes, fork and `kill -9`: c-tests/locks.c, c-tests/fork.c.)
#[test]
fn c10_one_writer_whatever_the_file_is_called() {
    let bench = Bench::new();
    let path = bench.path("disk.qcow2");
    create_file(&path, MIB, &[]);
    std::fs::hard_link(&path, bench.path("hard")).unwrap();
    std::os::unix::fs::symlink("disk.qcow2", bench.path("soft")).unwrap();
    std::fs::create_dir(bench.path("dir")).unwrap();
    let writer = open_file(&path, WRITABLE, &[]).unwrap();
    let by_descriptor = format!("/proc/self/fd/{}", writer.descriptor().unwrap());
    let names = [
        path.clone(),
        bench.path("hard"),
        bench.path("soft"),
        bench.path("dir/../disk.qcow2"),
        by_descriptor.into(),
    ];
    let metadata_only = OpenFlags { metadata_only: true, ..WRITABLE };
    // Each attempt opens and closes the file, which must not cost the first one its lock.
    for _ in 0..3 {
        for name in &names {
            for flags in [WRITABLE, READ_ONLY, metadata_only] {
                let refused = |why: &str| {
                    let answer = open_file(name, flags, &[]).map(drop).map_err(|e| e.kind());
                    assert_eq!(answer, Err(ErrorKind::Locked), "{why} {name:?} {flags:?}");
                };
                refused("in this thread");
                std::thread::scope(|s| s.spawn(|| refused("in another thread")).join().unwrap());
            }
        }
        let file = std::fs::File::open(&path).unwrap();
        let descriptor = Origin::Descriptor(file.as_raw_fd());
        let refused = open_origin(&descriptor, READ_ONLY, &[]).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
    }
    if let Some(stock) = Bench::with_stock_tools("c10, the stock tool beside us") {
        let (good, said) =
            stock.try_run("qemu-io", &["-f", "qcow2", "-c", "read 0 512", path.to_str().unwrap()]);
        assert!(!good && said.contains("lock"), "{said}");
    }
    writer.close().unwrap();
    open_file(&bench.path("hard"), WRITABLE, &[]).unwrap().close().unwrap();
}

/// A duplicated descriptor shares its file offset, and data landed where somebody else had moved it. Somebody else
/// moves it all the time here.
#[test]
fn c11_a_shared_file_offset_is_never_used() {
    const THREADS: u64 = 6;
    let bench = Bench::new();
    let path = bench.path("disk.qcow2");
    create_file(&path, 4 * MIB, &["cluster_size=4k"]);
    let mut ours = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let handle = open_origin(&Origin::Descriptor(ours.as_raw_fd()), WRITABLE, &[]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let handle = &handle;
                scope.spawn(move || {
                    let mut rng = Rng::new(number);
                    let share = 4 * MIB / THREADS / 512 * 512;
                    let mut wanted = vec![0; share as usize];
                    for round in 0..300u64 {
                        let (at, length) = (rng.below(share - 9000), 1 + rng.below(9000));
                        let bytes = &pattern(9008, number * 1000 + round)[..length as usize];
                        put(&mut wanted, at as usize, bytes);
                        write(handle, number * share + at, bytes);
                        let (at, length) = (rng.below(share - 9000), 1 + rng.below(9000));
                        let seen = read(handle, number * share + at, length);
                        assert!(seen == wanted[at as usize..(at + length) as usize]);
                    }
                    assert!(read(handle, number * share, share) == wanted);
                })
            })
            .collect();
        let done = &done;
        let mover = scope.spawn(move || {
            let (mut rng, mut moves) = (Rng::new(99), 0u64);
            while !done.load(Ordering::SeqCst) {
                ours.seek(SeekFrom::Start(rng.below(8 * MIB))).unwrap();
                moves += 1;
            }
            moves
        });
        workers.into_iter().for_each(|w| w.join().unwrap());
        done.store(true, Ordering::SeqCst);
        assert!(mover.join().unwrap() > 1000);
    });
    handle.close().unwrap();
    assert_sound(&FileStorage::open(&path, FileOptions::default()).unwrap());
}

/// Reads past the end of a short backing file were I/O errors. Bases of every length, under images of others.
#[test]
fn c14_backing_files_of_any_length() {
    let bench = Bench::new();
    let size = 256 * KIB;
    for length in [0u64, 1, 511, 513, 100_000, size - 1, size, size + 1, 3 * size] {
        let base = pattern(length.next_multiple_of(8), 3)[..length as usize].to_vec();
        bench.write("base.raw", &base);
        let mut wanted = base.clone();
        wanted.resize(size as usize, 0);
        for options in [&["cluster_size=512"][..], &["cluster_size=64k"], &["cluster_size=4k", "compat=0.10"]]
        {
            let _ = std::fs::remove_file(bench.path("top"));
            let mut all = vec!["backing_file=base.raw", "backing_fmt=raw"];
            all.extend(options);
            create_file(&bench.path("top"), size, &all);
            let flags = OpenFlags { allow_recorded: true, ..WRITABLE };
            let handle = open_file(&bench.path("top"), flags, &[]).unwrap();
            assert!(read_all(&handle) == wanted, "{length} {options:?}");
            // Copy on write across the end of the base.
            let mut now = wanted.clone();
            for at in [length.saturating_sub(100), length, size / 2 + 3, size - 7] {
                let bytes = &pattern(304, at)[..300.min(size.saturating_sub(at)) as usize];
                put(&mut now, at.min(size) as usize, bytes);
                if !bytes.is_empty() {
                    write(&handle, at, bytes);
                }
            }
            assert!(read_all(&handle) == now, "{length} {options:?}: after writes");
            handle.close().unwrap();
            assert_sound(&FileStorage::open(&bench.path("top"), FileOptions::default()).unwrap());
        }
    }
}

/// A relative backing name was looked up in the current directory. It belongs to the directory of the image as the
/// image was named, and the stock tool agrees.
#[test]
fn c14_relative_backing_names_belong_to_the_image() {
    let bench = Bench::new();
    for dir in ["images", "images/bases", "elsewhere"] {
        std::fs::create_dir(bench.path(dir)).unwrap();
    }
    bench.write("images/bases/base", &vec![5; 64 * KIB as usize]);
    let options = ["backing_file=bases/base", "backing_fmt=raw"];
    create_file(&bench.path("images/top"), 64 * KIB, &options);
    std::os::unix::fs::symlink("images", bench.path("way")).unwrap();
    std::os::unix::fs::symlink("../images/top", bench.path("elsewhere/top")).unwrap();
    std::os::unix::fs::symlink("top", bench.path("images/nick")).unwrap();
    let stock = Bench::with_stock_tools("c14, the stock tool's opinion");
    let flags = OpenFlags { allow_recorded: true, ..READ_ONLY };
    // The tests run in another directory than the image's.
    assert!(!Path::new("bases/base").exists());
    for (name, opens) in
        [("images/top", true), ("way/top", true), ("images/nick", true), ("elsewhere/top", false)]
    {
        match open_file(&bench.path(name), flags, &[]) {
            Ok(handle) => assert!(opens && read_all(&handle).iter().all(|b| *b == 5), "{name}"),
            Err(e) => assert!(!opens && e.kind() == ErrorKind::Host(libc::ENOENT), "{name}: {e}"),
        }
        if let Some(stock) = &stock {
            let path = bench.path(name);
            let (good, said) = stock
                .try_run("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 5 0 64k", path.to_str().unwrap()]);
            assert_eq!(good, opens, "{name}: {said}");
        }
    }
}

/// Hosts refuse `fallocate` modes and lengths; that is a slower way and no error.
/// (Short transfers and EINTR: c-tests/short-io.c.)
#[test]
fn c15_a_host_that_refuses_is_slower_not_wrong() {
    let write = |sector, count| Write { sector, count, fua: false };
    let unmap = Zero { sector: 30, count: 50, unmap: true, fua: false };
    let ops = [
        write(3, 90),
        Discard { sector: 10, count: 40 },
        Flush,
        write(12, 50),
        unmap,
        Resize { sectors: 40 },
        Resize { sectors: 900 },
        write(800, 50),
        Reopen,
        write(0, 60),
    ];
    for number in 1..8 {
        let recorder = Setup::default().recorder();
        recorder.refuse(Refusals {
            set_length: number & 1 != 0,
            write_zeroes: number & 2 != 0,
            discard: number & 4 != 0,
            discard_keeps: number & 4 == 0,
        });
        let mut runner = Runner::on(&Setup::default(), recorder.clone()).unwrap();
        for op in ops {
            let answer = runner.run(op).unwrap();
            assert!(answer.is_none(), "{number} {op:?}: {answer:?}");
        }
        runner.check_live().unwrap();
        runner.handle.take().unwrap().close().unwrap();
        check_clean(&*recorder).unwrap();
    }
}

/// A sync failed, the next one "succeeded", and what the kernel had dropped was taken for durable.
#[test]
fn c15_a_failed_sync_is_never_followed_by_a_good_one() {
    for lazy in [false, true] {
        let setup = Setup { lazy, ..Setup::default() };
        let mut runner = Runner::new(&setup).unwrap();
        assert!(runner.run(Write { sector: 3, count: 9, fua: false }).unwrap().is_none());
        let errno = libc::EIO;
        let fault = Fault { kind: Some(Kind::Sync), call: 0, errno, forever: false, torn: false };
        runner.recorder.inject(Some(fault));
        let first = runner.run(Flush).unwrap().expect("the flush fails");
        assert_eq!(first.kind(), ErrorKind::Host(errno));
        let before = runner.recorder.log_length();
        for op in [
            Flush,
            Write { sector: 3, count: 1, fua: true },
            Discard { sector: 0, count: 9 },
            Resize { sectors: 9 },
        ] {
            let error = runner.run(op).unwrap().unwrap_or_else(|| panic!("{op:?} succeeds"));
            assert_eq!(error.kind(), ErrorKind::Latched, "{op:?}");
        }
        assert!(runner.handle.take().unwrap().close().is_err());
        assert_eq!(runner.recorder.log_length(), before, "something was written after the failed sync");
    }
}

/// Everything that an inactive image has written is durable: a sync that fails while it is taken back loses nothing of its
/// own, and was final for the handle all the same.
#[test]
fn c15_an_invalidation_whose_sync_failed_may_be_tried_again() {
    let mut runner = Runner::new(&Setup::default()).unwrap();
    assert!(runner.run(Write { sector: 3, count: 9, fua: false }).unwrap().is_none());
    let handle = runner.handle.as_ref().unwrap();
    inactivate(handle).unwrap();
    let errno = libc::EIO;
    let fault = Fault { kind: Some(Kind::Sync), call: 0, errno, forever: false, torn: false };
    runner.recorder.inject(Some(fault));
    let first = invalidate(handle, None, None).expect_err("the sync fails");
    assert_eq!(first.kind(), ErrorKind::Host(errno));
    assert!(handle.flags().inactive, "it is active after a failure");
    invalidate(handle, None, None).unwrap();
    for op in [Write { sector: 30, count: 9, fua: false }, Flush] {
        assert!(runner.run(op).unwrap().is_none(), "{op:?} fails");
    }
    runner.handle.take().unwrap().close().unwrap();
    check_clean(&*runner.recorder).unwrap();
}

/// The dirty bit of a killed lazy session was a reason to refuse the image, or was lost without a repair: ours by the
/// stock tool, and the stock tool's by us.
#[test]
fn c16_killed_lazy_sessions_are_mended_by_either_side() {
    let Some(bench) = Bench::with_stock_tools("c16") else { return };
    create_file(&bench.path("ours"), 4 * MIB, &["lazy_refcounts=on", "cluster_size=4k"]);
    let handle = open_file(&bench.path("ours"), WRITABLE, &[]).unwrap();
    write(&handle, 10_000, &vec![9; MIB as usize]);
    handle.disk().flush().unwrap();
    drop(handle); // without a close
    assert_eq!(bench.read("ours")[79] & 1, 1, "not dirty");
    bench.io("ours", &["read -P 9 10000 1M", "write -P 8 3M 64k"]);
    assert_eq!(bench.read("ours")[79] & 1, 0, "the stock tool has repaired");
    bench.assert_clean("ours");

    bench.img(&["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "theirs", "4M"]);
    bench.io_and_die("theirs", &["write -P 9 10000 1M", "flush"]);
    assert_eq!(bench.read("theirs")[79] & 1, 1, "not dirty");
    let handle = open_file(&bench.path("theirs"), WRITABLE, &[]).unwrap();
    assert!(handle.repaired().is_some_and(|r| r.corruptions_fixed > 0), "nothing was repaired");
    assert!(read(&handle, 10_000, MIB).iter().all(|b| *b == 9));
    write(&handle, 3 * MIB, &[8; 65536]);
    handle.close().unwrap();
    assert_eq!(bench.read("theirs")[79] & 1, 0);
    bench.assert_clean("theirs");
}
