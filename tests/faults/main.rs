//! Each call of an operation list fails once, or from then on. Afterwards: a clear error, old data in place,
//! no corruption after a reopen (leaks are allowed), and no second chance for a failed sync.

mod deep;
mod whole;

use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::check::CheckOptions;
use std::sync::Arc;
use testkit::bitmaps::BitmapOp;
use testkit::expect::Contents;
use testkit::ops::{random_list, random_setup, with_data_file, Op, Op::*};
use testkit::oracle;
use testkit::overlay::Overlay;
use testkit::recorder::{Fault, Kind, Recorder, Refusals};
use testkit::rng::{base_seed, cases, most_cases, replay_line, share, Rng};
use testkit::runner::Runner;
use testkit::setup::{self, Setup};
use testkit::split;
use testkit::sweep::{check_clean, recover, run_cases, Count};

/// Most calls of one list that are failed one by one.
const MAX_CALLS: u64 = 160;

/// Which of an image's files fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Image,
    DataFile,
}

/// The file of a side.
fn file_of(image: &Arc<Recorder>, side: Side) -> Arc<Recorder> {
    match side {
        Side::Image => image.clone(),
        Side::DataFile => image.data_file().expect("a data file"),
    }
}

fn run_with(
    setup: &Setup,
    ops: &[Op],
    fault: Option<(Fault, Side)>,
    refusals: Refusals,
) -> Result<(Runner, bool), String> {
    let image = setup.recorder();
    image.refuse(refusals);
    if let Some(data) = image.data_file() {
        data.refuse(refusals);
    }
    let mut runner = Runner::on(setup, image.clone())?;
    let recorder = file_of(&image, fault.map_or(Side::Image, |f| f.1));
    let fault = fault.map(|f| f.0);
    recorder.inject(fault);
    let mut sync_failed = false;
    for op in ops {
        // A kill or reopen would be a new handle, and an image that is taken back is as one that is opened: an earlier
        // failure does not count there.
        if matches!(op, Kill | Reopen | HandOver) && recorder.failed() > 0 {
            continue;
        }
        if runner.handle.is_none() {
            break;
        }
        let failed_before = recorder.failed();
        let answer = runner.run(*op)?;
        if sync_failed && answer.is_none() && matches!(op, Flush) {
            return Err(format!("{op:?} succeeds after a failed sync"));
        }
        let Some(error) = answer else { continue };
        if recorder.failed() == 0 {
            return Err(format!("{op:?} fails without a fault: {error}"));
        }
        if error.to_string().is_empty() {
            return Err(format!("{op:?} fails without a text"));
        }
        let told = fault.map_or(0, |f| f.errno);
        let first = recorder.failed() == 1 && failed_before == 0;
        if first && !sync_failed && error.kind() != ErrorKind::Host(told) {
            return Err(format!("{op:?} fails with {:?}, the host said {told}: {error}", error.kind()));
        }
        sync_failed |= fault.is_some_and(|f| f.kind == Some(Kind::Sync));
    }
    Ok((runner, sync_failed))
}

/// What is left on the medium is an image that holds what it must.
fn judge(runner: &mut Runner, setup: &Setup) -> Result<(), String> {
    let recorder = runner.recorder.clone();
    recorder.inject(None);
    if let Some(data) = recorder.data_file() {
        data.inject(None);
    }
    recorder.judge()?;
    // The process dies here: everything that was written is in the file.
    let tags = left_on(setup, &recorder).map_err(|e| format!("after the fault: {e}"))?;
    runner.expect.check(&tags, false).map_err(|e| format!("after the fault: {e}"))?;
    let Some(handle) = runner.handle.take() else { return Ok(()) };
    // A handle that still serves reads serves the right bytes.
    if let Ok(tags) = setup::read_all(&handle) {
        runner.expect.check_live(&tags)?;
    }
    let closed = handle.close();
    let tags = left_on(setup, &recorder).map_err(|e| format!("after closing ({closed:?}): {e}"))?;
    match closed {
        Ok(()) => runner.expect.check_live(&tags.disk).map_err(|e| format!("after a good close: {e}")),
        Err(_) => runner.expect.check(&tags, false).map_err(|e| format!("after a failed close: {e}")),
    }
}

/// What a new open finds.
fn left_on(setup: &Setup, recorder: &Recorder) -> Result<Contents, String> {
    let medium = |file: &Recorder| {
        let bytes = file.contents();
        let length = bytes.len() as u64;
        Overlay::new(bytes.into(), Default::default(), length)
    };
    let image = medium(recorder);
    match recorder.data_file() {
        Some(data) => split::recover(setup, &image, &medium(&data)).map(|(_, contents)| contents),
        None => recover(setup, &image, oracle::is_dirty(&image.start())),
    }
}

fn calls_of(setup: &Setup, ops: &[Op], kind: Option<Kind>, side: Side) -> Result<u64, String> {
    // Never reached: counts the calls.
    let never = Fault { kind, call: u64::MAX, errno: libc::EIO, forever: false, torn: false };
    let (runner, _) = run_with(setup, ops, Some((never, side)), Refusals::default())?;
    Ok(file_of(&runner.recorder, side).counted())
}

/// Fails every call of a list in every way, on each file of the image.
fn sweep(setup: &Setup, ops: &[Op], rng: &mut Rng) -> Result<Count, String> {
    let mut count = sweep_side(setup, ops, rng, Side::Image)?;
    if setup.data_file.is_some() {
        count.enumerated += sweep_side(setup, ops, rng, Side::DataFile)?.enumerated;
    }
    Ok(count)
}

fn sweep_side(setup: &Setup, ops: &[Op], rng: &mut Rng, side: Side) -> Result<Count, String> {
    let mut count = Count::default();
    let ways = [
        (None, libc::EIO, false, false),
        (None, libc::ENOSPC, true, false),
        (Some(Kind::Write), libc::ENOSPC, false, true),
        (Some(Kind::Sync), libc::EIO, false, false),
        (Some(Kind::SetLength), libc::ENOSPC, true, false),
    ];
    for (kind, errno, forever, torn) in ways {
        let calls = calls_of(setup, ops, kind, side)?;
        let step = calls.div_ceil(MAX_CALLS).max(1);
        let first = if step > 1 { rng.below(step) } else { 0 };
        for call in (first..calls).step_by(step as usize) {
            let fault = Fault { kind, call, errno, forever, torn };
            let told = |e: String| format!("{fault:?} of {side:?}: {e}");
            let (mut runner, _) =
                run_with(setup, ops, Some((fault, side)), Refusals::default()).map_err(told)?;
            if runner.recorder.failures() == 0 {
                return Err(told("the fault was not reached".into()));
            }
            judge(&mut runner, setup).map_err(told)?;
            count.enumerated += 1;
            count.opened += 2;
        }
    }
    Ok(count)
}

fn report(test: &str, cases: usize, count: Count) {
    testkit::tell!("{test}: {cases} lists, {} faults injected", count.enumerated);
}

#[test]
fn each_call_fails() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(80))
        .map(|_| {
            let setup = random_setup(&mut rng);
            let length = 3 + rng.below(8) as usize;
            let mut list = random_list(&mut rng, &setup, length);
            list.push(Flush);
            (setup, list, rng.next())
        })
        .collect();
    let count = run_cases(&replay_line("faults", "each_call_fails", seed), &cases, &sweep);
    report("each_call_fails", cases.len(), count);
    assert!(most_cases() < usize::MAX || count.enumerated > 100);
}

/// The same with guest data in an external data file, whose calls fail too.
#[test]
fn each_call_on_a_data_file_fails() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(40))
        .map(|number| {
            let raw = number % 2 == 0;
            let setup = Setup { version: 3, snapshots: false, ..random_setup(&mut rng) };
            let setup = with_data_file(setup, raw);
            let list = random_list(&mut rng, &setup, 6);
            let mut list: Vec<_> = list.into_iter().filter(|o| !matches!(o, Compressed { .. })).collect();
            list.push(Flush);
            (setup, list, rng.next())
        })
        .collect();
    let count = run_cases(&replay_line("faults", "each_call_on_a_data_file_fails", seed), &cases, &sweep);
    report("each_call_on_a_data_file_fails", cases.len(), count);
    assert!(count.enumerated > cases.len() as u64 * 5);
}

/// Bitmaps between writes, with each call failing once: none is believed without a change that is on the medium.
#[test]
fn each_call_of_lists_with_bitmaps_fails() {
    let (write, over) = (Write { sector: 3, count: 4, fua: false }, Write { sector: 4, count: 2, fua: true });
    let mut lists = Vec::new();
    for op in BitmapOp::ALL {
        let op = Bitmaps { op };
        for list in [
            vec![write, op, over, op, write],
            vec![write, Reopen, over, op, Resize { sectors: 40 }, op],
            vec![
                write,
                Bitmaps { op: BitmapOp::Rotate },
                over,
                op,
                Resize { sectors: 6000 },
                write,
                HandOver,
            ],
        ] {
            lists.push((Setup { bitmaps: true, prefill: 6, ..Setup::default() }, list, lists.len() as u64));
        }
    }
    let lists = share(lists);
    let count = run_cases("each_call_of_lists_with_bitmaps_fails", &lists, &sweep);
    report("each_call_of_lists_with_bitmaps_fails", lists.len(), count);
}

/// An image that `op` makes sense on.
fn setup_for(op: Op, lazy: bool) -> Setup {
    let backing = lazy.then_some(130);
    let (version, refcount_order) = match op {
        Amend { option: "compat=1.1" } => (2, 4),
        Amend { .. } => (3, 4),
        _ => (3, 6),
    };
    let lazy = lazy && version == 3;
    Setup { version, lazy, backing, refcount_order, ahead: !lazy, snapshots: true, ..Setup::default() }
}

/// Each operation by itself, at each of its calls, on an image that has some of everything.
#[test]
fn each_call_of_each_operation_fails() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let before = [
        Write { sector: 3, count: 70, fua: false },
        Zero { sector: 30, count: 9, unmap: false, fua: false },
        Compressed { sector: 100, count: 1 },
        Snapshot,
        Flush,
    ];
    let single = [
        Write { sector: 60, count: 20, fua: false },
        Write { sector: 3, count: 2, fua: true },
        Zero { sector: 3, count: 90, unmap: true, fua: true },
        Discard { sector: 3, count: 90 },
        Compressed { sector: 110, count: 1 },
        Resize { sectors: 40 },
        Resize { sectors: 5000 },
        Snapshot,
        Apply { pick: 0 },
        Delete { pick: 0 },
        Reopen,
        HandOver,
        Stream { sector: 2, count: 120, reads: false },
        Stream { sector: 90, count: 60, reads: true },
        Kill,
        Amend { option: "compat=0.10" },
        Amend { option: "compat=1.1" },
        Amend { option: "refcount_bits=2" },
        Amend { option: "refcount_bits=64" },
        Amend { option: "lazy_refcounts=on" },
        Amend { option: "lazy_refcounts=off" },
    ];
    let mut lists = Vec::new();
    for lazy in [false, true] {
        for op in single {
            let list = before.into_iter().chain([op, Write { sector: 10, count: 3, fua: true }, Flush]);
            lists.push((setup_for(op, lazy), list.collect(), rng.next()));
        }
    }
    let lists = share(lists);
    let replay = replay_line("faults", "each_call_of_each_operation_fails", seed);
    let count = run_cases(&replay, &lists, &sweep);
    report("each_call_of_each_operation_fails", lists.len(), count);
}

/// The file grows before a flush syncs: each call fails, among them those that make it longer.
#[test]
fn each_call_of_a_growing_file_fails() {
    // Clusters of 1 MiB: each new one takes as much as the file grows by.
    let write = |cluster: u64| Write { sector: (cluster << 11) + 3, count: 2, fua: false };
    let ops = vec![write(0), Flush, write(1), Flush];
    let setup = Setup { cluster_bits: 20, sectors: 2 << 11, ..Setup::default() };
    let lists = [(setup, ops, 1)];
    let count = run_cases("each_call_of_a_growing_file_fails", &lists, &sweep);
    report("each_call_of_a_growing_file_fails", lists.len(), count);
    for lazy in [false, true] {
        let setup = Setup { lazy, ..setup };
        let none = Refusals { set_length: true, ..Refusals::default() };
        let (mut runner, _) = run_with(&setup, &lists[0].1, None, none).unwrap();
        judge(&mut runner, &setup).unwrap();
    }
}

/// An L1 table of more clusters than a refcount block counts.
#[test]
fn each_call_of_a_growing_table_fails() {
    let lists = [false, true].map(|lazy| {
        let setup = Setup { refcount_order: 6, prefill: 30, lazy, ..Setup::default() };
        let write = Write { sector: 200, count: 2, fua: false };
        (setup, vec![Resize { sectors: 270_000 }, write, Flush], 1)
    });
    let count = run_cases("each_call_of_a_growing_table_fails", &lists, &sweep);
    report("each_call_of_a_growing_table_fails", lists.len(), count);
}

/// A repair of an open image synced, that failed, the image was loaded anew with another sync, and went on.
#[test]
fn a_failed_sync_of_a_repair_is_final() {
    let repair = CheckOptions { repair_leaks: true, repair_errors: true, workers: 1 };
    let setup = Setup { prefill: 20, ..Setup::default() };
    for call in 0.. {
        let mut image = setup.create();
        // Counts of a leak and of nothing, so that the repair writes and syncs.
        let head = oracle::Head::parse(&image).unwrap();
        let block = (oracle::be64(&image, head.table_offset as usize) & oracle::OFFSET) as usize;
        image[block + 2 * 15] = 3;
        let recorder = Recorder::new(image);
        recorder.leave_unjudged("the image is damaged from the start");
        let handle = setup.open(recorder.clone()).unwrap();
        let errno = libc::EIO;
        recorder.inject(Some(Fault { kind: Some(Kind::Sync), call, errno, forever: false, torn: false }));
        let answer = handle.check(repair, None, &mut |_, _| true);
        if recorder.failed() == 0 {
            assert!(answer.unwrap().leaks_fixed > 0);
            assert!(call >= 2, "the repair synced only {call} times");
            break;
        }
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Host(errno), "sync {call}");
        for _ in 0..2 {
            assert_eq!(handle.disk().flush().unwrap_err().kind(), ErrorKind::Latched, "sync {call}");
        }
        let again = handle.check(repair, None, &mut |_, _| true);
        assert_eq!(again.unwrap_err().kind(), ErrorKind::Latched, "sync {call}");
        assert!(handle.close().is_err());
        let fresh = setup.open(Recorder::new(recorder.contents())).unwrap();
        assert_eq!(setup::read(&fresh, 0, 20).unwrap(), [setup::PREFILL_TAG; 20]);
    }
}

/// A host that cannot change lengths, zero ranges or punch holes is slower, not wrong.
#[test]
fn a_poor_host_is_enough() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..cases(200))
        .map(|_| {
            let mut setup = random_setup(&mut rng);
            if setup.version == 3 && !setup.snapshots && setup.backing.is_none() && rng.one_in(3) {
                setup = with_data_file(setup, rng.one_in(2));
            }
            let list = random_list(&mut rng, &setup, 12).into_iter();
            let fits = |o: &Op| setup.data_file.is_none() || !matches!(o, Compressed { .. });
            (setup, list.filter(fits).collect(), rng.next())
        })
        .collect();
    let poor = |setup: &Setup, ops: &[Op], _: &mut Rng| {
        for number in 1..8 {
            let refusals = Refusals {
                set_length: number & 1 != 0,
                write_zeroes: number & 2 != 0,
                discard: number & 4 != 0,
                discard_keeps: number & 4 == 0,
            };
            let told = |e: String| format!("{refusals:?}: {e}");
            let (mut runner, _) = run_with(setup, ops, None, refusals).map_err(told)?;
            runner.check_live().map_err(told)?;
            judge(&mut runner, setup).map_err(told)?;
            check_clean(&*runner.recorder).map_err(told)?;
        }
        Ok(Count { enumerated: 7, ..Count::default() })
    };
    let count = run_cases(&replay_line("faults", "a_poor_host_is_enough", seed), &cases, &poor);
    report("a_poor_host_is_enough", cases.len(), count);
}

/// The kernel may have dropped the pages: only a new open helps.
#[test]
fn a_failed_sync_is_final() {
    let setup = Setup::default();
    let recorder = setup.recorder();
    let mut runner = Runner::on(&setup, recorder.clone()).unwrap();
    assert!(runner.run(Write { sector: 3, count: 2, fua: false }).unwrap().is_none());
    recorder.inject(Some(Fault {
        kind: Some(Kind::Sync),
        call: 0,
        errno: libc::EIO,
        forever: false,
        torn: false,
    }));
    let first = runner.run(Flush).unwrap().expect("the flush fails");
    assert_eq!(first.kind(), ErrorKind::Host(libc::EIO));
    let later = [Flush, Write { sector: 3, count: 1, fua: false }, Write { sector: 9, count: 1, fua: true }];
    let later = later.into_iter().chain([Discard { sector: 3, count: 1 }, Flush, Resize { sectors: 400 }]);
    let written = recorder.log_length();
    for op in later {
        let error = runner.run(op).unwrap().unwrap_or_else(|| panic!("{op:?} succeeds after a failed sync"));
        assert_eq!(error.kind(), ErrorKind::Latched, "{op:?}: {error}");
        assert!(error.to_string().contains("sync"), "{op:?}: {error}");
    }
    assert_eq!(recorder.log_length(), written, "nothing is written after a failed sync");
    assert!(runner.handle.take().unwrap().close().is_err());
    let fresh = Recorder::new(recorder.contents());
    assert!(setup.open(fresh).is_ok(), "a new open works");
}
